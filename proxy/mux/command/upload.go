package command

import (
	"bytes"

	"imapgate/internal/imap"
)

// Upload follows the lines of an APPEND or REPLACE that announce literals. A server
// may wait for ever for the rest of a line that is none of the grammar's, or refuse
// it and take what comes next for the literal: such a line must not be sent to it.
//
// The grammar is that of RFC 9051 §9 (append), RFC 4469 §5 (CATENATE), RFC 6855 §4
// (UTF8), RFC 5257 §4.6 (ANNOTATION) and RFC 8508 §4 (REPLACE), extensions only
// where the server has them; what stands between quotes, and flags, are the server's
// to refuse.
type Upload struct {
	caps   imap.Caps
	within list // of which list the last literal was part; 0: of none
	Names  bool // a literal was a mailbox or a URL, which an answer may repeat
}

// list is one that a literal can be part of.
type list uint8

const (
	inCatenate list = iota + 1
	inUTF8
)

// Begin starts with the first line, for a server with these capabilities. It says
// whether the line may be sent.
func (u *Upload) Begin(line []byte, caps imap.Caps) bool {
	*u = Upload{caps: caps}
	h, err := Lookup(line)
	if err != nil {
		return false
	}
	text := beforeLiteral(line)
	s := &scanner{b: text, at: min(h.args, len(text))}
	space := ""
	if h.Spec.args == replaceArgs {
		if s.next().kind != atom {
			return false
		}
		space = " "
	}
	if s.rest() == space { // the literal is the mailbox
		u.Names = true
		return true
	}
	return s.next().isString() && u.message(s)
}

// Next goes on with the line behind a literal. It says whether the line may be sent.
func (u *Upload) Next(line []byte) bool {
	s := &scanner{b: beforeLiteral(line), last: literal}
	switch u.within {
	case inCatenate:
		s.depth = 1
		return u.catenate(s)
	case inUTF8:
		s.depth, u.within = 1, 0
		return s.next().kind == shut && u.message(s)
	}
	return u.message(s)
}

// beforeLiteral is the line without the literal that it announces.
func beforeLiteral(line []byte) []byte {
	return bytes.TrimSuffix(line[:max(bytes.LastIndexByte(line, '{'), 0)], []byte("~"))
}

// rest is what was not read yet.
func (s *scanner) rest() string { return string(s.b[s.at:]) }

// message reads what stands between a mailbox, or a message, and the next message,
// whose literal is announced.
func (u *Upload) message(s *scanner) bool {
	if s.rest() == " " {
		return true
	}
	t := s.next()
	if t.kind == open {
		for t = s.next(); t.kind == atom; t = s.next() {
		}
		if t.kind != shut || s.rest() == " " {
			return t.kind == shut
		}
		t = s.next()
	}
	if t.kind == quoted {
		if s.rest() == " " {
			return true
		}
		t = s.next()
	}
	return u.extension(t, s)
}

// extension reads the data that is not one literal (RFC 4466 §2.5); t is its name.
func (u *Upload) extension(t token, s *scanner) bool {
	switch {
	case s.next().kind != open:
		return false
	case t.is("CATENATE") && u.caps.Has("CATENATE"):
		u.within = inCatenate
		return u.catenate(s)
	case t.is("UTF8") && (u.caps.Has("UTF8=ACCEPT") || u.caps.Has("UTF8=ONLY")):
		u.within = inUTF8
		return s.rest() == ""
	case t.is("ANNOTATION") && u.caps.Has("ANNOTATE-EXPERIMENT-1"):
		for s.depth > 0 {
			if t := s.next(); t.kind == fault || t.kind == end {
				return false
			}
		}
		return s.rest() == " "
	}
	return false
}

// catenate reads the parts of CATENATE up to the next one that is a literal.
func (u *Upload) catenate(s *scanner) bool {
	for {
		t := s.next()
		ends := s.rest() == " "
		switch {
		case t.kind == shut:
			u.within = 0
			return u.message(s)
		case t.is("TEXT"):
			return ends
		case !t.is("URL"):
			return false
		case ends:
			u.Names = true
			return true
		case !s.next().isString():
			return false
		}
	}
}
