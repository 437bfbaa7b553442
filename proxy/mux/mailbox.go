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
	"imapgate/proxy/mux/mailbox"
)

// selectedMailbox is the mailbox that a client has selected, as the client knows it.
type selectedMailbox struct {
	name               string // decoded
	verb               string // SELECT or EXAMINE
	view               mailbox.View
	uidValidity        uint32       // UIDVALIDITY
	uidNext            uint32       // as of the SELECT at the start of the view
	mailboxID          string       // MAILBOXID (RFC 8474)
	access             string       // READ-ONLY or READ-WRITE
	flags              responseLine // FLAGS …
	permanentFlags     responseLine // OK [PERMANENTFLAGS …
	recent             uint32
	hasArrivals        bool          // new messages since the SELECT
	modseqRequested    bool          // the backend has answered whether it keeps mod-sequences
	nextModseqRequest  time.Duration // hub uptime of the next attempt to ask
	modseqRequestWait  time.Duration // delay between attempts to ask
	uidsUnavailable    bool          // the backend does not return all UIDs
	uidsDeferred       bool          // the backend has not yet announced all expunges
	desynced           bool          // the view is unreliable
	modseq             uint64        // the client has all flag changes up to here; 0: unknown
	pendingModseq      uint64        // modseq after the next command that permits all responses
	selectedAt         time.Duration // hub uptime at the SELECT
	flagsPending       bool          // flag changes remain to be sent
	flagsPendingModseq uint64        // modseq once they are sent
	nextFlagResync     time.Duration // hub uptime of the next attempt to send them
	flagResyncWait     time.Duration // delay between attempts to send them
}

// isASCII reports whether every connection accepts the name, also one without UTF-8
// enabled (RFC 6855).
func (m *selectedMailbox) isASCII() bool {
	for i := range len(m.name) {
		if m.name[i] >= 0x80 {
			return false
		}
	}
	return true
}

// canFetchUIDs reports whether fetching UIDs is useful now.
func (m *selectedMailbox) canFetchUIDs() bool {
	return !m.desynced && !m.uidsUnavailable && !m.uidsDeferred
}

// responseLine is a response line without "* " and with its CRLF. Equal lines are stored
// once, because most mailboxes of a backend have the same ones.
type responseLine struct{ handle unique.Handle[string] }

func newResponseLine(text string) responseLine { return responseLine{unique.Make(text)} }

// String returns the line, or "" for the zero value.
func (l responseLine) String() string {
	if l == (responseLine{}) {
		return ""
	}
	return l.handle.Value()
}

// set stores b. It allocates only for a new value.
func (l *responseLine) set(b []byte) {
	if l.String() != string(b) {
		*l = newResponseLine(string(b))
	}
}

// union returns "FLAGS (…)" with the flags of both lines.
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

// flagNames returns the flags of "FLAGS (…)".
func (l responseLine) flagNames() []string {
	return strings.Fields(strings.Trim(strings.TrimPrefix(l.String(), "FLAGS"), " ()\r\n"))
}

// selectData is the data of SELECT or EXAMINE (RFC 9051 §6.3.2).
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
	hasExpunges    bool     // messages were expunged since the SELECT began
	fetches        [][]byte // flag changes received during the SELECT
}

// readUntagged reads one untagged response.
func (d *selectData) readUntagged(response []byte) {
	b := response[len("* "):]
	if n, rest, ok := parseLeadingNumber(b); ok {
		switch {
		case imap.HasWordPrefix(rest, "EXISTS"):
			d.exists = n
		case imap.HasWordPrefix(rest, "RECENT"):
			d.recent = n
		case imap.HasWordPrefix(rest, "EXPUNGE"):
			d.hasExpunges = true
		case imap.HasWordPrefix(rest, "FETCH"):
			d.fetches = append(d.fetches, bytes.Clone(response))
		}
		return
	}
	switch {
	case imap.HasWordPrefix(b, "VANISHED"):
		d.hasExpunges = true
	case imap.HasWordPrefix(b, "FLAGS"):
		d.flags.set(b)
	case imap.HasWordPrefix(b, "OK"), imap.HasWordPrefix(b, "NO"):
		d.readCode(response)
	}
}

// readCode reads "* OK [CODE …] …".
func (d *selectData) readCode(response []byte) {
	res, err := imap.ParseResponse(bytes.TrimSuffix(response, []byte("\r\n")))
	if err != nil {
		return
	}
	switch res.Code {
	case "CLOSED": // earlier responses were about another mailbox (RFC 7162 §3.2.11)
		*d = selectData{}
	case "PERMANENTFLAGS":
		d.permanentFlags.set(response[len("* "):])
	case "UIDVALIDITY":
		d.uidValidity = parseUint32(res.Arg)
	case "UIDNEXT":
		d.uidNext = parseUint32(res.Arg)
	case "HIGHESTMODSEQ":
		d.modseq, _ = strconv.ParseUint(res.Arg, 10, 63) // 0: unknown
	case "MAILBOXID":
		d.mailboxID = strings.Clone(res.Arg) // res.Arg would retain the whole response
	case "UIDNOTSTICKY":
		d.uidNotSticky = true
	}
}

// readTagged reads the tagged OK.
func (d *selectData) readTagged(res imap.Response) {
	for _, access := range [...]string{"READ-ONLY", "READ-WRITE"} {
		if res.Code == access {
			d.access = access // res.Code would retain the whole response
		}
	}
}

func parseUint32(s string) uint32 {
	n, _ := strconv.ParseUint(s, 10, 32) // 0: unknown
	return uint32(n)
}

// hasSameUIDs reports whether the UIDs must equal those of the view: UIDs only grow and
// are never reused.
func (d *selectData) hasSameUIDs(m *selectedMailbox) bool {
	return d.exists == m.view.Exists() && d.uidNext != 0 && d.uidNext == m.uidNext
}

// newMailbox returns the mailbox of a client that has received data.
func newMailbox(verb, name string, data *selectData) *selectedMailbox {
	m := &selectedMailbox{
		name: name, verb: verb, uidValidity: data.uidValidity, uidNext: data.uidNext, mailboxID: data.mailboxID, access: data.access,
		flags: data.flags, permanentFlags: data.permanentFlags, recent: data.recent, modseq: data.modseq,
	}
	m.view.Reset(data.exists)
	m.view.SetUIDNext(data.uidNext)
	return m
}

var errMailboxName = errors.New("mailbox name can be neither quoted nor sent as a literal")

// selectCommand returns "SELECT name". A name that cannot be quoted is sent as a literal,
// which requires LITERAL+ or LITERAL- (RFC 7888).
func (m *selectedMailbox) selectCommand(caps imap.Caps) (string, error) {
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
