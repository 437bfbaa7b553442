package command

import (
	"bytes"
	"errors"
)

// ErrSyntax is returned by Read for arguments it cannot follow.
var ErrSyntax = errors.New("arguments cannot be understood")

// errMissingLiteral is a literal whose octets are not there.
var errMissingLiteral = errors.New("literal is not there")

// Bounds of what is followed.
const (
	maxDepth         = 64 // of parentheses
	maxLiteralDigits = 9  // of a literal's size
)

// tokenKind says what a token is.
type tokenKind uint8

const (
	endToken     tokenKind = iota // there are no more
	errorToken                    // the scanner's err says why
	atomToken                     // whatever is neither of the others: sets, numbers, flags, sections, patterns
	quotedToken                   // text is what stands between the quotes, escapes and all
	literalToken                  // text is the octets
	openParen
	closeParen
)

// token is one argument of a command, or a parenthesis.
type token struct {
	kind tokenKind
	text []byte
	pos  int // where text begins in the command
}

// isString says whether the token may stand for an astring.
func (t token) isString() bool {
	return t.kind == atomToken || t.kind == quotedToken || t.kind == literalToken
}

// scanner reads the tokens of a command whose literals are inline. It is
// strict: where it is lenient and a backend is not, or the other way around, the
// two would not mean the same message.
type scanner struct {
	input    []byte // the command without its last CRLF
	pos      int
	depth    int       // parentheses open
	lastKind tokenKind // of the token before; end at the beginning
	err      error
}

// next is the next token. Once it is a fault, it is for ever.
func (s *scanner) next() token {
	if s.err != nil {
		return token{kind: errorToken}
	}
	t := s.scanToken()
	s.lastKind = t.kind
	return t
}

func (s *scanner) scanToken() token {
	if s.pos == len(s.input) {
		return s.scanEnd()
	}
	if s.input[s.pos] == ')' {
		return s.scanCloseParen()
	}
	if !s.skipSeparator() {
		return s.fail(ErrSyntax)
	}
	switch c := s.input[s.pos]; {
	case c == '(':
		return s.scanOpenParen()
	case c == '"':
		return s.scanQuoted()
	case c == '{':
		return s.scanLiteral(s.pos + 1)
	case c == '~' && s.pos+1 < len(s.input) && s.input[s.pos+1] == '{':
		return s.scanLiteral(s.pos + 2)
	}
	return s.scanAtom()
}

// skipSeparator steps over the one space between two arguments, and says whether an
// argument follows.
func (s *scanner) skipSeparator() bool {
	switch {
	case s.lastKind == endToken || s.lastKind == openParen: // no space here
	case s.lastKind == closeParen && s.input[s.pos] == ']': // BODY[HEADER.FIELDS (DATE)]
	case s.input[s.pos] != ' ':
		return false
	default:
		s.pos++
	}
	return s.pos < len(s.input) && s.input[s.pos] != ' ' && s.input[s.pos] != ')'
}

func (s *scanner) fail(err error) token {
	s.err = err
	return token{kind: errorToken}
}

func (s *scanner) scanEnd() token {
	if s.depth > 0 {
		return s.fail(ErrSyntax)
	}
	return token{kind: endToken, pos: s.pos}
}

func (s *scanner) scanOpenParen() token {
	if s.depth++; s.depth > maxDepth {
		return s.fail(ErrSyntax)
	}
	s.pos++
	return token{kind: openParen, pos: s.pos - 1}
}

func (s *scanner) scanCloseParen() token {
	if s.depth--; s.depth < 0 {
		return s.fail(ErrSyntax)
	}
	s.pos++
	return token{kind: closeParen, pos: s.pos - 1}
}

// scanQuoted reads a quoted string; only quoted-specials may be escaped (RFC 9051 §9).
func (s *scanner) scanQuoted() token {
	start := s.pos + 1
	for i := start; i < len(s.input); i++ {
		switch s.input[i] {
		case '"':
			s.pos = i + 1
			return token{kind: quotedToken, text: s.input[start:i], pos: start}
		case '\\':
			if i++; i == len(s.input) || s.input[i] != '"' && s.input[i] != '\\' {
				return s.fail(ErrSyntax)
			}
		case 0, '\r', '\n':
			return s.fail(ErrSyntax)
		}
	}
	return s.fail(ErrSyntax)
}

// scanLiteral reads a literal whose size begins at i.
func (s *scanner) scanLiteral(i int) token {
	size, digits := 0, i
	for ; i < len(s.input) && '0' <= s.input[i] && s.input[i] <= '9'; i++ {
		if i-digits == maxLiteralDigits {
			return s.fail(ErrSyntax)
		}
		size = size*10 + int(s.input[i]-'0')
	}
	if i == digits || s.input[digits] == '0' && i > digits+1 {
		return s.fail(ErrSyntax)
	}
	if i < len(s.input) && s.input[i] == '+' {
		i++
	}
	switch rest := s.input[i:]; {
	case bytes.Equal(rest, []byte("}")): // its CRLF was taken for the command's
		return s.fail(errMissingLiteral)
	case !bytes.HasPrefix(rest, []byte("}\r\n")):
		return s.fail(ErrSyntax)
	}
	i += len("}\r\n")
	if size > len(s.input)-i {
		return s.fail(errMissingLiteral)
	}
	s.pos = i + size
	return token{kind: literalToken, text: s.input[i:s.pos], pos: i}
}

func (s *scanner) scanAtom() token {
	start := s.pos
	for s.pos < len(s.input) && isUnquotedChar(s.input[s.pos]) {
		s.pos++
	}
	if s.pos == start {
		return s.fail(ErrSyntax)
	}
	return token{kind: atomToken, text: s.input[start:s.pos], pos: start}
}

// isUnquotedChar is every character an unquoted argument can have: more than RFC 9051's
// ATOM-CHAR, for flags, patterns, sections and what searches make of 8 bits.
func isUnquotedChar(c byte) bool {
	return c > 0x20 && c != 0x7f && c != '(' && c != ')' && c != '{' && c != '"'
}
