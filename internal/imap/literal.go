package imap

import (
	"bytes"
	"errors"
	"math"
	"strconv"
)

// Literal is the announcement at the end of a line of octets that follow its CRLF (RFC 9051
// §4.3, RFC 7888; RFC 3516 for the binary form).
type Literal struct {
	Size    int64 // octets; -1: no literal
	NonSync bool  // {n+}: sent without a continuation request
	Binary  bool  // ~{n}: may contain NUL
}

var noLiteral = Literal{Size: -1}

// parseAnnouncement parses the literal at the end of a line without its CRLF. A line that has
// an opening brace and ends in }, but not in a literal, is an error: octets or commands might
// follow.
func parseAnnouncement(line []byte) (Literal, error) {
	if len(line) == 0 || line[len(line)-1] != '}' {
		return noLiteral, nil
	}
	open := bytes.LastIndexByte(line, '{')
	if open < 0 {
		return noLiteral, nil
	}
	digits := line[open+1 : len(line)-1]
	lit := Literal{Binary: open > 0 && line[open-1] == '~'}
	if n := len(digits); n > 0 && digits[n-1] == '+' {
		lit.NonSync, digits = true, digits[:n-1]
	}
	size, ok := parseNumber(digits)
	if !ok {
		return noLiteral, ErrLiteral
	}
	lit.Size = size
	return lit, nil
}

// parseNumber parses decimal digits (RFC 9051 §9, number64). It rejects a sign, a leading zero,
// and an overflow of 63 bits.
func parseNumber(digits []byte) (int64, bool) {
	if len(digits) == 0 || len(digits) > 1 && digits[0] == '0' {
		return 0, false
	}
	var n int64
	for _, c := range digits {
		if c < '0' || c > '9' {
			return 0, false
		}
		d := int64(c - '0')
		if n > (math.MaxInt64-d)/10 {
			return 0, false
		}
		n = n*10 + d
	}
	return n, true
}

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
