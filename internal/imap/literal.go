package imap

import (
	"bytes"
	"math"
)

// Literal is what the end of a line announces: octets that follow the CRLF
// (RFC 9051 §4.3, RFC 7888, RFC 3516 for the binary form).
type Literal struct {
	Size    int64 // octets; -1: the line announces none
	NonSync bool  // {n+}: they come without being asked for
	Binary  bool  // ~{n}: they may hold NUL
}

var noLiteral = Literal{Size: -1}

// parseAnnouncement reads the literal at the end of a line without its CRLF. A line
// that ends in } behind an opening brace but in no literal is an error: what
// follows might be octets or might be commands, and nobody can tell.
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

// parseNumber reads decimal digits without a sign, a leading zero or an overflow of
// 63 bits (RFC 9051 §9, number64).
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
