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

// with puts a value where format has %s; "" for none. Text of a file that anybody may have
// written is made printable.
func with(format, value string) string {
	if value == "" {
		return ""
	}
	return fmt.Sprintf(format, printable(value))
}

// amount is a number of things, as format has them behind it; "" where it is not known.
func amount(n *uint64, thing, format string) string {
	if n == nil {
		return ""
	}
	return fmt.Sprintf(format, counted(*n, thing))
}

// span is a time in milliseconds, where format has %s; "" where it is not known.
func span(ms *uint64, format string) string {
	if ms == nil {
		return ""
	}
	return fmt.Sprintf(format, time.Duration(*ms)*time.Millisecond)
}

// sentence is what the record says besides its time, event, subject and address, which
// stand in columns: of each event in its own words, with those of docs/AUDIT.md as they
// are.
func (l *auditLine) sentence() string {
	var p phrases
	switch l.Event {
	case "login_accepted", "login_refused":
		l.addLogin(&p)
	case "session_ended", "connection_refused":
		l.addEnd(&p)
	case "limit_hit", "ban_added", "ban_removed", "spray_suspected":
		l.addLimit(&p)
	case "command":
		p.add(with("%s", l.Command), with(" in %s", l.Mailbox), with(" to %s", l.To), with(": %s", l.Result), with(" [%s]", l.Code))
		p.add(with("at %s", l.Backend))
		p.add(amount(l.Messages, "message", "%s"))
		p.add(amount(l.Literals, "byte", "%s of literals"))
		p.add(span(l.Took, "took %s"))
	case "session_attached", "upstream_lost", "session_pinned":
		l.addUpstream(&p)
	default:
		l.addGateway(&p)
	}
	return p.String()
}

// addLogin is about an attempt to log in.
func (l *auditLine) addLogin(p *phrases) {
	if l.Event == "login_refused" {
		p.add(with("reason %s", l.Reason))
	}
	p.add(l.times())
	p.add(with("at %s", l.Backend), with(" as %s", l.Login))
	p.add(with("by %s", l.Mechanism))
	p.add(l.credentials())
	if l.Upstream != "ok" {
		p.add(with("login at the backend: %s", l.Upstream), span(l.Asked, " after %s"))
	}
	p.add(with("route from %s", l.Route), span(l.RouteAge, " (%s old)"))
	p.add(with("%s", l.TLS))
	p.add(span(l.Delay, "%s of it waited on purpose"))
	p.add(span(l.Took, "took %s"))
}

// credentials says who has judged what the client has shown. With the method passthrough
// that is the backend, if it came to it.
func (l *auditLine) credentials() string {
	switch {
	case l.Method == "":
		return ""
	case l.Method != "passthrough":
		return with("credentials accepted by %s", l.Method)
	case l.Event == "login_accepted" || l.Upstream == "ok":
		return "credentials accepted by the backend"
	case l.Upstream == "denied":
		return "credentials denied by the backend"
	}
	return "credentials left to the backend"
}

// addEnd is about the end of a connection.
func (l *auditLine) addEnd(p *phrases) {
	p.add(with("reason %s", l.Reason), with(" (%s)", l.Detail))
	p.add(l.times())
	p.add(with("at %s", l.Backend), with(" in mode %s", l.Mode))
	p.add(amount(l.Commands, "command", "%s"))
	p.add(amount(l.In, "byte", "%s in"))
	p.add(amount(l.Out, "byte", "%s out"))
	p.add(with("%s", l.TLS))
	p.add(span(l.Took, "after %s"))
}

// addLimit is about limits and bans.
func (l *auditLine) addLimit(p *phrases) {
	p.add(with("%s", l.Result), with(" by limit %s", l.Limit))
	if l.Event != "ban_removed" { // there it is who did it
		p.add(with("reason %s", l.Reason))
	}
	p.add(l.times())
	p.add(amount(l.Users, "user", "%s tried"), amount(l.Addresses, "address", " from %s"))
	p.add(span(l.Window, "within %s"))
	p.add(with("by %s", l.By))
	if !l.Until.IsZero() && l.Event == "ban_removed" {
		p.add("before its end at ", l.Until.Local().Format(time.DateTime))
	} else if !l.Until.IsZero() {
		p.add("until ", l.Until.Local().Format(time.DateTime))
	}
	p.add(with("note: %s", l.Detail))
}

// addUpstream is about a session's connection to its backend.
func (l *auditLine) addUpstream(p *phrases) {
	did := map[string]string{"upstream_lost": "connection to %s lost", "session_pinned": "kept to its connection to %s"}[l.Event]
	switch {
	case did != "":
	case l.Result == "ok":
		did = "connected to %s again"
	default:
		did = "not connected to %s again"
	}
	p.add(with(did, l.Backend), with(" in %s", l.Mailbox))
	if l.Result != "ok" {
		p.add(with("result %s", l.Result))
	}
	p.add(with("reason %s", l.Reason))
	if l.Result == "ok" {
		p.add(amount(l.Expunged, "message", "%s gone"))
		p.add(amount(l.Arrived, "message", "%s new"))
	}
	p.add(span(l.Took, "after %s"))
}

// addGateway is about the gateway and its operators, and about events of a later release.
func (l *auditLine) addGateway(p *phrases) {
	p.add(with("version %s", l.Version))
	p.add(with("%s ", l.Action), with("%s", l.Result), with(": %s", l.Detail))
	p.add(with("read again: %s", l.Reread))
	p.add(with("reason %s", l.Reason))
	p.add(with("by %s", l.By))
	p.add(amount(l.Present, "record", "%s there"))
	p.add(amount(l.Missing, "record", "%s missing"))
	p.add(amount(l.Lost, "record", "%s could not be kept"))
	p.add(with("behind the hash %s", l.Previous))
	p.add(l.times())
}

// times is how many events a record stands for, when it is more than one.
func (l *auditLine) times() string {
	if l.Count == nil || *l.Count == 1 {
		return ""
	}
	return amount(l.Count, "time", "%s")
}
