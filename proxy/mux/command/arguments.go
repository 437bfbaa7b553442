package command

import (
	"bytes"
	"strings"

	"imapgate/internal/imap"
)

// maxNames bounds the arguments of ENABLE: there are not as many extensions.
const maxNames = 64

// mailbox reads a mailbox into Mailbox.
func (r *reader) mailbox() error {
	t := r.s.next()
	if !validAstring(t) {
		return r.syntax()
	}
	r.f.Mailbox = mailboxName(t)
	return nil
}

// validAstring checks what the scanner leaves open of an astring. No string has
// a NUL, except in a literal8, which no mailbox is.
func validAstring(t token) bool {
	if t.kind == atom {
		for _, c := range t.text {
			if !astringChar(c) {
				return false
			}
		}
		return true
	}
	return t.isString() && bytes.IndexByte(t.text, 0) < 0
}

// mailboxName decodes a mailbox. INBOX is one in any case (RFC 9051 §5.1).
func mailboxName(t token) string {
	if bytes.EqualFold(t.text, []byte("INBOX")) {
		return "INBOX"
	}
	return t.string()
}

// is says whether an atom is the word, given in upper case. A keyword in quotes
// is text.
func (t token) is(word string) bool {
	return t.kind == atom && len(t.text) == len(word) && strings.EqualFold(string(t.text), word)
}

// selects reads SELECT's and EXAMINE's mailbox and parameters (RFC 4466 §2.4).
func (r *reader) selects() error {
	if err := r.mailbox(); err != nil {
		return err
	}
	t := r.s.next()
	if t.kind == end {
		return nil
	}
	if t.kind != open {
		return r.syntax()
	}
	for t = r.s.next(); t.kind == atom; t = r.s.next() {
		if err := r.parameter(t); err != nil {
			return err
		}
	}
	if t.kind != shut {
		return r.syntax()
	}
	return r.ends()
}

func (r *reader) parameter(t token) error {
	switch {
	case t.is("CONDSTORE"):
		r.f.Condstore = true
		return nil
	case t.is("QRESYNC"):
		r.f.Qresync, r.f.Condstore = true, true
	default: // ANNOTATE (RFC 5257), or nobody knows
		r.pin = true
		return nil
	}
	if t := r.s.next(); t.kind != open {
		return r.syntax()
	}
	return r.skipList()
}

// skipList steps over what stands between an open parenthesis and its other half.
func (r *reader) skipList() error {
	for depth := r.s.depth; r.s.depth >= depth; {
		if t := r.s.next(); t.kind == fault || t.kind == end {
			return r.syntax()
		}
	}
	return nil
}

// status reads STATUS' mailbox and items.
func (r *reader) status() error {
	if err := r.mailbox(); err != nil {
		return err
	}
	if t := r.s.next(); t.kind != open {
		return r.syntax()
	}
	t := r.s.next()
	for ; t.kind == atom; t = r.s.next() {
		r.f.Condstore = r.f.Condstore || t.is("HIGHESTMODSEQ")
	}
	if t.kind != shut {
		return r.syntax()
	}
	return r.ends()
}

// list looks for LIST … RETURN (STATUS (… HIGHESTMODSEQ …)) (RFC 5819).
func (r *reader) list() error {
	returns, last := false, false
	for t := r.s.next(); t.kind != end; t = r.s.next() {
		switch {
		case t.kind == fault:
			return r.syntax()
		case t.kind == open && r.s.depth == 1:
			returns = last
		case t.is("HIGHESTMODSEQ"):
			r.f.Condstore = r.f.Condstore || returns && r.s.depth > 1
		}
		last = t.is("RETURN")
	}
	return nil
}

func (r *reader) enable() error {
	t := r.s.next()
	for ; t.kind == atom && len(r.f.Names) < maxNames; t = r.s.next() {
		r.f.Names = append(r.f.Names, strings.ToUpper(string(t.text)))
	}
	if t.kind != end || len(r.f.Names) == 0 {
		return r.syntax()
	}
	return nil
}

// notify pins for everything but NOTIFY NONE, which ends what NOTIFY SET began
// (RFC 5465 §3).
func (r *reader) notify() error {
	t := r.s.next()
	r.pin = !t.is("NONE") || r.s.next().kind != end
	return r.s.err
}

// set reads a sequence set, or "$" (RFC 5182 §2.1) which names no numbers.
func (r *reader) set() error {
	switch t := r.s.next(); {
	case t.is("$"):
		r.f.UsesSaved = true
	case t.kind != atom || !validSet(t.text):
		return r.syntax()
	default:
		r.f.Set, r.f.SetAt = t.text, t.at
	}
	r.f.Numbers = r.spec.Expunge != ExpSync // and not UIDs
	return nil
}

// validSet is RFC 9051's sequence-set.
func validSet(b []byte) bool {
	if bytes.Count(b, []byte(",")) >= imap.MaxRanges {
		return false
	}
	for len(b) > 0 {
		n := setNumber(b)
		if n > 0 && n < len(b) && b[n] == ':' {
			b = b[n+1:]
			n = setNumber(b)
		}
		switch {
		case n == 0:
			return false
		case n == len(b):
			return true
		case b[n] != ',':
			return false
		}
		b = b[n+1:]
	}
	return false
}

// setNumber is the length of the seq-number that b begins with, 0 for none:
// "*", or 1 to 4294967295.
func setNumber(b []byte) int {
	if len(b) == 0 || b[0] == '0' {
		return 0
	}
	if b[0] == '*' {
		return 1
	}
	n, value := 0, uint64(0)
	for n < len(b) && n < 11 && '0' <= b[n] && b[n] <= '9' {
		value = value*10 + uint64(b[n]-'0')
		n++
	}
	if value > 1<<32-1 {
		return 0
	}
	return n
}

// copies reads COPY's and MOVE's set and mailbox. All of it must be right,
// because the set may be rewritten.
func (r *reader) copies() error {
	if err := r.set(); err != nil {
		return err
	}
	if t := r.s.next(); !validAstring(t) {
		return r.syntax()
	}
	return r.ends()
}

// replace reads REPLACE's one message and its mailbox (RFC 8508 §3).
func (r *reader) replace() error {
	if err := r.set(); err != nil {
		return err
	}
	if bytes.ContainsAny(r.f.Set, ",:") {
		return ErrSyntax
	}
	return r.streamed(r.mailbox())
}

// store reads a set and the modifiers in front of the flags (RFC 7162 §3.1.3).
func (r *reader) store() error {
	if err := r.set(); err != nil {
		return err
	}
	t := r.s.next()
	if t.kind == open {
		for t = r.s.next(); t.kind == atom; t = r.s.next() {
			r.f.Unchanged = r.f.Unchanged || t.is("UNCHANGEDSINCE")
		}
		if t.kind != shut {
			return r.syntax()
		}
		r.f.Condstore = r.f.Unchanged
		t = r.s.next()
	}
	if t.kind != atom {
		return r.syntax()
	}
	return r.rest()
}

// rest checks that what follows is made of tokens.
func (r *reader) rest() error {
	t := r.s.next()
	for t.kind != end && t.kind != fault {
		t = r.s.next()
	}
	return r.s.err
}

// fetch reads a set and looks for MODSEQ among the items and CHANGEDSINCE among
// the modifiers. A section's header names are neither.
func (r *reader) fetch() error {
	if err := r.set(); err != nil {
		return err
	}
	for n := 0; ; n++ {
		t := r.s.next()
		switch {
		case t.kind == end && n > 0:
			return nil
		case t.kind == open || t.kind == shut:
		case t.kind != atom:
			return r.syntax()
		case opensSection(t.text):
			if err := r.section(); err != nil {
				return err
			}
		case t.is("MODSEQ") || t.is("CHANGEDSINCE"):
			r.f.Condstore = true
		}
	}
}

// opensSection says whether an item begins a section that goes on behind a list
// of header names: BODY[HEADER.FIELDS (…)].
func opensSection(item []byte) bool {
	i := bytes.IndexByte(item, '[')
	if i < 0 || bytes.IndexByte(item, ']') >= 0 {
		return false
	}
	name := token{kind: atom, text: item[:i]}
	return name.is("BODY") || name.is("BODY.PEEK")
}

// section steps over the one list a section has, and reads its end.
func (r *reader) section() error {
	if t := r.s.next(); t.kind != open {
		return r.syntax()
	}
	if err := r.skipList(); err != nil {
		return err
	}
	if t := r.s.next(); t.kind != atom || t.text[0] != ']' {
		return r.syntax()
	}
	return nil
}
