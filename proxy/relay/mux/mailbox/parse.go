package mailbox

import (
	"bytes"
	"strconv"

	"imapgate/internal/imap"
)

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

func parseUint32(s string) uint32 {
	n, _ := strconv.ParseUint(s, 10, 32) // 0: unknown
	return uint32(n)
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
