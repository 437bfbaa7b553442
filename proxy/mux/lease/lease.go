// Package lease is one upstream connection as its one user has it: what is said
// on it is framed, and commands of the gateway's own can be run on it in turn
// with the client's.
//
// It does not know whose commands the others are, when a command of ours may be
// run (nothing may be outstanding), or where connections wait (proxy/mux/pool).
// A Conn belongs to one goroutine.
package lease

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"imapgate/internal/identity"
	"imapgate/internal/imap"
	"imapgate/proxy/mux/wire"
	"imapgate/proxy/upstream"
)

// What a backend can do wrong while it answers us. After any of them, and any
// error of the socket, the connection is of no more use.
var (
	ErrBye      = errors.New("backend says goodbye")
	ErrProtocol = errors.New("backend broke the protocol")
	ErrTooMuch  = errors.New("answer is larger than the limit")
)

// maxAnswer bounds the bytes of all responses to one command of ours, and of each one
// that is read whole.
const maxAnswer = 16 << 20

// maxAlerts bounds the bytes of what waits to be shown to people.
const maxAlerts = 4 << 10

// Conn is an upstream connection on which a user is logged in, once it is open.
type Conn struct {
	wire.Wire

	// Set once.
	user identity.User
	caps imap.Caps
	born time.Time

	// Owned by whoever has the lease.
	Enabled  Enabled // what ENABLE, or a command that implies it, has switched on
	Selected bool    // a mailbox is, or may be
	ID       string  // what the backend was last told of a client, as upstream.OwnID; "": nothing
	Spoiled  bool    // a command of ours came to no answer
	prefix   string  // of our tags: nobody can guess it
	serial   uint64
	done     bool   // DONE was said last
	answer   []byte // scratch: a response that did not fit the buffer
	alerts   []byte // bound: maxAlerts
}

// Open makes c, which is part of what lends it, the connection of a login.
func (c *Conn) Open(up *upstream.Conn, shared *wire.Shared) {
	c.user, c.caps, c.ID, c.prefix, c.born = up.User(), up.Caps(), up.ID(), newPrefix(), time.Now()
	nc, rest := up.Detach()
	c.Wire.Open(nc, rest, imap.Responses, shared)
}

// User is whose connection this is.
func (c *Conn) User() identity.User { return c.user }

// Caps is the backend's list as of after the login.
func (c *Conn) Caps() imap.Caps { return c.caps }

// Age is the time since the login.
func (c *Conn) Age() time.Duration { return time.Since(c.born) }

// Prefix begins every tag of ours. A client whose tag begins with it must not
// be served on this connection.
func (c *Conn) Prefix() string { return c.prefix }

// Rename takes another prefix, because a client happens to use this one.
func (c *Conn) Rename() { c.prefix = newPrefix() }

func newPrefix() string { return strings.Clone(rand.Text()[:13]) }

// Run sends a command of ours, without its tag and CRLF, and reads up to its
// tagged answer, which it returns whether OK or not. Nothing may be outstanding.
// Each untagged response, literals and CRLF included, goes to each, which must
// not keep it. A deadline bounds all of it; none remains.
//
// Errors: ErrBye, ErrProtocol, ErrTooMuch, each's own, the socket's. The
// connection must then be closed.
func (c *Conn) Run(deadline time.Time, command string, each func(response []byte) error) (imap.Response, error) {
	tag := c.Tag()
	c.Spoiled = true // until it is answered
	c.Limit(deadline)
	defer c.Limit(time.Time{})
	if _, err := c.Write([]byte(tag + " " + command + "\r\n")); err != nil {
		return imap.Response{}, fmt.Errorf("send: %w", err)
	}
	left := maxAnswer
	for {
		b, err := c.Response(&left)
		if err != nil {
			return imap.Response{}, err
		}
		if c.RefusesDone(b) {
			continue
		}
		if len(b) > 2 && b[0] == '*' && b[1] == ' ' && !imap.HasWord(b[2:], "BYE") {
			if err := each(b); err != nil {
				return imap.Response{}, err
			}
			continue
		}
		res, err := imap.ParseResponse(b[:len(b)-len("\r\n")])
		switch {
		case err != nil:
			return res, fmt.Errorf("%w: %w", ErrProtocol, err)
		case res.Kind == imap.Untagged:
			return res, fmt.Errorf("%w: %s", ErrBye, upstream.Describe(res))
		case res.Kind != imap.Tagged || res.Tag != tag:
			return res, fmt.Errorf("%w: an answer to nothing of ours", ErrProtocol)
		}
		c.Spoiled = false
		c.Answered()
		return res, nil
	}
}

// Untagged reads one response that is not an answer to anything, as it may
// stand in a buffer. Errors as Run.
func (c *Conn) Untagged() ([]byte, error) {
	left := maxAnswer
	b, err := c.Response(&left)
	switch {
	case err != nil:
		return nil, err
	case len(b) < 2 || b[0] != '*' || b[1] != ' ':
		return nil, fmt.Errorf("%w: an answer to nothing of ours", ErrProtocol)
	case imap.HasWord(b[2:], "BYE"):
		return nil, ErrBye
	}
	return b, nil
}

// Response reads one whole response of any kind, valid until the next one. What
// is left of a budget in bytes goes down by its length: ErrTooMuch below zero. With
// ErrProtocol it is what was read of it.
func (c *Conn) Response(left *int) ([]byte, error) {
	c.answer = c.answer[:0]
	for {
		s, ok, err := c.Ready()
		if err != nil {
			return c.answer, fmt.Errorf("%w: %w", ErrProtocol, err)
		}
		if !ok {
			if err := c.More(); err != nil {
				return nil, fmt.Errorf("read: %w", err)
			}
			continue
		}
		*left -= len(s.Bytes)
		if room := min(*left, maxAnswer-len(c.answer)-len(s.Bytes)); room < 0 || s.Literal.Size > int64(room) {
			return nil, ErrTooMuch
		}
		if s.End && len(c.answer) == 0 {
			return s.Bytes, ambiguous(s)
		}
		c.answer = append(c.answer, s.Bytes...)
		if s.End {
			return c.answer, ambiguous(s)
		}
	}
}

// Ambiguous says whether a line may announce a literal, or may not: nobody knows where
// the next response begins.
func Ambiguous(s imap.Segment) bool { return s.Unclosed && bytes.HasSuffix(s.Bytes, []byte("}\r\n")) }

func ambiguous(s imap.Segment) error {
	if Ambiguous(s) {
		return fmt.Errorf("%w: a quoted string does not end", ErrProtocol)
	}
	return nil
}

// Done ends an IDLE of ours (RFC 2177).
func (c *Conn) Done() error {
	c.done = true
	_, err := c.Write([]byte("DONE\r\n"))
	return err
}

// RefusesDone says whether a line is the refusal of a DONE that a backend, which had
// ended the IDLE itself meanwhile, has taken for a command. There is none behind the
// answer to a later command, which Answered tells.
func (c *Conn) RefusesDone(line []byte) bool {
	if !c.done {
		return false
	}
	word, rest, _ := bytes.Cut(line, []byte(" "))
	if !bytes.EqualFold(word, []byte("DONE")) && string(word) != "*" || !imap.HasWord(rest, "BAD") || bytes.HasPrefix(rest, []byte("BAD [ALERT]")) {
		return false
	}
	c.done = false
	return true
}

// Answered notes that a command was answered that was sent behind any DONE.
func (c *Conn) Answered() { c.done = false }

// Heed keeps a response with an ALERT, for whoever has the connection next, and
// says whether it is one.
func (c *Conn) Heed(response []byte) bool {
	if !imap.IsAlert(response) {
		return false
	}
	if len(c.alerts)+len(response) <= maxAlerts {
		c.alerts = append(c.alerts, response...)
	}
	return true
}

// Alerts gives what Heed has kept, once.
func (c *Conn) Alerts() []byte {
	all := c.alerts
	c.alerts = nil
	return all
}

// Relax gives up what an idle connection does not need.
func (c *Conn) Relax() {
	c.answer = nil
	c.Wire.Relax()
}

// Tag is a tag that nobody has used on the connection.
func (c *Conn) Tag() string {
	c.serial++
	return c.prefix + strconv.FormatUint(c.serial, 36)
}
