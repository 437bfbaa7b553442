package main

import (
	"fmt"
	"strings"
	"time"
)

// phrases are the parts of a sentence.
type phrases []string

// add adds one phrase, made of pieces; one that is empty is left out.
func (p *phrases) add(pieces ...string) {
	if text := strings.TrimSpace(strings.Join(pieces, "")); text != "" {
		*p = append(*p, text)
	}
}

func (p *phrases) String() string { return strings.Join(*p, ", ") }

// formatText puts a value where format has %s; "" for none. Text of a file that anybody may have
// written is made printable.
func formatText(format, value string) string {
	if value == "" {
		return ""
	}
	return fmt.Sprintf(format, quoteUnprintable(value))
}

// formatCount is a number of things, as format has them behind it; "" where it is not known.
func formatCount(n *uint64, thing, format string) string {
	if n == nil {
		return ""
	}
	return fmt.Sprintf(format, pluralize(*n, thing))
}

// formatDuration is a time in milliseconds, where format has %s; "" where it is not known.
func formatDuration(ms *uint64, format string) string {
	if ms == nil {
		return ""
	}
	return fmt.Sprintf(format, time.Duration(*ms)*time.Millisecond)
}

// description is what the record says besides its time, event, subject and address, which
// stand in columns: of each event in its own words, with those of docs/AUDIT.md as they
// are.
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

// addLogin is about an attempt to log in.
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
	p.add(formatDuration(l.Delay, "%s of it waited on purpose"))
	p.add(formatDuration(l.Duration, "took %s"))
}

// credentials says who has judged what the client has shown. With the method passthrough
// that is the backend, if it came to it.
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

// addEnd is about the end of a connection.
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

// addLimit is about limits and bans.
func (l *auditRecord) addLimit(p *phrases) {
	p.add(formatText("%s", l.Result), formatText(" by limit %s", l.Limit))
	if l.Event != "ban_removed" { // there it is who did it
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

// addUpstream is about a session's connection to its backend.
func (l *auditRecord) addUpstream(p *phrases) {
	format := map[string]string{"upstream_lost": "connection to %s lost", "session_pinned": "kept to its connection to %s"}[l.Event]
	switch {
	case format != "":
	case l.Result == "ok":
		format = "connected to %s again"
	default:
		format = "not connected to %s again"
	}
	p.add(formatText(format, l.Backend), formatText(" in %s", l.Mailbox))
	if l.Result != "ok" {
		p.add(formatText("result %s", l.Result))
	}
	p.add(formatText("reason %s", l.Reason))
	if l.Result == "ok" {
		p.add(formatCount(l.Expunged, "message", "%s gone"))
		p.add(formatCount(l.Arrived, "message", "%s new"))
	}
	p.add(formatDuration(l.Duration, "after %s"))
}

// addGateway is about the gateway and its operators, and about events of a later release.
func (l *auditRecord) addGateway(p *phrases) {
	p.add(formatText("version %s", l.Version))
	p.add(formatText("%s ", l.Action), formatText("%s", l.Result), formatText(": %s", l.Detail))
	p.add(formatText("read again: %s", l.Reread))
	p.add(formatText("reason %s", l.Reason))
	p.add(formatText("by %s", l.Operator))
	p.add(formatCount(l.Present, "record", "%s there"))
	p.add(formatCount(l.Missing, "record", "%s missing"))
	p.add(formatCount(l.Lost, "record", "%s could not be kept"))
	p.add(formatText("behind the hash %s", l.Previous))
	p.add(l.repeatCount())
}

// repeatCount is how many events a record stands for, when it is more than one.
func (l *auditRecord) repeatCount() string {
	if l.Count == nil || *l.Count == 1 {
		return ""
	}
	return formatCount(l.Count, "time", "%s")
}
