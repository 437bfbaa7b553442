package command

import (
	"bytes"
	"errors"
)

// ErrSyntax is returned by Parse for arguments it cannot parse.
var ErrSyntax = errors.New("arguments cannot be parsed")

// errMissingLiteral is returned for a literal whose octets are not in the input.
var errMissingLiteral = errors.New("literal octets are missing")

// Bounds of the arguments that are parsed.
const (
	maxDepth         = 64 // nested parentheses
	maxLiteralDigits = 9  // digits of a literal's size
)

// tokenKind is the lexical class of a token.
type tokenKind uint8

const (
	endToken     tokenKind = iota // end of the command
	errorToken                    // the scanner's err has the reason
	atomToken                     // any unquoted text: sets, numbers, flags, sections, patterns
	quotedToken                   // text is between the quotes, escapes included
	literalToken                  // text is the octets
	openParen
	closeParen
)

// token is one argument of a command, or a parenthesis.
type token struct {
	kind tokenKind
	text []byte
	pos  int // offset of text in the command
}

// isString reports whether the token may be an astring.
func (t token) isString() bool {
	return t.kind == atomToken || t.kind == quotedToken || t.kind == literalToken
}

// scanner reads the tokens of a command whose literals are inline. It is strict: if it were
// more lenient or stricter than a backend, the two could disagree about which messages are
// meant.
type scanner struct {
	input    []byte // the command without its last CRLF
	pos      int
	depth    int       // open parentheses
	lastKind tokenKind // of the previous token; endToken at the start
	err      error
}

// next returns the next token. After an error it returns errorToken forever.
func (s *scanner) next() token {
	if s.err != nil {
		return token{kind: errorToken}
	}
	t := s.scanToken()
	s.lastKind = t.kind
	return t
}

func (s *scanner) scanToken() token {
	switch {
	case s.pos == len(s.input) && s.depth == 0:
		return token{kind: endToken, pos: s.pos}
	case s.pos == len(s.input):
		return s.fail(ErrSyntax)
	case s.input[s.pos] == ')':
		return s.scanParen(closeParen, -1)
	case !s.skipSeparator():
		return s.fail(ErrSyntax)
	}
	switch c := s.input[s.pos]; {
	case c == '(':
		return s.scanParen(openParen, 1)
	case c == '"':
		return s.scanQuoted()
	case c == '{':
		return s.scanLiteral(s.pos + 1)
	case c == '~' && s.pos+1 < len(s.input) && s.input[s.pos+1] == '{':
		return s.scanLiteral(s.pos + 2)
	}
	return s.scanAtom()
}

// skipSeparator skips the one space between two arguments and reports whether an argument
// follows.
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

// fail records the first error.
func (s *scanner) fail(err error) token {
	if s.err == nil {
		s.err = err
	}
	return token{kind: errorToken}
}

// scanParen scans a parenthesis that changes the depth by step.
func (s *scanner) scanParen(kind tokenKind, step int) token {
	if s.depth += step; s.depth < 0 || s.depth > maxDepth {
		return s.fail(ErrSyntax)
	}
	s.pos++
	return token{kind: kind, pos: s.pos - 1}
}

// scanQuoted scans a quoted string; only quoted-specials may be escaped (RFC 9051 §9).
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

// scanLiteral scans a literal whose size begins at i.
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
	case bytes.Equal(rest, []byte("}")): // the literal's CRLF was trimmed as the command's
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

// isUnquotedChar reports whether c may be in an unquoted argument. This is more than RFC 9051's
// ATOM-CHAR, for flags, patterns, sections and 8-bit search strings.
func isUnquotedChar(c byte) bool {
	return c > 0x20 && c != 0x7f && c != '(' && c != ')' && c != '{' && c != '"'
}
