// Package command is the one table of IMAP's commands for sessions that are
// more than relayed bytes, and says of a client's command what such a session
// must know: where it may run, whether expunges may be told while it runs,
// whether it may be repeated, which messages it names by number, and what it
// changes in the state of the connection.
//
// It is pure: bytes in, facts out. It does not know the session's state, so it
// says what a command would do, never whether the command is legal; refusing is
// the backend's. Nor does it check more of a command than its facts rest on.
// Nothing here keeps the bytes it was given, except that Head and Facts point
// into them: they last as long as the caller's buffer.
package command

import (
	"bytes"
	"errors"
)

// Bounds of a command's first words. A longer name is an unknown command.
const (
	MaxTag  = 126 // bytes, as before the login
	maxName = 32  // bytes of a name, both words of "UID …" together
)

// What may be wrong with the beginning of a command. Nothing was executed: the
// session answers BAD itself, and the backend sees nothing.
var (
	ErrTag     = errors.New("command has no valid tag")  // answered "* BAD"
	ErrCommand = errors.New("command has no valid name") // answered with Head.Tag
)

// Route says on which connection a command runs.
type Route uint8

// The routes.
const (
	Local    Route = iota // none: the session answers
	Any                   // any connection of the account with the session's extensions enabled
	Selected              // the one that has the session's mailbox; without a mailbox as Any
)

// Expunge says what may be told of vanished messages while a command runs
// (RFC 3501 §7.4.1, RFC 9051 §7.5.1).
type Expunge uint8

// What becomes of pending expunges.
const (
	ExpSync      Expunge = iota // they are told, then the command is sent
	ExpNone                     // none may be told: with any pending, the command is not sent
	ExpTranslate                // the numbers become UIDs, the expunges are told, UIDs are sent
	ExpDrop                     // the mailbox is left: they need no longer be told
)

// Spec is a row of the table. Nobody writes to it.
type Spec struct {
	Name      string // upper case; "UID FETCH" is one name; "" for a command not in the table
	Route     Route
	Expunge   Expunge
	Barrier   bool // runs alone: nothing outstanding before, nothing sent until it is done
	Retry     bool // harmless to repeat when its outcome is unknown
	Pin       bool // changes a state of the connection that nobody can give another one
	Streams   bool // carries messages: never collected whole
	Refused   bool // answered BAD by the session: it would change what both sides rest on
	Writes    bool // may change something; FETCH, which may set \Seen, does not count
	InMailbox bool // legal with a mailbox selected only
	NoLiteral bool // none of its arguments can be a literal
	args      args
}

// Head is the beginning of a command. It points into the line.
type Head struct {
	Tag  []byte // empty when the line has none that may be echoed
	Spec *Spec
	Args []byte // what follows the name in the first line, without its CRLF
	name int    // where the name begins
	args int    // where Args begin
}

// Lookup reads the first line of a command, or as much of it as there is, with
// or without its CRLF. Errors: ErrTag and ErrCommand.
func Lookup(line []byte) (Head, error) {
	line = bytes.TrimSuffix(line, []byte("\r\n"))
	tag := bytes.IndexByte(line, ' ')
	if tag < 0 {
		tag = len(line)
	}
	if !validTag(line[:tag]) {
		return Head{}, ErrTag
	}
	h := Head{Tag: line[:tag], name: min(tag+1, len(line))}
	end, err := name(line, h.name)
	if err != nil {
		return h, err
	}
	h.Spec = find(line[h.name:end])
	h.args = min(end+1, len(line))
	h.Args = line[h.args:]
	return h, nil
}

// name finds the end of the name that begins at from: one word, two when the
// first is UID.
func name(line []byte, from int) (int, error) {
	end := word(line, from)
	if end-from == 3 && bytes.EqualFold(line[from:end], []byte("UID")) {
		from = min(end+1, len(line))
		end = word(line, from)
	}
	if end == from || end < len(line) && line[end] != ' ' {
		return 0, ErrCommand
	}
	return end, nil
}

// word finds the end of the run of characters that a name can have (RFC 9051
// §9, atom) which begins at i.
func word(line []byte, i int) int {
	for i < len(line) && astringChar(line[i]) && line[i] != ']' {
		i++
	}
	return i
}

// find is the name's row.
func find(name []byte) *Spec {
	var buf [maxName]byte
	if s, ok := rows[string(upper(&buf, name))]; ok {
		return s
	}
	return &unknown
}

// upper is b in upper case, in buf; nothing when it does not fit, which no word
// that anybody looks for does.
func upper(buf *[maxName]byte, b []byte) []byte {
	if len(b) > len(buf) {
		return nil
	}
	for i, c := range b {
		if 'a' <= c && c <= 'z' {
			c -= 'a' - 'A'
		}
		buf[i] = c
	}
	return buf[:len(b)]
}

// validTag is RFC 9051's tag: ASTRING-CHAR except "+".
func validTag(tag []byte) bool {
	for _, c := range tag {
		if !astringChar(c) || c == '+' {
			return false
		}
	}
	return 0 < len(tag) && len(tag) <= MaxTag
}

// astringChar is RFC 9051's ASTRING-CHAR.
func astringChar(c byte) bool {
	switch c {
	case '(', ')', '{', '%', '*', '"', '\\':
		return false
	}
	return 0x20 < c && c < 0x7f
}
