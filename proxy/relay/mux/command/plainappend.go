package command

import (
	"bytes"
	"time"
)

// Bounds within which IsPlainAppend expects every server to accept an argument.
const (
	maxPlainMailbox = 200 // bytes of a mailbox
	maxPlainKeyword = 50  // bytes
	maxPlainFlags   = 16
)

// IsPlainAppend reports whether every server accepts this first line of APPEND (with CRLF), and
// so reads the message that it announces. Such a line follows RFC 3501's grammar and stays well
// inside its bounds. The result may be false for a line that servers accept.
func IsPlainAppend(line []byte) bool {
	head, err := Lookup(line)
	bracePos := bytes.LastIndexByte(head.Args, '{')
	if err != nil || head.Spec.argSyntax != appendArgs || bracePos < 1 || head.Args[bracePos-1] != ' ' {
		return false
	}
	s := scanner{input: head.Args[:bracePos-1]}
	if !isPlainMailbox(s.next()) {
		return false
	}
	t := s.next()
	if t.kind == openParen {
		if !scanPlainFlags(&s) {
			return false
		}
		t = s.next()
	}
	if t.kind == quotedToken {
		if !isPlainDate(string(t.text)) {
			return false
		}
		t = s.next()
	}
	return t.kind == endToken
}

// isPlainDate reports whether text is exactly a date-time (RFC 3501 §9). time.Parse alone also
// accepts extra spaces, fractions of seconds, and months in any case.
func isPlainDate(text string) bool {
	const layout = "_2-Jan-2006 15:04:05 -0700"
	date, err := time.Parse(layout, text)
	if err != nil || date.Year() < 1970 || date.Year() > 2037 || date.Format(layout) != text {
		return false
	}
	_, offset := date.Zone()
	return -12*3600 <= offset && offset <= 14*3600
}

func isPlainMailbox(t token) bool {
	if t.kind != atomToken && t.kind != quotedToken || len(t.text) == 0 || len(t.text) > maxPlainMailbox || t.isWord("NIL") {
		return false
	}
	for _, c := range t.text {
		if !isPlainChar(c) && (c != ' ' || t.kind != quotedToken) && c != '/' {
			return false
		}
	}
	return true
}

// scanPlainFlags scans flags up to the closing parenthesis.
func scanPlainFlags(s *scanner) bool {
	for range maxPlainFlags {
		t := s.next()
		if t.kind == closeParen {
			return true
		}
		if t.kind != atomToken || !isPlainFlag(t) {
			return false
		}
	}
	return false
}

func isPlainFlag(t token) bool {
	for _, system := range [...]string{`\SEEN`, `\ANSWERED`, `\FLAGGED`, `\DELETED`, `\DRAFT`} {
		if t.isWord(system) {
			return true
		}
	}
	for _, c := range t.text {
		if !isPlainChar(c) {
			return false
		}
	}
	return len(t.text) <= maxPlainKeyword
}

// isPlainChar reports whether c needs no quotes anywhere and has no special meaning to any
// server.
func isPlainChar(c byte) bool {
	switch {
	case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		return true
	}
	return c == '$' || c == '_' || c == '-' || c == '.'
}
