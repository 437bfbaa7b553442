package mailbox

import (
	"bytes"
	"errors"
	"strings"
	"time"
	"unicode"

	"imapgate/internal/event"
	"imapgate/internal/imap"
)

// Errors of a Mailbox, besides those of its View.
var (
	ErrName          = errors.New("mailbox name can be neither quoted nor sent as a literal")
	ErrChanged       = errors.New("mailbox is another one")
	ErrUIDNotSticky  = errors.New("mailbox does not keep its UIDs")
	errUIDNextShrank = errors.New(string(event.UIDNextShrank))
	errModseqShrank  = errors.New(string(event.ModseqShrank))
)

// Mailbox is the mailbox that a client has selected, as the client knows it.
type Mailbox struct {
	View

	// Set once.
	name       string        // decoded
	SelectedAt time.Duration // set by the caller, on its clock
	isExamined bool          // selected by EXAMINE

	hasArrivals     bool // new messages since the SELECT
	uidsUnavailable bool // the backend does not return all UIDs
	uidsDeferred    bool // the backend has not yet announced all expunges
	desynced        bool // the view is unreliable
	mailboxState         // its mailboxID and uidValidity never change
	flagState
}

// New returns the mailbox of a client that has received data in answer to verb, SELECT or
// EXAMINE.
func New(verb, name string, data *SelectData) *Mailbox {
	m := &Mailbox{
		View: View{exists: data.Exists}, name: name, isExamined: verb == "EXAMINE",
		mailboxState: data.mailboxState, flagState: flagState{modseq: data.Modseq},
	}
	m.setUIDNext(data.uidNext)
	return m
}

// Name returns the decoded name.
func (m *Mailbox) Name() string { return m.name }

// IsReadOnly reports whether closing the mailbox expunges nothing.
func (m *Mailbox) IsReadOnly() bool { return m.isExamined || m.access == "READ-ONLY" }

// isASCII reports whether every connection accepts the name, also one without UTF-8
// enabled (RFC 6855).
func (m *Mailbox) isASCII() bool {
	return !strings.ContainsFunc(m.name, func(r rune) bool { return r > unicode.MaxASCII })
}

// SelectCommand returns the command that selects the mailbox again, without its tag.
func (m *Mailbox) SelectCommand(caps imap.Caps) (string, error) {
	if m.isExamined {
		return m.Command("EXAMINE", caps)
	}
	return m.Command("SELECT", caps)
}

// Command returns "VERB name". A name that cannot be quoted is sent as a literal, which
// requires LITERAL+ or LITERAL- (RFC 7888).
func (m *Mailbox) Command(verb string, caps imap.Caps) (string, error) {
	b, err := imap.AppendQuoted([]byte(verb+" "), m.name)
	if err == nil {
		return string(b), nil
	}
	if !caps.Has("LITERAL+") && !caps.Has("LITERAL-") || len(m.name) > 4096 || strings.ContainsRune(m.name, 0) {
		return "", ErrName
	}
	b = imap.AppendLiteral([]byte(verb+" "), m.name, imap.Literal{NonSync: true})
	return string(b) + m.name, nil
}

// ReadUntagged applies an untagged response that the client is about to receive. seg is
// its first segment.
//
// Errors: ErrChanged, ErrUIDNotSticky, or an error of ViolationOf after which the view may
// be wrong.
func (m *Mailbox) ReadUntagged(seg imap.Segment) error {
	line := seg.Bytes[len("* "):]
	if n, rest, ok := parseLeadingNumber(line); ok {
		return m.readNumbered(n, rest)
	}
	switch {
	case imap.HasWordPrefix(line, "VANISHED"):
		return m.readVanished(seg)
	case imap.HasWordPrefix(line, "FLAGS") && seg.End:
		m.flags.set(line)
	case imap.HasWordPrefix(line, "OK"), imap.HasWordPrefix(line, "NO"), imap.HasWordPrefix(line, "BAD"):
		return m.readCode(line)
	}
	return nil
}

// readNumbered applies "* n …".
func (m *Mailbox) readNumbered(n uint32, rest []byte) error {
	switch {
	case imap.HasWordPrefix(rest, "EXISTS"):
		m.hasArrivals = m.hasArrivals || n > m.Exists()
		return m.setExists(n)
	case imap.HasWordPrefix(rest, "EXPUNGE"):
		m.uidsDeferred = false
		return m.expunge(n)
	case imap.HasWordPrefix(rest, "RECENT"):
		m.recent = n
	case imap.HasWordPrefix(rest, "FETCH") && m.UnknownCount() > 0 && n == m.KnownCount()+1:
		if uid, ok := findUID(rest); ok {
			m.addUID(n, uid)
		}
	}
	return nil
}

// readVanished applies "* VANISHED …" (RFC 7162 §3.2.10).
func (m *Mailbox) readVanished(seg imap.Segment) error {
	set := bytes.TrimSuffix(seg.Bytes[len("* VANISHED "):], []byte("\r\n"))
	if len(set) > 0 && set[0] == '(' {
		return nil // EARLIER names no message of the view
	}
	if !seg.End {
		return ErrRange // longer than the longest buffered line
	}
	m.uidsDeferred = false
	_, err := m.vanish(set)
	return err
}

// readCode applies the response code of "* OK [CODE …] …".
func (m *Mailbox) readCode(line []byte) error {
	_, code, ok := bytes.Cut(line, []byte(" "))
	if !ok || len(code) == 0 || code[0] != '[' {
		return nil
	}
	code = code[1:]
	switch {
	case imap.HasWordPrefix(code, "UIDVALIDITY"):
		if n, _, ok := parseLeadingNumber(bytes.TrimLeft(code[len("UIDVALIDITY"):], " ")); ok && n != m.uidValidity {
			return ErrChanged
		}
	case imap.HasWordPrefix(code, "UIDNOTSTICKY"):
		return ErrUIDNotSticky
	case imap.HasWordPrefix(code, "PERMANENTFLAGS"):
		m.permanentFlags.set(line)
	case imap.HasWordPrefix(code, "READ-ONLY"), imap.HasWordPrefix(code, "READ-WRITE"):
		if word, _, ok := bytes.Cut(code, []byte("]")); ok {
			m.access = strings.ToUpper(string(word))
		}
	}
	return nil
}

// ViolationOf returns which rule of IMAP a backend violated that caused err, an error of
// a View or of a Mailbox.
func ViolationOf(err error) event.Violation {
	switch {
	case errors.Is(err, ErrExistsDecreased):
		return event.ExistsShrank
	case errors.Is(err, ErrUIDMismatch):
		return event.CountMismatch
	case errors.Is(err, ErrInconsistent):
		return event.UIDUnknown
	case errors.Is(err, errUIDNextShrank):
		return event.UIDNextShrank
	case errors.Is(err, errModseqShrank):
		return event.ModseqShrank
	}
	return event.ExpungeRange
}

// IsDesynced reports whether the view is unreliable.
func (m *Mailbox) IsDesynced() bool { return m.desynced }

// Desync marks the view as unreliable, until the client selects again.
func (m *Mailbox) Desync() { m.desynced = true }

// AreUIDsDeferred reports whether the backend has omitted UIDs, because it has expunges
// to announce.
func (m *Mailbox) AreUIDsDeferred() bool { return m.uidsDeferred }

// AllowUIDs ends the deferral: the backend could announce all expunges.
func (m *Mailbox) AllowUIDs() { m.uidsDeferred = false }

// HasUnknownArrivals reports whether messages without a known UID have arrived since the
// SELECT.
func (m *Mailbox) HasUnknownArrivals() bool { return m.hasArrivals && m.UnknownCount() > 0 }

// UnknownRange returns the numbers of the messages whose UIDs are to be queried. It
// returns false if there are none, or the backend would not return them now.
func (m *Mailbox) UnknownRange() (first, last uint32, ok bool) {
	ok = m.UnknownCount() > 0 && !m.desynced && !m.uidsUnavailable && !m.uidsDeferred
	return m.KnownCount() + 1, m.Exists(), ok
}

// LearnUIDs records the UIDs of the messages first to last, as returned by a query with
// the answer res. If the backend omits some because messages are gone, the rest waits
// until it has announced that. LearnUIDs returns ErrUIDMismatch if the UIDs cannot be
// those of the view.
func (m *Mailbox) LearnUIDs(first, last uint32, uids *UIDSet, res imap.Response) error {
	switch count := last - first + 1; {
	case res.Name != "OK", res.Code == "MESSAGELIMIT":
		m.uidsUnavailable = true
	case uids.Len() < count:
		m.uidsDeferred = true
	case uids.Len() > count:
		return ErrUIDMismatch
	default:
		return m.addUIDs(first, uids)
	}
	return nil
}
