package command

import (
	"bytes"
	"strings"
)

// Bounds of ID (RFC 2971 §3.3), as before the login.
const (
	maxIDPairs = 30
	maxIDField = 30
	maxIDValue = 1024
)

// ID reads the pairs of a whole ID command, literals inline: fields and values in
// order, without those whose value is NIL. It returns false where the arguments are
// neither NIL nor a list within the bounds.
func ID(whole []byte) (pairs [][2]string, ok bool) {
	h, err := Lookup(firstLine(whole))
	if err != nil {
		return nil, false
	}
	s := scanner{b: bytes.TrimSuffix(whole, []byte("\r\n")), at: h.args}
	first := s.next()
	if first.is("NIL") {
		return nil, s.next().kind == end
	}
	if first.kind != open {
		return nil, false
	}
	for range maxIDPairs {
		field := s.next()
		if field.kind == shut {
			return pairs, s.next().kind == end
		}
		value := s.next()
		if !validAstring(field) || !validAstring(value) || len(field.text) > maxIDField || len(value.text) > maxIDValue {
			return nil, false
		}
		if !value.is("NIL") {
			pairs = append(pairs, [2]string{field.string(), value.string()})
		}
	}
	return pairs, s.next().kind == shut && s.next().kind == end
}

// string is what a string or an atom stands for.
func (t token) string() string {
	if t.kind != quoted || bytes.IndexByte(t.text, '\\') < 0 {
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
