package mux

import (
	"bytes"
	"errors"
	"slices"
	"strconv"
	"strings"
	"time"
	"unique"

	"imapgate/internal/imap"
	"imapgate/proxy/mux/view"
)

// mailbox is the mailbox that a client has selected, and what it has been told
// of it.
type mailbox struct {
	name               string // decoded
	verb               string // SELECT or EXAMINE
	view               view.View
	uidValidity        uint32       // UIDVALIDITY
	uidNext            uint32       // as of the SELECT that the view began with
	mailboxID          string       // MAILBOXID (RFC 8474)
	access             string       // READ-ONLY or READ-WRITE
	flags              responseLine // FLAGS …
	permanentFlags     responseLine // OK [PERMANENTFLAGS …
	recent             uint32
	hasArrivals        bool          // messages have come since
	modseqRequested    bool          // the backend has answered whether it keeps mod-sequences
	nextModseqRequest  time.Duration // … and may be asked again at that age of the hub
	modseqRequestWait  time.Duration // between attempts to ask
	uidsUnavailable    bool          // the backend does not say all UIDs
	uidsDeferred       bool          // … until it has announced what is gone
	desynced           bool          // the view is not to be relied on
	modseq             uint64        // every change of flags up to here has been told; 0: not known
	pendingModseq      uint64        // modseq once a command that tells everything is answered
	selectedAt         time.Duration // age of the hub when it was selected
	flagsPending       bool          // flag changes could not be told yet,
	flagsPendingModseq uint64        // … up to here,
	nextFlagResync     time.Duration // … and are asked for again at that age of the hub
	flagResyncWait     time.Duration // between attempts to tell them
}

// isASCII says whether any connection takes the name, and not only one on which
// UTF-8 is enabled (RFC 6855).
func (m *mailbox) isASCII() bool {
	for i := range len(m.name) {
		if m.name[i] >= 0x80 {
			return false
		}
	}
	return true
}

// canFetchUIDs says whether it is of use to ask for UIDs now.
func (m *mailbox) canFetchUIDs() bool { return !m.desynced && !m.uidsUnavailable && !m.uidsDeferred }

// responseLine is a response line as it was told, without "* " and with its CRLF.
// The mailboxes of a backend mostly have the same ones, which are held once.
type responseLine struct{ handle unique.Handle[string] }

func newResponseLine(text string) responseLine { return responseLine{unique.Make(text)} }

// String is the line, "" while there is none.
func (l responseLine) String() string {
	if l == (responseLine{}) {
		return ""
	}
	return l.handle.Value()
}

// set remembers b, and allocates only when it is new.
func (l *responseLine) set(b []byte) {
	if l.String() != string(b) {
		*l = newResponseLine(string(b))
	}
}

// union is "FLAGS (…)" with the flags of both.
func (l responseLine) union(other responseLine) responseLine {
	flags := l.flagNames()
	added := false
	for _, flag := range other.flagNames() {
		if !slices.Contains(flags, flag) {
			flags, added = append(flags, flag), true
		}
	}
	if !added {
		return l
	}
	return newResponseLine("FLAGS (" + strings.Join(flags, " ") + ")\r\n")
}

// flagNames are the flags of "FLAGS (…)".
func (l responseLine) flagNames() []string {
	return strings.Fields(strings.Trim(strings.TrimPrefix(l.String(), "FLAGS"), " ()\r\n"))
}

// selectData is what SELECT or EXAMINE says (RFC 9051 §6.3.2).
type selectData struct {
	exists, recent uint32
	uidValidity    uint32
	uidNext        uint32
	modseq         uint64
	mailboxID      string
	access         string
	flags          responseLine
	permanentFlags responseLine
	uidNotSticky   bool
	hasExpunges    bool     // messages have gone since
	fetches        [][]byte // changes of flags that came along
}

// readUntagged takes in one untagged response.
func (t *selectData) readUntagged(response []byte) {
	b := response[len("* "):]
	if n, rest, ok := parseLeadingNumber(b); ok {
		switch {
		case imap.HasWordPrefix(rest, "EXISTS"):
			t.exists = n
		case imap.HasWordPrefix(rest, "RECENT"):
			t.recent = n
		case imap.HasWordPrefix(rest, "EXPUNGE"):
			t.hasExpunges = true
		case imap.HasWordPrefix(rest, "FETCH"):
			t.fetches = append(t.fetches, bytes.Clone(response))
		}
		return
	}
	switch {
	case imap.HasWordPrefix(b, "VANISHED"):
		t.hasExpunges = true
	case imap.HasWordPrefix(b, "FLAGS"):
		t.flags.set(b)
	case imap.HasWordPrefix(b, "OK"), imap.HasWordPrefix(b, "NO"):
		t.readCode(response)
	}
}

// readCode takes in "* OK [CODE …] …".
func (t *selectData) readCode(response []byte) {
	res, err := imap.ParseResponse(bytes.TrimSuffix(response, []byte("\r\n")))
	if err != nil {
		return
	}
	switch res.Code {
	case "CLOSED": // what came before was of another mailbox (RFC 7162 §3.2.11)
		*t = selectData{}
	case "PERMANENTFLAGS":
		t.permanentFlags.set(response[len("* "):])
	case "UIDVALIDITY":
		t.uidValidity = parseUint32(res.Arg)
	case "UIDNEXT":
		t.uidNext = parseUint32(res.Arg)
	case "HIGHESTMODSEQ":
		t.modseq, _ = strconv.ParseUint(res.Arg, 10, 63) // 0: not known
	case "MAILBOXID":
		t.mailboxID = strings.Clone(res.Arg) // or it would keep the whole response
	case "UIDNOTSTICKY":
		t.uidNotSticky = true
	}
}

// readTagged takes in the tagged OK.
func (t *selectData) readTagged(res imap.Response) {
	for _, access := range [...]string{"READ-ONLY", "READ-WRITE"} {
		if res.Code == access {
			t.access = access // res.Code would keep the whole response
		}
	}
}

func parseUint32(s string) uint32 {
	n, _ := strconv.ParseUint(s, 10, 32) // 0: not known
	return uint32(n)
}

// hasSameUIDs says whether the UIDs must still be those of the view: they only grow
// and are never used twice.
func (t *selectData) hasSameUIDs(m *mailbox) bool {
	return t.exists == m.view.Exists() && t.uidNext != 0 && t.uidNext == m.uidNext
}

// newMailbox is what a client knows that has been told t.
func newMailbox(verb, name string, t *selectData) *mailbox {
	m := &mailbox{
		name: name, verb: verb, uidValidity: t.uidValidity, uidNext: t.uidNext, mailboxID: t.mailboxID, access: t.access,
		flags: t.flags, permanentFlags: t.permanentFlags, recent: t.recent, modseq: t.modseq,
	}
	m.view.Reset(t.exists)
	m.view.SetUIDNext(t.uidNext)
	return m
}

var errMailboxName = errors.New("mailbox name has no safe form")

// selectCommand is "SELECT name". A name with bytes that cannot be quoted is sent as a
// literal, which needs LITERAL+ (RFC 7888).
func (m *mailbox) selectCommand(caps imap.Caps) (string, error) {
	b, err := imap.AppendQuoted([]byte(m.verb+" "), m.name)
	if err == nil {
		return string(b), nil
	}
	if !caps.Has("LITERAL+") && !caps.Has("LITERAL-") || len(m.name) > 4096 || strings.ContainsRune(m.name, 0) {
		return "", errMailboxName
	}
	b = imap.AppendLiteral([]byte(m.verb+" "), m.name, imap.Literal{NonSync: true})
	return string(b) + m.name, nil
}
