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

// Upstream says on which connection a command runs.
type Upstream uint8

// The routes.
const (
	NoUpstream       Upstream = iota // none: the session answers
	AnyUpstream                      // any connection of the account with the session's extensions enabled
	SelectedUpstream                 // the one that has the session's mailbox; without a mailbox as Any
)

// ExpungePolicy says what may be told of vanished messages while a command runs
// (RFC 3501 §7.4.1, RFC 9051 §7.5.1).
type ExpungePolicy uint8

// What becomes of pending expunges.
const (
	FlushExpunges    ExpungePolicy = iota // they are told, then the command is sent
	ForbidExpunges                        // none may be told: with any pending, the command is not sent
	TranslateNumbers                      // the numbers become UIDs, the expunges are told, UIDs are sent
	DropExpunges                          // the mailbox is left: they need no longer be told
)

// Spec is a row of the table. Nobody writes to it.
type Spec struct {
	Name          string // upper case; "UID FETCH" is one name; "" for a command not in the table
	Upstream      Upstream
	ExpungePolicy ExpungePolicy
	Barrier       bool // runs alone: nothing outstanding before, nothing sent until it is done
	Retryable     bool // harmless to repeat when its outcome is unknown
	Pins          bool // changes a state of the connection that nobody can give another one
	Streams       bool // carries messages: never collected whole
	Forbidden     bool // answered BAD by the session: it would change what both sides rest on
	Writes        bool // may change something; FETCH, which may set \Seen, does not count
	NeedsMailbox  bool // legal with a mailbox selected only
	NoLiteral     bool // none of its arguments can be a literal
	argSyntax     argSyntax
}

// Head is the beginning of a command. It points into the line.
type Head struct {
	Tag     []byte // empty when the line has none that may be echoed
	Spec    *Spec
	Args    []byte // what follows the name in the first line, without its CRLF
	namePos int    // where the name begins
	argsPos int    // where Args begin
}

// Lookup reads the first line of a command, or as much of it as there is, with
// or without its CRLF. Errors: ErrTag and ErrCommand.
func Lookup(line []byte) (Head, error) {
	line = bytes.TrimSuffix(line, []byte("\r\n"))
	tag := bytes.IndexByte(line, ' ')
	if tag < 0 {
		tag = len(line)
	}
	if !isValidTag(line[:tag]) {
		return Head{}, ErrTag
	}
	h := Head{Tag: line[:tag], namePos: min(tag+1, len(line))}
	end, err := findNameEnd(line, h.namePos)
	if err != nil {
		return h, err
	}
	h.Spec = findSpec(line[h.namePos:end])
	h.argsPos = min(end+1, len(line))
	h.Args = line[h.argsPos:]
	return h, nil
}

// findNameEnd finds the end of the name that begins at from: one word, two when the
// first is UID.
func findNameEnd(line []byte, start int) (int, error) {
	end := findWordEnd(line, start)
	if end-start == 3 && bytes.EqualFold(line[start:end], []byte("UID")) {
		start = min(end+1, len(line))
		end = findWordEnd(line, start)
	}
	if end == start || end < len(line) && line[end] != ' ' {
		return 0, ErrCommand
	}
	return end, nil
}

// findWordEnd finds the end of the run of characters that a name can have (RFC 9051
// §9, atom) which begins at i.
func findWordEnd(line []byte, i int) int {
	for i < len(line) && isAstringChar(line[i]) && line[i] != ']' {
		i++
	}
	return i
}

// findSpec is the name's row.
func findSpec(name []byte) *Spec {
	var buf [maxName]byte
	if s, ok := specByName[string(toUpper(&buf, name))]; ok {
		return s
	}
	return &unknownSpec
}

// toUpper is b in upper case, in buf; nothing when it does not fit, which no word
// that anybody looks for does.
func toUpper(buf *[maxName]byte, b []byte) []byte {
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

// isValidTag is RFC 9051's tag: ASTRING-CHAR except "+".
func isValidTag(tag []byte) bool {
	for _, c := range tag {
		if !isAstringChar(c) || c == '+' {
			return false
		}
	}
	return 0 < len(tag) && len(tag) <= MaxTag
}

// isAstringChar is RFC 9051's ASTRING-CHAR.
func isAstringChar(c byte) bool {
	switch c {
	case '(', ')', '{', '%', '*', '"', '\\':
		return false
	}
	return 0x20 < c && c < 0x7f
}
