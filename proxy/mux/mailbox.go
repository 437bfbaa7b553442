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
	name        string // decoded
	verb        string // SELECT or EXAMINE
	view        view.View
	validity    uint32 // UIDVALIDITY
	uidNext     uint32 // as of the SELECT that the view began with
	id          string // MAILBOXID (RFC 8474)
	access      string // READ-ONLY or READ-WRITE
	flags       line   // FLAGS …
	permanent   line   // OK [PERMANENTFLAGS …
	recent      uint32
	grown       bool          // messages have come since
	tracked     bool          // the backend has answered whether it keeps mod-sequences
	nextTrack   time.Duration // … and may be asked again at that age of the hub
	trackWait   time.Duration // between attempts to ask
	unlearnable bool          // the backend does not say all UIDs
	deferred    bool          // … until it has announced what is gone
	spoiled     bool          // the view is not to be relied on
	modseq      uint64        // every change of flags up to here has been told; 0: not known
	next        uint64        // modseq once a command that tells everything is answered
	since       time.Duration // age of the hub when it was selected
	owes        bool          // flag changes could not be told yet,
	owed        uint64        // … up to here,
	nextPay     time.Duration // … and are asked for again at that age of the hub
	patience    time.Duration // between attempts to tell them
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

// isLearnable says whether it is of use to ask for UIDs now.
func (m *mailbox) isLearnable() bool { return !m.spoiled && !m.unlearnable && !m.deferred }

// line is a response line as it was told, without "* " and with its CRLF.
// The mailboxes of a backend mostly have the same ones, which are held once.
type line struct{ held unique.Handle[string] }

func newLine(text string) line { return line{unique.Make(text)} }

// String is the line, "" while there is none.
func (l line) String() string {
	if l == (line{}) {
		return ""
	}
	return l.held.Value()
}

// keep remembers b, and allocates only when it is new.
func (l *line) keep(b []byte) {
	if l.String() != string(b) {
		*l = newLine(string(b))
	}
}

// and is "FLAGS (…)" with the flags of both.
func (l line) and(other line) line {
	mine := l.words()
	added := false
	for _, flag := range other.words() {
		if !slices.Contains(mine, flag) {
			mine, added = append(mine, flag), true
		}
	}
	if !added {
		return l
	}
	return newLine("FLAGS (" + strings.Join(mine, " ") + ")\r\n")
}

// words are the flags of "FLAGS (…)".
func (l line) words() []string {
	return strings.Fields(strings.Trim(strings.TrimPrefix(l.String(), "FLAGS"), " ()\r\n"))
}

// told is what SELECT or EXAMINE says (RFC 9051 §6.3.2).
type told struct {
	exists, recent uint32
	validity       uint32
	uidNext        uint32
	modseq         uint64
	id             string
	access         string
	flags          line
	permanent      line
	notSticky      bool
	shrunk         bool     // messages have gone since
	fetches        [][]byte // changes of flags that came along
}

// read takes in one untagged response.
func (t *told) read(response []byte) {
	b := response[len("* "):]
	if n, rest, ok := leadingNumber(b); ok {
		switch {
		case imap.HasWord(rest, "EXISTS"):
			t.exists = n
		case imap.HasWord(rest, "RECENT"):
			t.recent = n
		case imap.HasWord(rest, "EXPUNGE"):
			t.shrunk = true
		case imap.HasWord(rest, "FETCH"):
			t.fetches = append(t.fetches, bytes.Clone(response))
		}
		return
	}
	switch {
	case imap.HasWord(b, "VANISHED"):
		t.shrunk = true
	case imap.HasWord(b, "FLAGS"):
		t.flags.keep(b)
	case imap.HasWord(b, "OK"), imap.HasWord(b, "NO"):
		t.code(response)
	}
}

// code takes in "* OK [CODE …] …".
func (t *told) code(response []byte) {
	res, err := imap.ParseResponse(bytes.TrimSuffix(response, []byte("\r\n")))
	if err != nil {
		return
	}
	switch res.Code {
	case "CLOSED": // what came before was of another mailbox (RFC 7162 §3.2.11)
		*t = told{}
	case "PERMANENTFLAGS":
		t.permanent.keep(response[len("* "):])
	case "UIDVALIDITY":
		t.validity = small(res.Arg)
	case "UIDNEXT":
		t.uidNext = small(res.Arg)
	case "HIGHESTMODSEQ":
		t.modseq, _ = strconv.ParseUint(res.Arg, 10, 63) // 0: not known
	case "MAILBOXID":
		t.id = strings.Clone(res.Arg) // or it would keep the whole response
	case "UIDNOTSTICKY":
		t.notSticky = true
	}
}

// done takes in the tagged OK.
func (t *told) done(res imap.Response) {
	for _, access := range [...]string{"READ-ONLY", "READ-WRITE"} {
		if res.Code == access {
			t.access = access // res.Code would keep the whole response
		}
	}
}

func small(s string) uint32 {
	n, _ := strconv.ParseUint(s, 10, 32) // 0: not known
	return uint32(n)
}

// sameUIDs says whether the UIDs must still be those of the view: they only grow
// and are never used twice.
func (t *told) sameUIDs(m *mailbox) bool {
	return t.exists == m.view.Exists() && t.uidNext != 0 && t.uidNext == m.uidNext
}

// newMailbox is what a client knows that has been told t.
func newMailbox(verb, name string, t *told) *mailbox {
	m := &mailbox{
		name: name, verb: verb, validity: t.validity, uidNext: t.uidNext, id: t.id, access: t.access,
		flags: t.flags, permanent: t.permanent, recent: t.recent, modseq: t.modseq,
	}
	m.view.Reset(t.exists)
	m.view.Floor(t.uidNext)
	return m
}

var errName = errors.New("mailbox name has no safe form")

// command is "SELECT name". A name with bytes that cannot be quoted is sent as a
// literal, which needs LITERAL+ (RFC 7888).
func (m *mailbox) command(caps imap.Caps) (string, error) {
	b, err := imap.AppendQuoted([]byte(m.verb+" "), m.name)
	if err == nil {
		return string(b), nil
	}
	if !caps.Has("LITERAL+") && !caps.Has("LITERAL-") || len(m.name) > 4096 || strings.ContainsRune(m.name, 0) {
		return "", errName
	}
	b = imap.AppendLiteral([]byte(m.verb+" "), m.name, imap.Literal{NonSync: true})
	return string(b) + m.name, nil
}
