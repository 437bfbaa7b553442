package audit

import (
	"encoding/hex"
	"strconv"
	"unicode"
	"unicode/utf8"

	"imapgate/internal/identity"
	"imapgate/internal/sanitize"
)

// Bounds of one field's value, in bytes of the record. With the fixed parts and
// every field at its bound a record stays below maxRecordBytes.
const (
	maxTextBytes   = 256              // text of clients and libraries
	maxNameBytes   = 64               // names of the configuration and of closed sets
	maxUserBytes   = identity.MaxUser // a canonical name is never cut: it is the evidence
	maxRecordBytes = 4 << 10
)

// ellipsis ends a value that was cut.
const ellipsis = "…"

// appendKey begins a member.
func appendKey(b []byte, key string) []byte {
	return append(append(append(b, ',', '"'), key...), '"', ':')
}

// appendText appends a member with a sanitized value, or nothing for "".
func appendText(b []byte, key, value string, bound int) []byte {
	if value == "" {
		return b
	}
	b = append(appendKey(b, key), '"')
	if len(value) <= bound && isPlainText(value) {
		b = append(b, value...)
	} else {
		b = appendSanitized(b, value, bound)
	}
	return append(b, '"')
}

// isPlainText reports whether s needs no escaping in a JSON string.
func isPlainText(s string) bool {
	for i := 0; i < len(s); i++ {
		if c := s[i]; c < ' ' || c > '~' || c == '"' || c == '\\' {
			return false
		}
	}
	return true
}

// appendSanitized appends s as the inside of a JSON string of at most bound bytes.
// Text that could deceive a reader, a terminal or a log parser becomes visible: ESC
// is written \x1b, and stays those four characters when the JSON is decoded.
func appendSanitized(b []byte, s string, bound int) []byte {
	start := len(b)
	fit := start // where the value is cut if the next rune does not fit
	for i := 0; i < len(s); {
		r, size := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && size == 1: // not UTF-8: show the byte
			b = hex.AppendEncode(append(b, `\\x`...), []byte{s[i]})
		case r == '"' || r == '\\':
			b = append(b, '\\', byte(r))
		case r < 0x100 && unicode.IsControl(r):
			b = hex.AppendEncode(append(b, `\\x`...), []byte{byte(r)})
		case sanitize.IsUnsafe(r):
			b = append(b, `\\u{`...)
			b = strconv.AppendUint(b, uint64(r), 16)
			b = append(b, '}')
		default:
			b = append(b, s[i:i+size]...)
		}
		i += size
		if len(b)-start > bound {
			return append(b[:fit], ellipsis...)
		}
		if len(b)-start <= bound-len(ellipsis) {
			fit = len(b)
		}
	}
	return b
}
