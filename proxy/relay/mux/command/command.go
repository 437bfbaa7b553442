// Package command is the table of IMAP commands for sessions whose commands the gateway parses.
// Of each command it reports on which upstream it may run, whether expunges may be sent while
// it runs, and whether it may be retried. It also reports which messages the command addresses
// by number, and which state of the connection it changes.
//
// The package is pure: bytes in, properties out. It does not know the session's state, so it
// never reports whether a command is legal; the backend refuses. It verifies only as much
// syntax as the properties depend on. Head and Properties point into the caller's buffer and
// are valid as long as it is; nothing else keeps the bytes.
package command

import (
	"bytes"
	"errors"
)

// Bounds of tag and name. A longer name is an unknown command.
const (
	MaxTag  = 126 // bytes; the same limit as before login
	maxName = 32  // bytes; counts both words of "UID …"
)

// Syntax errors in the tag or name. The session answers BAD itself and sends the backend
// nothing.
var (
	ErrTag     = errors.New("command has no valid tag")  // answered "* BAD"
	ErrCommand = errors.New("command has no valid name") // answered with Head.Tag
)

// Upstream is the connection on which a command must run.
type Upstream uint8

// The values of Upstream.
const (
	NoUpstream       Upstream = iota // none: the session answers itself
	AnyUpstream                      // any of the account's connections with the session's extensions enabled
	SelectedUpstream                 // the one with the session's mailbox selected; without a mailbox, as AnyUpstream
)

// ExpungePolicy is what the session does with pending expunges when it runs a command (RFC 3501
// §7.4.1, RFC 9051 §7.5.1).
type ExpungePolicy uint8

// The values of ExpungePolicy.
const (
	FlushExpunges    ExpungePolicy = iota // send them to the client, then send the command
	ForbidExpunges                        // do not send the command while any are pending
	TranslateNumbers                      // translate the numbers to UIDs, send the expunges to the client, then send the UID command
	DropExpunges                          // discard them: the command deselects the mailbox
)

// Spec is what the table has of one command. It is constant.
type Spec struct {
	Name          string // upper case; "UID FETCH" is one name; "" for an unknown command
	Upstream      Upstream
	ExpungePolicy ExpungePolicy
	Barrier       bool // runs alone: nothing outstanding before it, nothing sent until it completes
	Retryable     bool // safe to repeat when its outcome is unknown
	Pins          bool // changes connection state that cannot be restored on another connection
	Streams       bool // carries messages: never buffered whole
	Forbidden     bool // answered BAD by the session: it would change the protocol or the user
	Writes        bool // may change data; FETCH does not count although it may set \Seen
	NeedsMailbox  bool // legal only with a mailbox selected
	NoLiteral     bool // no argument can be a literal
	argSyntax     argSyntax
}

// Head is the tag and name of a command. It points into the line.
type Head struct {
	Tag     []byte // empty when the line has none that is safe to echo
	Spec    *Spec
	Args    []byte // rest of the first line after the name, without CRLF
	namePos int    // offset of the name
	argsPos int    // offset of Args
}

// Lookup parses the first line of a command, or the part of it that has arrived, with or
// without its CRLF. Errors: ErrTag and ErrCommand.
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

// findNameEnd returns the end of the name that begins at start: one word, or two when the first
// is UID.
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

// findWordEnd returns the end of the run of name characters (RFC 9051 §9, atom) that begins at
// i.
func findWordEnd(line []byte, i int) int {
	for i < len(line) && isAstringChar(line[i]) && line[i] != ']' {
		i++
	}
	return i
}

// findSpec returns the row for name, or &unknownSpec.
func findSpec(name []byte) *Spec {
	var buf [maxName]byte
	if s, ok := specByName[string(toUpper(&buf, name))]; ok {
		return s
	}
	return &unknownSpec
}

// toUpper returns b in upper case, stored in buf. It returns nil if b does not fit; no word
// that is looked up is that long.
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

// isValidTag verifies RFC 9051's tag: ASTRING-CHAR except "+".
func isValidTag(tag []byte) bool {
	for _, c := range tag {
		if !isAstringChar(c) || c == '+' {
			return false
		}
	}
	return 0 < len(tag) && len(tag) <= MaxTag
}

// isAstringChar reports whether c is RFC 9051's ASTRING-CHAR.
func isAstringChar(c byte) bool {
	switch c {
	case '(', ')', '{', '%', '*', '"', '\\':
		return false
	}
	return 0x20 < c && c < 0x7f
}
