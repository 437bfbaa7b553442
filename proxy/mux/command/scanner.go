package command

import (
	"bytes"
	"errors"
)

// ErrSyntax is returned by Read for arguments it cannot follow.
var ErrSyntax = errors.New("arguments cannot be understood")

// errCut is a literal whose octets are not there.
var errCut = errors.New("literal is not there")

// Bounds of what is followed.
const (
	maxDepth  = 64 // of parentheses
	maxDigits = 9  // of a literal's size
)

// kind says what a token is.
type kind uint8

const (
	end     kind = iota // there are no more
	fault               // the scanner's err says why
	atom                // whatever is neither of the others: sets, numbers, flags, sections, patterns
	quoted              // text is what stands between the quotes, escapes and all
	literal             // text is the octets
	open
	shut
)

// token is one argument of a command, or a parenthesis.
type token struct {
	kind kind
	text []byte
	at   int // where text begins in the command
}

// isString says whether the token may stand for an astring.
func (t token) isString() bool { return t.kind == atom || t.kind == quoted || t.kind == literal }

// scanner reads the tokens of a command whose literals are inline. It is
// strict: where it is lenient and a backend is not, or the other way around, the
// two would not mean the same message.
type scanner struct {
	b     []byte // the command without its last CRLF
	at    int
	depth int  // parentheses open
	last  kind // of the token before; end at the beginning
	err   error
}

// next is the next token. Once it is a fault, it is for ever.
func (s *scanner) next() token {
	if s.err != nil {
		return token{kind: fault}
	}
	t := s.scan()
	s.last = t.kind
	return t
}

func (s *scanner) scan() token {
	if s.at == len(s.b) {
		return s.finish()
	}
	if s.b[s.at] == ')' {
		return s.shut()
	}
	if !s.separated() {
		return s.fail(ErrSyntax)
	}
	switch c := s.b[s.at]; {
	case c == '(':
		return s.open()
	case c == '"':
		return s.quoted()
	case c == '{':
		return s.literal(s.at + 1)
	case c == '~' && s.at+1 < len(s.b) && s.b[s.at+1] == '{':
		return s.literal(s.at + 2)
	}
	return s.atom()
}

// separated steps over the one space between two arguments, and says whether an
// argument follows.
func (s *scanner) separated() bool {
	switch {
	case s.last == end || s.last == open: // no space here
	case s.last == shut && s.b[s.at] == ']': // BODY[HEADER.FIELDS (DATE)]
	case s.b[s.at] != ' ':
		return false
	default:
		s.at++
	}
	return s.at < len(s.b) && s.b[s.at] != ' ' && s.b[s.at] != ')'
}

func (s *scanner) fail(err error) token {
	s.err = err
	return token{kind: fault}
}

func (s *scanner) finish() token {
	if s.depth > 0 {
		return s.fail(ErrSyntax)
	}
	return token{kind: end, at: s.at}
}

func (s *scanner) open() token {
	if s.depth++; s.depth > maxDepth {
		return s.fail(ErrSyntax)
	}
	s.at++
	return token{kind: open, at: s.at - 1}
}

func (s *scanner) shut() token {
	if s.depth--; s.depth < 0 {
		return s.fail(ErrSyntax)
	}
	s.at++
	return token{kind: shut, at: s.at - 1}
}

// quoted reads a quoted string; only quoted-specials may be escaped (RFC 9051 §9).
func (s *scanner) quoted() token {
	from := s.at + 1
	for i := from; i < len(s.b); i++ {
		switch s.b[i] {
		case '"':
			s.at = i + 1
			return token{kind: quoted, text: s.b[from:i], at: from}
		case '\\':
			if i++; i == len(s.b) || s.b[i] != '"' && s.b[i] != '\\' {
				return s.fail(ErrSyntax)
			}
		case 0, '\r', '\n':
			return s.fail(ErrSyntax)
		}
	}
	return s.fail(ErrSyntax)
}

// literal reads a literal whose size begins at i.
func (s *scanner) literal(i int) token {
	size, digits := 0, i
	for ; i < len(s.b) && '0' <= s.b[i] && s.b[i] <= '9'; i++ {
		if i-digits == maxDigits {
			return s.fail(ErrSyntax)
		}
		size = size*10 + int(s.b[i]-'0')
	}
	if i == digits || s.b[digits] == '0' && i > digits+1 {
		return s.fail(ErrSyntax)
	}
	if i < len(s.b) && s.b[i] == '+' {
		i++
	}
	switch rest := s.b[i:]; {
	case bytes.Equal(rest, []byte("}")): // its CRLF was taken for the command's
		return s.fail(errCut)
	case !bytes.HasPrefix(rest, []byte("}\r\n")):
		return s.fail(ErrSyntax)
	}
	i += len("}\r\n")
	if size > len(s.b)-i {
		return s.fail(errCut)
	}
	s.at = i + size
	return token{kind: literal, text: s.b[i:s.at], at: i}
}

func (s *scanner) atom() token {
	from := s.at
	for s.at < len(s.b) && atomic(s.b[s.at]) {
		s.at++
	}
	if s.at == from {
		return s.fail(ErrSyntax)
	}
	return token{kind: atom, text: s.b[from:s.at], at: from}
}

// atomic is every character an unquoted argument can have: more than RFC 9051's
// ATOM-CHAR, for flags, patterns, sections and what searches make of 8 bits.
func atomic(c byte) bool {
	return c > 0x20 && c != 0x7f && c != '(' && c != ')' && c != '{' && c != '"'
}
