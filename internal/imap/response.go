package imap

import (
	"bytes"
	"errors"
	"strings"
)

// ErrResponse is returned for a line that is no response.
var ErrResponse = errors.New("malformed response")

// ResponseKind says who a response is for.
type ResponseKind uint8

// The kinds of a Response (RFC 9051 §2.2.2).
const (
	Untagged ResponseKind = iota
	Tagged
	Continuation
)

// Response is one line of a server. Strings are copies; Line is the caller's.
type Response struct {
	Kind     ResponseKind
	Tag      string // Tagged only
	Name     string // upper case: OK NO BAD BYE PREAUTH, or CAPABILITY, ID …; a number's second word
	Code     string // the response code's name, upper case: CAPABILITY, UNAVAILABLE …; "" without one
	Arg      string // what follows the code's name, inside the brackets
	Text     string // human text of a status, or the data behind Name
	IsStatus bool   // Name is one of OK NO BAD BYE PREAUTH
	Line     []byte // the line without its CRLF
}

// ParseResponse reads one response line without its CRLF.
func ParseResponse(line []byte) (Response, error) {
	res := Response{Line: line}
	if len(line) > 0 && line[0] == '+' {
		res.Kind = Continuation
		res.Text = strings.TrimPrefix(string(line[1:]), " ")
		return res, nil
	}
	first, rest, ok := bytes.Cut(line, []byte(" "))
	if !ok || len(first) == 0 {
		return res, ErrResponse
	}
	if string(first) != "*" {
		if !isValidTag(first) {
			return res, ErrResponse
		}
		res.Kind, res.Tag = Tagged, string(first)
	}
	name, data, _ := bytes.Cut(rest, []byte(" "))
	_, isNumber := parseNumber(name)
	if isNumber && res.Kind == Untagged {
		name, data, _ = bytes.Cut(data, []byte(" "))
	}
	res.Name = strings.ToUpper(string(name))
	res.IsStatus = isStatusWord(name)
	if isNumber && res.IsStatus { // "* 5 OK" is nothing, least of all a greeting
		return res, ErrResponse
	}
	if res.Name == "" || res.Kind == Tagged && !res.IsStatus {
		return res, ErrResponse
	}
	res.Text = string(data)
	if res.IsStatus && strings.HasPrefix(res.Text, "[") {
		return res.parseCode()
	}
	return res, nil
}

// parseCode splits "[NAME arg] text".
func (res Response) parseCode() (Response, error) {
	end := findCodeEnd(res.Text)
	if end < 0 {
		return res, ErrResponse
	}
	code := res.Text[1:end]
	res.Text = strings.TrimPrefix(res.Text[end+1:], " ")
	res.Code, res.Arg, _ = strings.Cut(code, " ")
	res.Code = strings.ToUpper(res.Code)
	return res, nil
}

// findCodeEnd is where the bracket closes that text opens with. A quoted string
// inside, as in [BADCHARSET ("x]y")], may hold a bracket; an unpaired quote is
// text.
func findCodeEnd(text string) int {
	quoted := false
	for i := 1; i < len(text); i++ {
		switch {
		case text[i] == '\\' && quoted:
			i++
		case text[i] == '"':
			quoted = !quoted
		case text[i] == ']' && !quoted:
			return i
		}
	}
	return strings.IndexByte(text, ']')
}

// isStatus says whether a line begins a response whose end is free text: a
// status response or a continuation request.
func isStatus(line []byte) bool {
	if len(line) > 0 && line[0] == '+' {
		return true
	}
	i := bytes.IndexByte(line, ' ')
	if i < 0 {
		return false
	}
	word := line[i+1:]
	if j := bytes.IndexAny(word, " \r"); j >= 0 {
		word = word[:j]
	}
	return isStatusWord(word)
}

func isStatusWord(w []byte) bool {
	for _, s := range [...]string{"OK", "NO", "BAD", "BYE", "PREAUTH"} {
		if equalFoldASCII(w, s) {
			return true
		}
	}
	return false
}

// IsAlert says whether a response has text that people are to be shown, whatever
// they are doing (RFC 9051 §7.1).
func IsAlert(response []byte) bool {
	rest, untagged := bytes.CutPrefix(response, []byte("* "))
	if !untagged || !HasWordPrefix(rest, "OK") && !HasWordPrefix(rest, "NO") {
		return false
	}
	code, ok := bytes.CutPrefix(rest[len("OK"):], []byte(" ["))
	return ok && HasWordPrefix(code, "ALERT")
}

// HasWordPrefix says whether b begins with the word, given in upper case, and nothing
// of a longer one. It allocates nothing.
func HasWordPrefix(b []byte, word string) bool {
	if len(b) < len(word) || !equalFoldASCII(b[:len(word)], word) {
		return false
	}
	if len(b) == len(word) {
		return true
	}
	switch b[len(word)] {
	case ' ', '\r', ']', '(':
		return true
	}
	return false
}

// equalFoldASCII compares with an upper-case ASCII word; it does not fold Unicode,
// and it does not allocate.
func equalFoldASCII(b []byte, upper string) bool {
	if len(b) != len(upper) {
		return false
	}
	for i, c := range b {
		if c >= 'a' && c <= 'z' {
			c -= 'a' - 'A'
		}
		if c != upper[i] {
			return false
		}
	}
	return true
}
