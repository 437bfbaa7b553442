package command

import (
	"bytes"
	"time"
)

// Bounds of what PlainAppend believes of a server.
const (
	maxPlainName    = 200 // bytes of a mailbox
	maxPlainKeyword = 50  // bytes
	maxPlainFlags   = 16
)

// PlainAppend says whether the first line of APPEND, with its CRLF, is one that no
// server refuses before it has read the message that the line announces: all of it
// is of RFC 3501's grammar, and none of it at the edges. It may say no to a line that
// a server accepts.
func PlainAppend(line []byte) bool {
	h, err := Lookup(line)
	announced := bytes.LastIndexByte(h.Args, '{')
	if err != nil || h.Spec.args != appendArgs || announced < 1 || h.Args[announced-1] != ' ' {
		return false
	}
	s := scanner{b: h.Args[:announced-1]}
	if !plainMailbox(s.next()) {
		return false
	}
	t := s.next()
	if t.kind == open {
		if !plainFlags(&s) {
			return false
		}
		t = s.next()
	}
	if t.kind == quoted {
		if !plainDate(string(t.text)) {
			return false
		}
		t = s.next()
	}
	return t.kind == end
}

// plainDate says whether text is a date-time (RFC 3501 §9) to the letter: time.Parse
// takes more spaces, fractions of seconds, and months in any case.
func plainDate(text string) bool {
	const layout = "_2-Jan-2006 15:04:05 -0700"
	at, err := time.Parse(layout, text)
	if err != nil || at.Year() < 1970 || at.Year() > 2037 || at.Format(layout) != text {
		return false
	}
	_, east := at.Zone()
	return -12*3600 <= east && east <= 14*3600
}

func plainMailbox(t token) bool {
	if t.kind != atom && t.kind != quoted || len(t.text) == 0 || len(t.text) > maxPlainName || t.is("NIL") {
		return false
	}
	for _, c := range t.text {
		if !plainChar(c) && (c != ' ' || t.kind != quoted) && c != '/' {
			return false
		}
	}
	return true
}

// plainFlags reads flags up to the parenthesis that closes their list.
func plainFlags(s *scanner) bool {
	for range maxPlainFlags {
		t := s.next()
		if t.kind == shut {
			return true
		}
		if t.kind != atom || !plainFlag(t) {
			return false
		}
	}
	return false
}

func plainFlag(t token) bool {
	for _, system := range [...]string{`\SEEN`, `\ANSWERED`, `\FLAGGED`, `\DELETED`, `\DRAFT`} {
		if t.is(system) {
			return true
		}
	}
	for _, c := range t.text {
		if !plainChar(c) {
			return false
		}
	}
	return len(t.text) <= maxPlainKeyword
}

// plainChar is a character that needs no quotes anywhere, and that no server gives a
// meaning of its own.
func plainChar(c byte) bool {
	switch {
	case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		return true
	}
	return c == '$' || c == '_' || c == '-' || c == '.'
}
