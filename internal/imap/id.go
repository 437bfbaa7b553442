package imap

import (
	"bytes"
	"strings"
)

// The gateway's own answers to ID (RFC 2971).
const (
	IDResponse = `* ID ("name" "imapgate")`
	IDDone     = "OK ID completed."
	IDRejected = "BAD ID takes a list of at most 30 pairs of strings, or NIL."
)

// Bounds of ID (RFC 2971 §3.3).
const (
	MaxIDPairs = 30
	MaxIDField = 30   // bytes
	maxIDValue = 1024 // bytes
)

// ParseID parses the arguments of ID: "(" string SP nstring … ")" or NIL. It returns the fields
// and values in order, without those whose value is NIL. ok is false for anything else, and
// beyond the bounds.
func ParseID(args []Token) (pairs [][2]string, ok bool) {
	if len(args) == 1 && args[0].isNil() {
		return nil, true
	}
	n := len(args)
	if n < 2 || n%2 != 0 || n > 2+2*MaxIDPairs || args[0].Kind != OpenParen || args[n-1].Kind != CloseParen {
		return nil, false
	}
	for i := 1; i < n-1; i += 2 {
		field, value := args[i], args[i+1]
		if !field.IsString() || !value.IsString() || len(field.Text) > MaxIDField || len(value.Text) > maxIDValue {
			return nil, false
		}
		if !value.isNil() {
			pairs = append(pairs, [2]string{field.Text, value.Text})
		}
	}
	return pairs, true
}

// ParseIDCommand is ParseID for a complete command, with its literals and CRLF.
func ParseIDCommand(raw []byte) (pairs [][2]string, ok bool) {
	r := NewReader(bytes.NewReader(raw), Commands, len(raw))
	cmd, err := r.ReadCommand(PreauthLimits, func() error { return nil })
	if err != nil {
		return nil, false
	}
	return ParseID(cmd.Args)
}

func (t Token) isNil() bool { return t.Kind == Atom && strings.EqualFold(t.Text, "NIL") }
