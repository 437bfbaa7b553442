package main

import (
	"fmt"
	"strings"
	"time"
)

// phrases are the parts of a description.
type phrases []string

// add joins the pieces to one phrase and adds it, unless it is empty.
func (p *phrases) add(pieces ...string) {
	if text := strings.TrimSpace(strings.Join(pieces, "")); text != "" {
		*p = append(*p, text)
	}
}

func (p *phrases) String() string { return strings.Join(*p, ", ") }

// formatText formats a value, which may come from an untrusted file, in printable
// form; "" for an empty value.
func formatText(format, value string) string {
	if value == "" {
		return ""
	}
	return fmt.Sprintf(format, quoteUnprintable(value))
}

// formatCount formats a number of things; "" if it is unknown.
func formatCount(n *uint64, thing, format string) string {
	if n == nil {
		return ""
	}
	return fmt.Sprintf(format, pluralize(*n, thing))
}

// formatDuration formats a number of milliseconds; "" if it is unknown. From 10 s on
// it shows tenths of a second.
func formatDuration(ms *uint64, format string) string {
	if ms == nil {
		return ""
	}
	d := time.Duration(*ms) * time.Millisecond
	if d >= 10*time.Second {
		d = d.Round(100 * time.Millisecond)
	}
	return fmt.Sprintf(format, d)
}

// description returns the part of the record after the columns of time, event,
// subject and address, in words. Values of closed sets are those of docs/AUDIT.md.
func (l *auditRecord) description() string {
	var p phrases
	switch l.Event {
	case "login_accepted", "login_refused":
		l.addLogin(&p)
	case "session_ended", "connection_refused":
		l.addEnd(&p)
	case "limit_hit", "ban_added", "ban_removed", "spray_suspected":
		l.addLimit(&p)
	case "command":
		p.add(formatText("%s", l.Command), formatText(" in %s", l.Mailbox), formatText(" to %s", l.Destination), formatText(": %s", l.Result), formatText(" [%s]", l.Code))
		p.add(formatText("at %s", l.Backend))
		p.add(formatCount(l.Messages, "message", "%s"))
		p.add(formatCount(l.LiteralBytes, "byte", "%s of literals"))
		p.add(formatDuration(l.Duration, "took %s"))
	case "session_attached", "upstream_lost", "session_pinned":
		l.addUpstream(&p)
	default:
		l.addGateway(&p)
	}
	return p.String()
}

// addLogin describes a login attempt.
func (l *auditRecord) addLogin(p *phrases) {
	if l.Event == "login_refused" {
		p.add(formatText("reason %s", l.Reason))
	}
	p.add(l.repeatCount())
	p.add(formatText("at %s", l.Backend), formatText(" as %s", l.UpstreamUser))
	p.add(formatText("by %s", l.Mechanism))
	p.add(l.credentials())
	if l.ConnectResult != "ok" {
		p.add(formatText("login at the backend: %s", l.ConnectResult), formatDuration(l.ConnectTime, " after %s"))
	}
	p.add(formatText("route from %s", l.RouteSource), formatDuration(l.RouteAge, " (%s old)"))
	p.add(formatText("%s", l.TLS))
	p.add(formatDuration(l.Delay, "%s of it deliberate delay"))
	p.add(formatDuration(l.Duration, "took %s"))
}

// credentials describes who verified the client's credentials. With the method
// passthrough that is the backend, if the login got that far.
func (l *auditRecord) credentials() string {
	switch {
	case l.Method == "":
		return ""
	case l.Method != "passthrough":
		return formatText("credentials accepted by %s", l.Method)
	case l.Event == "login_accepted" || l.ConnectResult == "ok":
		return "credentials accepted by the backend"
	case l.ConnectResult == "denied":
		return "credentials denied by the backend"
	}
	return "credentials left to the backend"
}

// addEnd describes the end of a connection.
func (l *auditRecord) addEnd(p *phrases) {
	p.add(formatText("reason %s", l.Reason), formatText(" (%s)", l.Detail))
	p.add(l.repeatCount())
	p.add(formatText("at %s", l.Backend), formatText(" in mode %s", l.Mode))
	p.add(formatCount(l.Commands, "command", "%s"))
	p.add(formatCount(l.BytesIn, "byte", "%s in"))
	p.add(formatCount(l.BytesOut, "byte", "%s out"))
	p.add(formatText("%s", l.TLS))
	p.add(formatDuration(l.Duration, "after %s"))
}

// addLimit describes a limit or a ban.
func (l *auditRecord) addLimit(p *phrases) {
	if l.Limit == "banned" {
		p.add(formatText("%s by ban", l.Result))
	} else {
		p.add(formatText("%s", l.Result), formatText(" by limit %s", l.Limit))
	}
	if l.Event != "ban_removed" && (l.Reason != "operator" || l.Operator == "") { // "by" has the operator
		p.add(formatText("reason %s", l.Reason))
	}
	p.add(l.repeatCount())
	p.add(formatCount(l.Users, "user", "%s tried"), formatCount(l.Addresses, "address", " from %s"))
	p.add(formatDuration(l.Window, "within %s"))
	p.add(formatText("by %s", l.Operator))
	if !l.Until.IsZero() && l.Event == "ban_removed" {
		p.add("before its end at ", l.Until.Local().Format(time.DateTime))
	} else if !l.Until.IsZero() {
		p.add("until ", l.Until.Local().Format(time.DateTime))
	}
	p.add(formatText("note: %s", l.Detail))
}

// addUpstream describes an event of a session's connection to its backend.
func (l *auditRecord) addUpstream(p *phrases) {
	format := map[string]string{"upstream_lost": "connection to %s lost", "session_pinned": "pinned to its connection to %s"}[l.Event]
	switch {
	case format != "":
	case l.Result == "ok":
		format = "reattached to %s"
	default:
		format = "not reattached to %s"
	}
	p.add(formatText(format, l.Backend), formatText(" in %s", l.Mailbox))
	if l.Result != "ok" {
		p.add(formatText("result %s", l.Result))
	}
	p.add(formatText("reason %s", l.Reason))
	if l.Result == "ok" {
		p.add(formatCount(l.Expunged, "message", "%s expunged"))
		p.add(formatCount(l.Arrived, "message", "%s new"))
	}
	p.add(formatDuration(l.Duration, "after %s"))
}

// addGateway describes an event of the gateway or its operators, or an unknown event
// of a later release.
func (l *auditRecord) addGateway(p *phrases) {
	p.add(formatText("version %s", l.Version))
	p.add(formatText("%s ", l.Action), formatText("%s", l.Result), formatText(": %s", l.Detail))
	p.add(formatText("reloaded: %s", l.Reread))
	p.add(formatText("reason %s", l.Reason))
	p.add(formatText("by %s", l.Operator))
	p.add(formatCount(l.Present, "record", "%s present"))
	p.add(formatCount(l.Missing, "record", "%s missing"))
	p.add(formatCount(l.Lost, "record", "%s lost"))
	p.add(formatText("after the hash %s", l.Previous))
	p.add(l.repeatCount())
}

// repeatCount returns the number of events that the record stands for, if it is more
// than one.
func (l *auditRecord) repeatCount() string {
	if l.Count == nil || *l.Count == 1 {
		return ""
	}
	return formatCount(l.Count, "time", "%s")
}
