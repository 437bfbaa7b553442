package command

import (
	"bytes"
	"strings"
)

// Bounds of ID (RFC 2971 §3.3); the same as before login.
const (
	maxIDPairs = 30
	maxIDField = 30
	maxIDValue = 1024
)

// ParseID parses a whole ID command, literals inline. It returns the fields and values in
// order, without those whose value is NIL. ok is false if the arguments are neither NIL nor a
// list within the bounds.
func ParseID(raw []byte) (pairs [][2]string, ok bool) {
	h, err := Lookup(firstLine(raw))
	if err != nil {
		return nil, false
	}
	s := scanner{input: bytes.TrimSuffix(raw, []byte("\r\n")), pos: h.argsPos}
	first := s.next()
	if first.isWord("NIL") {
		return nil, s.next().kind == endToken
	}
	if first.kind != openParen {
		return nil, false
	}
	for range maxIDPairs {
		field := s.next()
		if field.kind == closeParen {
			return pairs, s.next().kind == endToken
		}
		value := s.next()
		if !isValidAstring(field) || !isValidAstring(value) || len(field.text) > maxIDField || len(value.text) > maxIDValue {
			return nil, false
		}
		if !value.isWord("NIL") {
			pairs = append(pairs, [2]string{field.decode(), value.decode()})
		}
	}
	return pairs, s.next().kind == closeParen && s.next().kind == endToken
}

// decode returns the text of a string or atom, without escapes.
func (t token) decode() string {
	if t.kind != quotedToken || bytes.IndexByte(t.text, '\\') < 0 {
		return string(t.text)
	}
	var text strings.Builder
	for i := 0; i < len(t.text); i++ {
		if t.text[i] == '\\' {
			i++
		}
		text.WriteByte(t.text[i])
	}
	return text.String()
}
