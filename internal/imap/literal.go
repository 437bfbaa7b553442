package imap

import (
	"bytes"
	"math"
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
