package command

import (
	"bytes"

	"imapgate/internal/imap"
)

// AppendChecker follows the lines of an APPEND or REPLACE that announce literals. A server
// may wait for ever for the rest of a line that is none of the grammar's, or refuse
// it and take what comes next for the literal: such a line must not be sent to it.
//
// The grammar is that of RFC 9051 §9 (append), RFC 4469 §5 (CATENATE), RFC 6855 §4
// (UTF8), RFC 5257 §4.6 (ANNOTATION) and RFC 8508 §4 (REPLACE), extensions only
// where the server has them; what stands between quotes, and flags, are the server's
// to refuse.
type AppendChecker struct {
	caps           imap.Caps
	list           listKind // of which list the last literal was part; 0: of none
	HasNameLiteral bool     // a literal was a mailbox or a URL, which an answer may repeat
}

// listKind is one that a literal can be part of.
type listKind uint8

const (
	catenateList listKind = iota + 1
	utf8List
)

// CheckFirstLine starts with the first line, for a server with these capabilities. It says
// whether the line may be sent.
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

// CheckNextLine goes on with the line behind a literal. It says whether the line may be sent.
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

// trimLiteral is the line without the literal that it announces.
func trimLiteral(line []byte) []byte {
	return bytes.TrimSuffix(line[:max(bytes.LastIndexByte(line, '{'), 0)], []byte("~"))
}

// remaining is what was not read yet.
func (s *scanner) remaining() string { return string(s.input[s.pos:]) }

// checkMessage reads what stands between a mailbox, or a message, and the next message,
// whose literal is announced.
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

// checkExtension reads the data that is not one literal (RFC 4466 §2.5); t is its name.
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

// checkCatenate reads the parts of CATENATE up to the next one that is a literal.
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
