package model

import (
	"slices"
	"strconv"
	"strings"
)

// Violation is a response or a state that IMAP does not allow.
type Violation struct{ Text string }

// Error implements error.
func (v *Violation) Error() string { return v.Text }

// fetchParser reads the atoms, lists and strings of a response. It takes literals from
// their own list.
type fetchParser struct {
	rest     string
	literals []string
}

// skipSpace consumes one space. It returns false if there is none.
func (p *fetchParser) skipSpace() bool {
	rest, ok := strings.CutPrefix(p.rest, " ")
	p.rest = rest
	return ok
}

// readName reads the name of a FETCH item, up to a space outside of brackets.
func (p *fetchParser) readName() (string, bool) {
	depth := 0
	for i := 0; i < len(p.rest); i++ {
		switch c := p.rest[i]; {
		case c == '[':
			depth++
		case c == ']':
			depth--
		case depth == 0 && (c == ' ' || c == ')' || c == '('):
			name := p.rest[:i]
			p.rest = p.rest[i:]
			return strings.ToUpper(name), name != ""
		}
	}
	return "", false
}

// readValue reads a list with its parentheses, a string without its quotes, or an atom.
func (p *fetchParser) readValue() (string, bool) {
	if p.rest == "" {
		return "", false
	}
	switch p.rest[0] {
	case '(':
		return p.readList()
	case '"':
		return p.readQuoted()
	case '{':
		_, rest, ok := strings.Cut(p.rest, "}")
		if !ok || len(p.literals) == 0 {
			return "", false
		}
		literal := p.literals[0]
		p.rest, p.literals = rest, p.literals[1:]
		return literal, true
	}
	end := strings.IndexAny(p.rest, " )")
	if end < 0 {
		end = len(p.rest)
	}
	atom := p.rest[:end]
	p.rest = p.rest[end:]
	return atom, atom != ""
}

func (p *fetchParser) readQuoted() (string, bool) {
	var b strings.Builder
	for i := 1; i < len(p.rest); i++ {
		switch p.rest[i] {
		case '\\':
			i++
			if i == len(p.rest) {
				return "", false
			}
			b.WriteByte(p.rest[i])
		case '"':
			p.rest = p.rest[i+1:]
			return b.String(), true
		default:
			b.WriteByte(p.rest[i])
		}
	}
	return "", false
}

func (p *fetchParser) readList() (string, bool) {
	depth := 0
	for i := 0; i < len(p.rest); i++ {
		switch p.rest[i] {
		case '(':
			depth++
		case ')':
			depth--
		}
		if depth == 0 {
			list := p.rest[:i+1]
			p.rest = p.rest[i+1:]
			return list, true
		}
	}
	return "", false
}

// fetchResponse is a parsed FETCH response.
type fetchResponse struct {
	number   uint32
	uid      uint32 // 0: absent
	flags    []string
	hasFlags bool
	modseq   uint64 // 0: absent
	header   string // "": absent
	body     string // "": absent
	items    []string
}

// parseFetch parses the items after "* n FETCH ".
func parseFetch(number uint32, items string, literals []string) (f fetchResponse, err error) {
	f.number = number
	malformed := newViolation("a broken FETCH response: %q", items)
	p := fetchParser{rest: items, literals: literals}
	if !strings.HasPrefix(p.rest, "(") {
		return f, malformed
	}
	for p.rest = p.rest[1:]; ; {
		name, ok := p.readName()
		if !ok || !p.skipSpace() {
			return f, malformed
		}
		value, ok := p.readValue()
		if !ok || !f.setItem(name, value) {
			return f, malformed
		}
		if p.rest == ")" {
			break
		}
		if !p.skipSpace() {
			return f, malformed
		}
	}
	if len(p.literals) > 0 {
		return f, malformed
	}
	return f, nil
}

// setItem stores one item. It returns false if the item is malformed or no client fetches
// it.
func (f *fetchResponse) setItem(name, value string) bool {
	f.items = append(f.items, name)
	switch name {
	case "UID":
		n, ok := parseNumber(value)
		f.uid = n
		return ok
	case "FLAGS":
		flags, ok := parseList(value)
		f.flags, f.hasFlags = flags, true
		return ok
	case "MODSEQ":
		values, ok := parseList(value)
		if !ok || len(values) != 1 {
			return false
		}
		n, err := strconv.ParseUint(values[0], 10, 63)
		f.modseq = n
		return err == nil && n > 0
	case "BODY[HEADER.FIELDS (SUBJECT)]", "BODY[]":
		if value == "NIL" { // the message was expunged, which the tagged response reports
			return true
		}
		if name == "BODY[]" {
			f.body = value
			return true
		}
		f.header = value
		return true
	}
	return false
}

// parseList parses "(a b c)".
func parseList(s string) ([]string, bool) {
	s, hasOpen := strings.CutPrefix(s, "(")
	s, hasClose := strings.CutSuffix(s, ")")
	return strings.Fields(s), hasOpen && hasClose
}

// parseNumber parses a message number or UID, which is never 0.
func parseNumber(s string) (uint32, bool) {
	n, err := strconv.ParseUint(s, 10, 32)
	return uint32(n), err == nil && n > 0 && s[0] != '+'
}

// maxSet bounds the numbers of one set in these tests.
const maxSet = 1 << 16

// parseSet returns all numbers of a set in the order of the text. Sets of a server do not
// contain *.
func parseSet(s string) ([]uint32, bool) {
	var all []uint32
	for item := range strings.SplitSeq(s, ",") {
		a, b, isRange := strings.Cut(item, ":")
		first, ok := parseNumber(a)
		if !ok {
			return nil, false
		}
		last := first
		if isRange {
			if last, ok = parseNumber(b); !ok {
				return nil, false
			}
		}
		first, last = min(first, last), max(first, last)
		if int(last-first)+len(all) > maxSet {
			return nil, false
		}
		for n := first; ; n++ {
			all = append(all, n)
			if n == last {
				break
			}
		}
	}
	return all, true
}

// formatSet formats a set in ascending order, with ranges.
func formatSet(numbers []uint32) string {
	numbers = slices.Compact(slices.Sorted(slices.Values(numbers)))
	var b []byte
	for i := 0; i < len(numbers); {
		j := i
		for j+1 < len(numbers) && numbers[j+1] == numbers[j]+1 {
			j++
		}
		if len(b) > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendUint(b, uint64(numbers[i]), 10)
		if j > i {
			b = strconv.AppendUint(append(b, ':'), uint64(numbers[j]), 10)
		}
		i = j + 1
	}
	return string(b)
}

// Result is the tagged response of a command.
type Result struct {
	Status string // OK, NO or BAD; "": the session ended first
	Code   string // upper case; "": absent
	Arg    string // of the code
	Line   string
}

// isOK reports whether the command succeeded.
func (r Result) isOK() bool { return r.Status == "OK" }

// parseStatus parses "OK [CODE arg] text".
func parseStatus(s string) (Result, bool) {
	r := Result{Line: s}
	status, text, ok := strings.Cut(s, " ")
	r.Status = strings.ToUpper(status)
	if !ok || r.Status != "OK" && r.Status != "NO" && r.Status != "BAD" && r.Status != "BYE" {
		return r, false
	}
	if !strings.HasPrefix(text, "[") {
		return r, true
	}
	code, _, ok := strings.Cut(text[1:], "]")
	if !ok {
		return r, false
	}
	r.Code, r.Arg, _ = strings.Cut(code, " ")
	r.Code = strings.ToUpper(r.Code)
	return r, true
}
