package command

import (
	"bytes"
	"time"

	"imapgate/internal/imap"
)

// AppendChecker verifies the lines of an APPEND or REPLACE that announce literals. A line
// outside the grammar must not be sent: a server may wait forever for its end, or refuse it and
// take the client's next bytes for the literal.
//
// The grammar is that of RFC 9051 §9 (append), RFC 4469 §5 (CATENATE), RFC 6855 §4 (UTF8), RFC
// 5257 §4.6 (ANNOTATION) and RFC 8508 §4 (REPLACE). Extensions are accepted only if the server
// lists them. Quoted text and flags are not verified; the server refuses them itself.
type AppendChecker struct {
	caps           imap.Caps
	list           listKind // list that contains the last literal; 0: none
	HasNameLiteral bool     // a literal was a mailbox or a URL, which a response may repeat
}

// listKind is a list that can contain a literal.
type listKind uint8

const (
	catenateList listKind = iota + 1
	utf8List
)

// CheckFirstLine resets c for a server with these capabilities and reports whether the
// command's first line may be sent.
func (c *AppendChecker) CheckFirstLine(line []byte, caps imap.Caps) bool {
	*c = AppendChecker{caps: caps}
	h, err := Lookup(line)
	if err != nil {
		return false
	}
	text := trimLiteral(line)
	s := &scanner{input: text, pos: min(h.argsPos, len(text))}
	space := ""
	if h.Spec.argSyntax == replaceArgs {
		if s.next().kind != atomToken {
			return false
		}
		space = " "
	}
	if s.remaining() == space { // the literal is the mailbox
		c.HasNameLiteral = true
		return true
	}
	return s.next().isString() && c.checkMessage(s)
}

// CheckNextLine reports whether the line after a literal may be sent.
func (c *AppendChecker) CheckNextLine(line []byte) bool {
	s := &scanner{input: trimLiteral(line), lastKind: literalToken}
	switch c.list {
	case catenateList:
		s.depth = 1
		return c.checkCatenate(s)
	case utf8List:
		s.depth, c.list = 1, 0
		return s.next().kind == closeParen && c.checkMessage(s)
	}
	return c.checkMessage(s)
}

// trimLiteral returns the line without the literal announcement at its end.
func trimLiteral(line []byte) []byte {
	return bytes.TrimSuffix(line[:max(bytes.LastIndexByte(line, '{'), 0)], []byte("~"))
}

// remaining returns the input not yet scanned.
func (s *scanner) remaining() string { return string(s.input[s.pos:]) }

// checkMessage scans from a mailbox, or from a message, up to the announcement of the next
// message's literal.
func (c *AppendChecker) checkMessage(s *scanner) bool {
	if s.remaining() == " " {
		return true
	}
	t := s.next()
	if t.kind == openParen {
		for t = s.next(); t.kind == atomToken; t = s.next() {
		}
		if t.kind != closeParen || s.remaining() == " " {
			return t.kind == closeParen
		}
		t = s.next()
	}
	if t.kind == quotedToken {
		if s.remaining() == " " {
			return true
		}
		t = s.next()
	}
	return c.checkExtension(t, s)
}

// checkExtension scans append data other than a single literal (RFC 4466 §2.5); t is its name.
func (c *AppendChecker) checkExtension(t token, s *scanner) bool {
	switch {
	case s.next().kind != openParen:
		return false
	case t.isWord("CATENATE") && c.caps.Has("CATENATE"):
		c.list = catenateList
		return c.checkCatenate(s)
	case t.isWord("UTF8") && (c.caps.Has("UTF8=ACCEPT") || c.caps.Has("UTF8=ONLY")):
		c.list = utf8List
		return s.remaining() == ""
	case t.isWord("ANNOTATION") && c.caps.Has("ANNOTATE-EXPERIMENT-1"):
		for s.depth > 0 {
			if t := s.next(); t.kind == errorToken || t.kind == endToken {
				return false
			}
		}
		return s.remaining() == " "
	}
	return false
}

// checkCatenate scans the parts of CATENATE up to the next one that is a literal.
func (c *AppendChecker) checkCatenate(s *scanner) bool {
	for {
		t := s.next()
		atLiteral := s.remaining() == " "
		switch {
		case t.kind == closeParen:
			c.list = 0
			return c.checkMessage(s)
		case t.isWord("TEXT"):
			return atLiteral
		case !t.isWord("URL"):
			return false
		case atLiteral:
			c.HasNameLiteral = true
			return true
		case !s.next().isString():
			return false
		}
	}
}

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
