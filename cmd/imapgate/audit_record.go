package main

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/term"

	"imapgate/internal/duration"
	"imapgate/internal/sanitize"
)

// auditRecord is a decoded record of the audit log. docs/AUDIT.md documents its
// fields.
type auditRecord struct {
	Time          time.Time `json:"time"`
	Event         string    `json:"event"`
	Session       string    `json:"session"`
	User          string    `json:"user"`
	ClaimedName   string    `json:"claimed"`
	Peer          string    `json:"peer"`
	Client        string    `json:"client"`
	Subject       string    `json:"subject"`
	TLS           string    `json:"tls"`
	Backend       string    `json:"backend"`
	RouteSource   string    `json:"route"`
	Method        string    `json:"method"`
	ConnectResult string    `json:"upstream"`
	Limit         string    `json:"limit"`
	Action        string    `json:"action"`
	Operator      string    `json:"by"`
	Command       string    `json:"command"`
	Mailbox       string    `json:"mailbox"`
	Destination   string    `json:"to"`
	Result        string    `json:"result"`
	Reason        string    `json:"reason"`
	Code          string    `json:"code"`
	Detail        string    `json:"detail"`
	Reread        string    `json:"reread"`
	Version       string    `json:"version"`
	Mode          string    `json:"mode"`
	UpstreamUser  string    `json:"upstream_user"`
	Previous      string    `json:"previous"`
	Address       string    `json:"address"`
	State         string    `json:"state"`
	Was           string    `json:"was"`
	Until         time.Time `json:"until"`

	Mechanism    string  `json:"mechanism"`
	Count        *uint64 `json:"count"`
	Users        *uint64 `json:"users"`
	Addresses    *uint64 `json:"addresses"`
	Window       *uint64 `json:"window_ms"`
	Attempt      *uint64 `json:"attempt"`
	Messages     *uint64 `json:"messages"`
	LiteralBytes *uint64 `json:"literal_bytes"`
	Commands     *uint64 `json:"commands"`
	BytesIn      *uint64 `json:"bytes_in"`
	BytesOut     *uint64 `json:"bytes_out"`
	Expunged     *uint64 `json:"expunged"`
	Arrived      *uint64 `json:"arrived"`
	Lost         *uint64 `json:"lost"`
	Present      *uint64 `json:"present"`
	Missing      *uint64 `json:"missing"`
	RouteAge     *uint64 `json:"route_age_ms"`
	Delay        *uint64 `json:"delay_ms"`
	ConnectTime  *uint64 `json:"upstream_ms"`
	Duration     *uint64 `json:"duration_ms"`
}

// address returns the client's own address if a trusted proxy named it, else the
// peer's.
func (a *auditRecord) address() string {
	if a.Client != "" {
		return a.Client
	}
	return a.Peer
}

// subjectName returns the user, or the subject of an event without one.
func (a *auditRecord) subjectName() string {
	if a.User != "" || a.ClaimedName != "" {
		return a.User + a.ClaimedName
	}
	return a.Subject
}

// recordFormat formats records in columns, on terminals with colours.
type recordFormat struct {
	timeLayout string // layout of the time
	useColour  bool
}

// supportsColour reports whether to is a terminal and colours are not disabled
// (no-color.org).
func supportsColour(to any) bool {
	f, ok := to.(*os.File)
	return ok && term.IsTerminal(int(f.Fd())) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
}

// Colours of terminals. Constant.
const (
	dim         = "\x1b[2m"
	red         = "\x1b[31m"
	green       = "\x1b[32m"
	yellow      = "\x1b[33m"
	cyan        = "\x1b[36m"
	resetColour = "\x1b[0m"
)

// format returns a record as one line of text.
func (r recordFormat) format(l *auditRecord) string {
	event := strings.ReplaceAll(l.Event, "_", " ")
	if l.Event == "connection_refused" && strings.HasPrefix(l.Reason, "client_") { // by the client itself
		event = "left without login"
	}
	event = padColumn(event, 18)
	s := r.colourize(dim, l.Time.Local().Format(r.timeLayout)) + "  " + r.colourize(l.eventColour(), event) +
		"  " + padColumn(l.subjectName(), 22) + "  " + r.colourize(dim, padColumn(l.address(), 21)) + "  " + l.description()
	return strings.TrimRight(s, " ")
}

func (r recordFormat) colourize(colour, text string) string {
	if !r.useColour || colour == "" {
		return text
	}
	return colour + text + resetColour
}

// padColumn pads text to a width; longer text is unchanged.
func padColumn(text string, width int) string {
	text = sanitize.Quote(text)
	return text + strings.Repeat(" ", max(0, width-utf8.RuneCountInString(text)))
}

// eventColour returns green for success, red for a refusal, yellow for what needs an
// operator's attention.
func (a *auditRecord) eventColour() string {
	switch a.Event {
	case "address_state", "limit_hit", "ban_added", "spray_suspected", "routes_emptied", "records_lost", "upstream_lost":
		return yellow
	case "started", "stopped", "operator_action", "ban_removed", "routes_restored", "log_opened":
		return cyan
	}
	switch a.Result {
	case "accepted", "ok":
		return green
	case "":
		return ""
	case "unavailable":
		return yellow
	}
	return red
}

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
	return fmt.Sprintf(format, sanitize.Quote(value))
}

// formatCount formats a number of things; "" if it is unknown.
func formatCount(n *uint64, thing, format string) string {
	if n == nil {
		return ""
	}
	return fmt.Sprintf(format, pluralize(*n, thing))
}

// formatDuration formats a number of milliseconds; "" if it is unknown.
func formatDuration(ms *uint64, format string) string {
	if ms == nil {
		return ""
	}
	return fmt.Sprintf(format, duration.Format(time.Duration(*ms)*time.Millisecond))
}

// description returns the part of the record after the columns of time, event,
// subject and address, in words. Values of closed sets are those of docs/AUDIT.md.
func (a *auditRecord) description() string {
	var p phrases
	switch a.Event {
	case "login_accepted", "login_refused":
		a.addLogin(&p)
	case "session_ended", "connection_refused":
		a.addEnd(&p)
	case "limit_hit", "ban_added", "ban_removed", "spray_suspected":
		a.addLimit(&p)
	case "address_state":
		p.add(formatText("%s", a.Address), formatText(" of %s", a.Backend), formatText(" is %s", a.State))
		p.add(formatText("was %s", a.Was))
		p.add(formatText("%s", a.Detail))
	case "command":
		p.add(formatText("%s", a.Command), formatText(" in %s", a.Mailbox), formatText(" to %s", a.Destination), formatText(": %s", a.Result), formatText(" [%s]", a.Code))
		p.add(formatText("at %s", a.Backend))
		p.add(formatCount(a.Messages, "message", "%s"))
		p.add(formatCount(a.LiteralBytes, "byte", "%s of literals"))
		p.add(formatDuration(a.Duration, "took %s"))
	case "session_attached", "upstream_lost", "session_pinned":
		a.addUpstream(&p)
	default:
		a.addGateway(&p)
	}
	return p.String()
}

// addLogin describes a login attempt.
func (a *auditRecord) addLogin(p *phrases) {
	if a.Event == "login_refused" {
		p.add(formatText("reason %s", a.Reason))
	}
	p.add(a.repeatCount())
	p.add(formatText("at %s", a.Backend), formatText(" as %s", a.UpstreamUser))
	p.add(formatText("by %s", a.Mechanism))
	p.add(a.credentials())
	if a.ConnectResult != "ok" {
		p.add(formatText("login at the backend: %s", a.ConnectResult), formatDuration(a.ConnectTime, " after %s"))
	}
	p.add(formatText("route from %s", a.RouteSource), formatDuration(a.RouteAge, " (%s old)"))
	p.add(formatText("%s", a.TLS))
	p.add(formatDuration(a.Duration, "took %s"))
	p.add(formatDuration(a.Delay, "%s of it deliberate delay"))
}

// credentials describes who verified the client's credentials. With the method
// passthrough that is the backend, if the login got that far.
func (a *auditRecord) credentials() string {
	switch {
	case a.Method == "":
		return ""
	case a.Method != "passthrough":
		return formatText("credentials accepted by %s", a.Method)
	case a.Event == "login_accepted" || a.ConnectResult == "ok":
		return "credentials accepted by the backend"
	case a.ConnectResult == "denied":
		return "credentials denied by the backend"
	case slices.Contains([]string{"", "unreachable", "tls", "down", "busy", "loop"}, a.ConnectResult): // before the login there
		return "credentials not checked"
	}
	return "credentials left to the backend"
}

// addEnd describes the end of a connection.
func (a *auditRecord) addEnd(p *phrases) {
	p.add(formatText("reason %s", a.Reason), formatText(" (%s)", a.Detail))
	p.add(a.repeatCount())
	p.add(formatText("at %s", a.Backend), formatText(" in mode %s", a.Mode))
	p.add(formatCount(a.Commands, "command", "%s"))
	p.add(formatCount(a.BytesIn, "byte", "%s in"))
	p.add(formatCount(a.BytesOut, "byte", "%s out"))
	p.add(formatText("%s", a.TLS))
	p.add(formatDuration(a.Duration, "after %s"))
}

// addLimit describes a limit or a ban.
func (a *auditRecord) addLimit(p *phrases) {
	if a.Limit == "banned" {
		p.add(formatText("%s by ban", a.Result))
	} else {
		p.add(formatText("%s", a.Result), formatText(" by limit %s", a.Limit))
	}
	if a.Event != "ban_removed" && (a.Reason != "operator" || a.Operator == "") { // "by" has the operator
		p.add(formatText("reason %s", a.Reason))
	}
	p.add(a.repeatCount())
	p.add(formatCount(a.Users, "user", "%s tried"), formatCount(a.Addresses, "address", " from %s"))
	p.add(formatDuration(a.Window, "within %s"))
	p.add(formatText("by %s", a.Operator))
	if !a.Until.IsZero() && a.Event == "ban_removed" {
		p.add("before its end at ", a.Until.Local().Format(time.DateTime))
	} else if !a.Until.IsZero() {
		p.add("until ", a.Until.Local().Format(time.DateTime))
	}
	p.add(formatText("note: %s", a.Detail))
}

// addUpstream describes an event of a session's connection to its backend.
func (a *auditRecord) addUpstream(p *phrases) {
	format := map[string]string{"upstream_lost": "connection to %s lost", "session_pinned": "pinned to its connection to %s"}[a.Event]
	switch {
	case format != "":
	case a.Result == "ok":
		format = "reattached to %s"
	default:
		format = "not reattached to %s"
	}
	p.add(formatText(format, a.Backend), formatText(" in %s", a.Mailbox))
	if a.Result != "ok" {
		p.add(formatText("result %s", a.Result))
	}
	p.add(formatText("reason %s", a.Reason))
	if a.Result == "ok" {
		p.add(formatCount(a.Expunged, "message", "%s expunged"))
		p.add(formatCount(a.Arrived, "message", "%s new"))
	}
	p.add(formatDuration(a.Duration, "after %s"))
}

// addGateway describes an event of the gateway or its operators, or an unknown event
// of a later release.
func (a *auditRecord) addGateway(p *phrases) {
	p.add(formatText("version %s", a.Version))
	p.add(formatText("%s ", a.Action), formatText("%s", a.Result), formatText(": %s", a.Detail))
	p.add(formatText("reloaded: %s", a.Reread))
	p.add(formatText("reason %s", a.Reason))
	p.add(formatText("by %s", a.Operator))
	p.add(formatCount(a.Present, "record", "%s present"))
	p.add(formatCount(a.Missing, "record", "%s missing"))
	p.add(formatCount(a.Lost, "record", "%s lost"))
	p.add(formatText("after the hash %s", a.Previous))
	p.add(a.repeatCount())
}

// repeatCount returns the number of events that the record stands for, if it is more
// than one.
func (a *auditRecord) repeatCount() string {
	if a.Count == nil || *a.Count == 1 {
		return ""
	}
	return formatCount(a.Count, "time", "%s")
}
