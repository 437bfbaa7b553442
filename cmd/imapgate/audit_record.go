package main

import (
	"os"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/term"

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
	event := padColumn(strings.ReplaceAll(l.Event, "_", " "), 18)
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
	case "limit_hit", "ban_added", "spray_suspected", "routes_emptied", "records_lost", "upstream_lost":
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
