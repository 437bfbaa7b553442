package mailbox

import (
	"bytes"
	"math"
	"slices"
	"strconv"
	"strings"
	"unique"

	"imapgate/internal/imap"
)

// SelectData is the data of SELECT or EXAMINE (RFC 9051 §6.3.2).
type SelectData struct {
	Exists       uint32
	Modseq       uint64 // HIGHESTMODSEQ; 0: unknown
	UIDNotSticky bool
	HasExpunges  bool     // messages were expunged since the SELECT began
	Fetches      [][]byte // flag changes received during the SELECT
	mailboxState
}

// mailboxState is what SELECT returns of a mailbox, besides its messages.
type mailboxState struct {
	mailboxID      string // MAILBOXID (RFC 8474)
	uidValidity    uint32
	uidNext        uint32 // as of the SELECT
	recent         uint32
	access         string       // READ-ONLY or READ-WRITE
	flags          responseLine // FLAGS …
	permanentFlags responseLine // OK [PERMANENTFLAGS …
}

// ReadUntagged reads one untagged response.
func (d *SelectData) ReadUntagged(response []byte) {
	b := response[len("* "):]
	if n, rest, ok := parseLeadingNumber(b); ok {
		switch {
		case imap.HasWordPrefix(rest, "EXISTS"):
			d.Exists = n
		case imap.HasWordPrefix(rest, "RECENT"):
			d.recent = n
		case imap.HasWordPrefix(rest, "EXPUNGE"):
			d.HasExpunges = true
		case imap.HasWordPrefix(rest, "FETCH"):
			d.Fetches = append(d.Fetches, bytes.Clone(response))
		}
		return
	}
	switch {
	case imap.HasWordPrefix(b, "VANISHED"):
		d.HasExpunges = true
	case imap.HasWordPrefix(b, "FLAGS"):
		d.flags.set(b)
	case imap.HasWordPrefix(b, "OK"), imap.HasWordPrefix(b, "NO"):
		d.readCode(response)
	}
}

// readCode reads "* OK [CODE …] …".
func (d *SelectData) readCode(response []byte) {
	res, err := imap.ParseResponse(bytes.TrimSuffix(response, []byte("\r\n")))
	if err != nil {
		return
	}
	n, _ := strconv.ParseUint(res.Arg, 10, 63) // 0: unknown
	switch res.Code {
	case "CLOSED": // earlier responses were about another mailbox (RFC 7162 §3.2.11)
		*d = SelectData{}
	case "PERMANENTFLAGS":
		d.permanentFlags.set(response[len("* "):])
	case "UIDVALIDITY":
		d.uidValidity = uint32(min(n, math.MaxUint32))
	case "UIDNEXT":
		d.uidNext = uint32(min(n, math.MaxUint32))
	case "HIGHESTMODSEQ":
		d.Modseq = n
	case "MAILBOXID":
		d.mailboxID = strings.Clone(res.Arg) // res.Arg would retain the whole response
	case "UIDNOTSTICKY":
		d.UIDNotSticky = true
	}
}

// ReadTagged reads the tagged OK.
func (d *SelectData) ReadTagged(res imap.Response) {
	for _, access := range [...]string{"READ-ONLY", "READ-WRITE"} {
		if res.Code == access {
			d.access = access // res.Code would retain the whole response
		}
	}
}

// ReadFlags reads an untagged FLAGS response that comes after the SELECT.
func (d *SelectData) ReadFlags(response []byte) {
	if b := response[len("* "):]; imap.HasWordPrefix(b, "FLAGS") {
		d.flags.set(b)
	}
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

// parseLeadingNumber parses a number at the start of b and skips one space after it.
func parseLeadingNumber(b []byte) (n uint32, rest []byte, ok bool) {
	i := 0
	for ; i < len(b) && b[i] >= '0' && b[i] <= '9'; i++ {
		if n > (1<<32-1-9)/10 {
			return 0, nil, false
		}
		n = n*10 + uint32(b[i]-'0')
	}
	if i == 0 || i == len(b) {
		return 0, nil, false
	}
	if b[i] == ' ' {
		return n, b[i+1:], true
	}
	return n, b[i:], true
}

// findUID finds "UID u" in "FETCH (…", before any string and outside nested lists: a
// keyword may be called UID.
func findUID(line []byte) (uint32, bool) {
	depth := 0
	for i, c := range line {
		switch {
		case c == '"', c == '{':
			return 0, false
		case c == '(':
			depth++
		case c == ')':
			depth--
		case depth == 1 && c == 'U' && (line[i-1] == ' ' || line[i-1] == '(') && imap.HasWordPrefix(line[i:], "UID"):
			uid, _, ok := parseLeadingNumber(line[min(i+len("UID "), len(line)):])
			return uid, ok
		}
	}
	return 0, false
}

// AddFetch adds the UID of a FETCH response for one of the messages first to last. It
// reports whether the response contains nothing but a UID.
func (u *UIDSet) AddFetch(response []byte, first, last uint32) (uidOnly bool) {
	n, rest, ok := parseLeadingNumber(response[len("* "):])
	if !ok || !imap.HasWordPrefix(rest, "FETCH") {
		return false
	}
	uid, ok := findUID(rest)
	if uid > 0 && first <= n && n <= last {
		u.Add(uid)
	}
	return ok && bytes.Count(rest, []byte(" ")) == 2 // "FETCH (UID 7)"
}

// AddSearch adds the UIDs of a SEARCH or ESEARCH response, and reports whether response is
// one.
func (u *UIDSet) AddSearch(response []byte) (bool, error) {
	b := bytes.TrimSuffix(response[len("* "):], []byte("\r\n"))
	switch {
	case imap.HasWordPrefix(b, "SEARCH"):
		for field := range bytes.FieldsSeq(b[len("SEARCH"):]) {
			if field[0] == '(' {
				break // (MODSEQ n)
			}
			if err := u.AddText(field); err != nil {
				return true, err
			}
		}
		return true, nil
	case imap.HasWordPrefix(b, "ESEARCH"):
		i := bytes.Index(b, []byte(" ALL "))
		if i < 0 {
			return true, nil // no message
		}
		set, _, _ := bytes.Cut(b[i+len(" ALL "):], []byte(" "))
		return true, u.AddText(set)
	}
	return false, nil
}

// ParseHighestModseq returns the HIGHESTMODSEQ of a STATUS or SELECT response; 0 for none.
func ParseHighestModseq(response []byte) uint64 {
	i := bytes.LastIndex(response, []byte("HIGHESTMODSEQ "))
	if i < 0 {
		return 0
	}
	b := response[i+len("HIGHESTMODSEQ "):]
	digits := b[:len(b)-len(bytes.TrimLeft(b, "0123456789"))]
	n, _ := strconv.ParseUint(string(digits), 10, 63) // 0: unknown
	return n
}
