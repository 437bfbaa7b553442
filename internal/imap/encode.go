package imap

import (
	"errors"
	"strconv"
)

// ErrUnquotable is returned for a string that cannot be quoted: one with NUL, CR or LF (RFC
// 9051 §4.3).
var ErrUnquotable = errors.New("string has NUL, CR or LF")

// AppendQuoted appends s as a quoted string. It quotes only printable ASCII, which all servers
// parse alike, and returns ErrUnquotable otherwise.
func AppendQuoted(dst []byte, s string) ([]byte, error) {
	dst = append(dst, '"')
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c < 0x20 || c > 0x7e {
			return nil, ErrUnquotable
		}
		if c == '"' || c == '\\' {
			dst = append(dst, '\\')
		}
		dst = append(dst, c)
	}
	return append(dst, '"'), nil
}

// AppendLiteral appends the announcement of s as a literal, with CRLF. The octets follow after
// a continuation request, or at once if lit.NonSync. NonSync needs a server with LITERAL+, or
// with LITERAL- for up to 4096 octets.
func AppendLiteral(dst []byte, s string, lit Literal) []byte {
	if lit.Binary {
		dst = append(dst, '~')
	}
	dst = append(dst, '{')
	dst = strconv.AppendInt(dst, int64(len(s)), 10)
	if lit.NonSync {
		dst = append(dst, '+')
	}
	return append(dst, '}', '\r', '\n')
}

// AppendCommand appends c with CRLF. Strings that cannot be quoted become non-synchronising
// literals.
func AppendCommand(dst []byte, c Command) []byte {
	dst = append(append(append(dst, c.Tag...), ' '), c.Name...)
	space := true
	for _, t := range c.Args {
		if space && t.Kind != CloseParen {
			dst = append(dst, ' ')
		}
		space = t.Kind != OpenParen
		dst = t.append(dst)
	}
	return append(dst, '\r', '\n')
}

func (t Token) append(dst []byte) []byte {
	if t.Kind == QuotedString {
		if quoted, err := AppendQuoted(dst, t.Text); err == nil {
			return quoted
		}
	}
	if t.Kind == QuotedString || t.Kind == LiteralString {
		dst = AppendLiteral(dst, t.Text, Literal{NonSync: true})
	}
	return append(dst, t.Text...)
}
