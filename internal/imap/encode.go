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
