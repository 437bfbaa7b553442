package imap

import (
	"bytes"
	"errors"
	"slices"
	"strings"
)

// ErrResponse is returned for a line that is not a response.
var ErrResponse = errors.New("malformed response")

// ResponseKind is the first word of a response: "*", a tag, or "+".
type ResponseKind uint8

// The values of ResponseKind (RFC 9051 §2.2.2).
const (
	Untagged ResponseKind = iota
	Tagged
	Continuation
)

// Response is one line of a server. Strings are copies; Line belongs to the caller.
type Response struct {
	Kind     ResponseKind
	Tag      string // Tagged only
	Name     string // upper case: OK NO BAD BYE PREAUTH, or CAPABILITY, ID …; after a number, the second word
	Code     string // name of the response code, upper case: CAPABILITY, UNAVAILABLE …; "" if none
	Arg      string // arguments of the response code
	Text     string // human-readable text of a status, or the data after Name
	IsStatus bool   // Name is one of OK NO BAD BYE PREAUTH
	Line     []byte // the line without its CRLF
}

// ParseResponse parses one response line without its CRLF.
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
	if isNumber && res.IsStatus { // "* 5 OK" is invalid, and must not pass for a greeting
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

// parseCode parses "[NAME arg] text".
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

// findCodeEnd returns the index of the bracket that closes the one at the start of text. A
// quoted string inside, as in [BADCHARSET ("x]y")], may contain a bracket; an unpaired quote is
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

// isStatus reports whether a line begins a response that ends in free text: a status response
// or a continuation request.
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

// IsAlert reports whether a response has an ALERT, whose text must be shown to the user at once
// (RFC 9051 §7.1).
func IsAlert(response []byte) bool {
	rest, untagged := bytes.CutPrefix(response, []byte("* "))
	if !untagged || !HasWordPrefix(rest, "OK") && !HasWordPrefix(rest, "NO") {
		return false
	}
	code, ok := bytes.CutPrefix(rest[len("OK"):], []byte(" ["))
	return ok && HasWordPrefix(code, "ALERT")
}

// HasWordPrefix reports whether b begins with the whole word, given in upper case. It does not
// allocate.
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

// equalFoldASCII compares b with an upper-case ASCII word. It does not fold Unicode and does
// not allocate.
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

// Caps is a capability list in the server's spelling, single-spaced.
type Caps struct{ words string }

// maxCaps bounds the capabilities of a list; more are dropped.
const maxCaps = 256

// ParseCaps parses the words of a CAPABILITY response or response code. It drops words with
// invalid characters, so that the list is safe to forward.
func ParseCaps(words string) Caps {
	fields := strings.Fields(words)
	isInvalid := func(r rune) bool { // RFC 9051: a capability is "AUTH=" or an atom, without resp-specials
		return r > 0x7e || !isAtomChar(byte(r)) || strings.ContainsRune(`\*%]`, r)
	}
	valid := slices.DeleteFunc(fields[:min(len(fields), maxCaps)], func(word string) bool { return strings.ContainsFunc(word, isInvalid) })
	return Caps{strings.Join(valid, " ")}
}

// Has reports whether the list has the capability, given in upper case.
func (c Caps) Has(name string) bool {
	for word, rest := "", c.words; rest != ""; {
		if word, rest, _ = strings.Cut(rest, " "); strings.EqualFold(word, name) {
			return true
		}
	}
	return false
}

// IsKnown reports whether a list was received.
func (c Caps) IsKnown() bool { return c.words != "" }

// String returns the list as the server wrote it, single-spaced.
func (c Caps) String() string { return c.words }

// Without returns the list without the words for which drop returns true; drop gets them in
// upper case.
func (c Caps) Without(drop func(upper string) bool) Caps {
	kept := slices.DeleteFunc(strings.Fields(c.words), func(word string) bool { return drop(strings.ToUpper(word)) })
	return Caps{strings.Join(kept, " ")}
}

// IsGatewayCapability reports whether clients must not use a capability of a backend, given in
// upper case. TLS and logins belong to the gateway, and UNAUTHENTICATE (RFC 8437) would allow a
// second login without it.
func IsGatewayCapability(upper string) bool {
	return upper == "STARTTLS" || upper == "LOGINDISABLED" || upper == "UNAUTHENTICATE" || strings.HasPrefix(upper, "AUTH=")
}

// Extensions is a set of extensions that change a server's responses on a connection (RFC
// 5161): upper-case names in order, separated by one space. It can be a map key.
type Extensions string

// Extensions with a meaning to the gateway.
const (
	Condstore = "CONDSTORE" // RFC 7162
	Qresync   = "QRESYNC"   // RFC 7162; implies CONDSTORE
	UIDOnly   = "UIDONLY"   // RFC 9586
	Rev2      = "IMAP4REV2" // RFC 9051
)

// Has reports whether name is in the set.
func (e Extensions) Has(name string) bool {
	for word := range strings.SplitSeq(string(e), " ") {
		if word == name {
			return true
		}
	}
	return false
}

// With returns the set plus names, in any case, and the extensions that they imply.
func (e Extensions) With(names ...string) Extensions {
	words := append(strings.Fields(string(e)), names...)
	for i, word := range words {
		words[i] = strings.ToUpper(word)
	}
	if slices.Contains(words, Qresync) {
		words = append(words, Condstore) // RFC 7162 §3.2.3
	}
	slices.Sort(words)
	return Extensions(strings.Join(slices.Compact(words), " "))
}

// Without returns the names that are in e and not in other.
func (e Extensions) Without(other Extensions) []string {
	return slices.DeleteFunc(strings.Fields(string(e)), other.Has)
}
