package mailbox

import (
	"bytes"
	"strconv"
	"strings"

	"imapgate/internal/imap"
)

// SelectData is the data of SELECT or EXAMINE (RFC 9051 §6.3.2).
type SelectData struct {
	Exists         uint32
	Modseq         uint64 // HIGHESTMODSEQ; 0: unknown
	UIDNotSticky   bool
	HasExpunges    bool     // messages were expunged since the SELECT began
	Fetches        [][]byte // flag changes received during the SELECT
	recent         uint32
	uidValidity    uint32
	uidNext        uint32
	mailboxID      string
	access         string
	flags          responseLine
	permanentFlags responseLine
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
	switch res.Code {
	case "CLOSED": // earlier responses were about another mailbox (RFC 7162 §3.2.11)
		*d = SelectData{}
	case "PERMANENTFLAGS":
		d.permanentFlags.set(response[len("* "):])
	case "UIDVALIDITY":
		d.uidValidity = parseUint32(res.Arg)
	case "UIDNEXT":
		d.uidNext = parseUint32(res.Arg)
	case "HIGHESTMODSEQ":
		d.Modseq, _ = strconv.ParseUint(res.Arg, 10, 63) // 0: unknown
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
