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
	ErrBye              = errors.New("backend says goodbye")
	ErrProtocol         = errors.New("backend broke the protocol")
	ErrResponseTooLarge = errors.New("answer is larger than the limit")
)

// maxResponseBytes bounds the bytes of all responses to one command of ours, and of each one
// that is read whole.
const maxResponseBytes = 16 << 20

// maxAlertBytes bounds the bytes of what waits to be shown to people.
const maxAlertBytes = 4 << 10

// Conn is an upstream connection on which a user is logged in, once it is open.
type Conn struct {
	wire.Conn

	// Set once.
	user     identity.User
	caps     imap.Caps
	openedAt time.Time

	// Owned by whoever has the lease.
	Enabled      Extensions // what ENABLE, or a command that implies it, has switched on
	Selected     bool       // a mailbox is, or may be
	SentClientID string     // what the backend was last told of a client, as upstream.FormatID; "": nothing
	Broken       bool       // a command of ours came to no answer
	tagPrefix    string     // of our tags: nobody can guess it
	tagSerial    uint64
	doneSent     bool   // DONE was said last
	responseBuf  []byte // scratch: a response that did not fit the buffer
	alerts       []byte // bound: maxAlertBytes
}

// Open makes c, which is part of what lends it, the connection of a login.
func (c *Conn) Open(up *upstream.Conn, shared *wire.Resources) {
	c.user, c.caps, c.SentClientID, c.tagPrefix, c.openedAt = up.User(), up.Caps(), up.ID(), newTagPrefix(), time.Now()
	nc, rest := up.Detach()
	c.Conn.Open(nc, rest, imap.Responses, shared)
}

// User is whose connection this is.
func (c *Conn) User() identity.User { return c.user }

// Caps is the backend's list as of after the login.
func (c *Conn) Caps() imap.Caps { return c.caps }

// Age is the time since the login.
func (c *Conn) Age() time.Duration { return time.Since(c.openedAt) }

// TagPrefix begins every tag of ours. A client whose tag begins with it must not
// be served on this connection.
func (c *Conn) TagPrefix() string { return c.tagPrefix }

// ChangeTagPrefix takes another prefix, because a client happens to use this one.
func (c *Conn) ChangeTagPrefix() { c.tagPrefix = newTagPrefix() }

func newTagPrefix() string { return strings.Clone(rand.Text()[:13]) }

// Run sends a command of ours, without its tag and CRLF, and reads up to its
// tagged answer, which it returns whether OK or not. Nothing may be outstanding.
// Each untagged response, literals and CRLF included, goes to each, which must
// not keep it. A deadline bounds all of it; none remains.
//
// Errors: ErrBye, ErrProtocol, ErrResponseTooLarge, each's own, the socket's. The
// connection must then be closed.
func (c *Conn) Run(deadline time.Time, command string, onUntagged func(response []byte) error) (imap.Response, error) {
	tag := c.NextTag()
	c.Broken = true // until it is answered
	c.SetDeadline(deadline)
	defer c.SetDeadline(time.Time{})
	if _, err := c.Write([]byte(tag + " " + command + "\r\n")); err != nil {
		return imap.Response{}, fmt.Errorf("send: %w", err)
	}
	budget := maxResponseBytes
	for {
		response, err := c.ReadResponse(&budget)
		if err != nil {
			return imap.Response{}, err
		}
		if c.IsDoneRejection(response) {
			continue
		}
		if len(response) > 2 && response[0] == '*' && response[1] == ' ' && !imap.HasWordPrefix(response[2:], "BYE") {
			if err := onUntagged(response); err != nil {
				return imap.Response{}, err
			}
			continue
		}
		res, err := imap.ParseResponse(response[:len(response)-len("\r\n")])
		switch {
		case err != nil:
			return res, fmt.Errorf("%w: %w", ErrProtocol, err)
		case res.Kind == imap.Untagged:
			return res, fmt.Errorf("%w: %s", ErrBye, upstream.DescribeResponse(res))
		case res.Kind != imap.Tagged || res.Tag != tag:
			return res, fmt.Errorf("%w: an answer to nothing of ours", ErrProtocol)
		}
		c.Broken = false
		c.ClearDone()
		return res, nil
	}
}

// ReadUntagged reads one response that is not an answer to anything, as it may
// stand in a buffer. Errors as Run.
func (c *Conn) ReadUntagged() ([]byte, error) {
	budget := maxResponseBytes
	b, err := c.ReadResponse(&budget)
	switch {
	case err != nil:
		return nil, err
	case len(b) < 2 || b[0] != '*' || b[1] != ' ':
		return nil, fmt.Errorf("%w: an answer to nothing of ours", ErrProtocol)
	case imap.HasWordPrefix(b[2:], "BYE"):
		return nil, ErrBye
	}
	return b, nil
}

// ReadResponse reads one whole response of any kind, valid until the next one. What
// is left of a budget in bytes goes down by its length: ErrResponseTooLarge below zero. With
// ErrProtocol it is what was read of it.
func (c *Conn) ReadResponse(budget *int) ([]byte, error) {
	c.responseBuf = c.responseBuf[:0]
	for {
		s, ok, err := c.NextBuffered()
		if err != nil {
			return c.responseBuf, fmt.Errorf("%w: %w", ErrProtocol, err)
		}
		if !ok {
			if err := c.ReadMore(); err != nil {
				return nil, fmt.Errorf("read: %w", err)
			}
			continue
		}
		*budget -= len(s.Bytes)
		if allowed := min(*budget, maxResponseBytes-len(c.responseBuf)-len(s.Bytes)); allowed < 0 || s.Literal.Size > int64(allowed) {
			return nil, ErrResponseTooLarge
		}
		if s.End && len(c.responseBuf) == 0 {
			return s.Bytes, checkAmbiguous(s)
		}
		c.responseBuf = append(c.responseBuf, s.Bytes...)
		if s.End {
			return c.responseBuf, checkAmbiguous(s)
		}
	}
}

// IsAmbiguous says whether a line may announce a literal, or may not: nobody knows where
// the next response begins.
func IsAmbiguous(s imap.Segment) bool { return s.Unclosed && bytes.HasSuffix(s.Bytes, []byte("}\r\n")) }

func checkAmbiguous(s imap.Segment) error {
	if IsAmbiguous(s) {
		return fmt.Errorf("%w: a quoted string does not end", ErrProtocol)
	}
	return nil
}

// SendDone ends an IDLE of ours (RFC 2177).
func (c *Conn) SendDone() error {
	c.doneSent = true
	_, err := c.Write([]byte("DONE\r\n"))
	return err
}

// IsDoneRejection says whether a line is the refusal of a DONE that a backend, which had
// ended the IDLE itself meanwhile, has taken for a command. There is none behind the
// answer to a later command, which Answered tells.
func (c *Conn) IsDoneRejection(line []byte) bool {
	if !c.doneSent {
		return false
	}
	word, rest, _ := bytes.Cut(line, []byte(" "))
	if !bytes.EqualFold(word, []byte("DONE")) && string(word) != "*" || !imap.HasWordPrefix(rest, "BAD") || bytes.HasPrefix(rest, []byte("BAD [ALERT]")) {
		return false
	}
	c.doneSent = false
	return true
}

// ClearDone notes that a command was answered that was sent behind any DONE.
func (c *Conn) ClearDone() { c.doneSent = false }

// KeepAlert keeps a response with an ALERT, for whoever has the connection next, and
// says whether it is one.
func (c *Conn) KeepAlert(response []byte) bool {
	if !imap.IsAlert(response) {
		return false
	}
	if len(c.alerts)+len(response) <= maxAlertBytes {
		c.alerts = append(c.alerts, response...)
	}
	return true
}

// TakeAlerts gives what Heed has kept, once.
func (c *Conn) TakeAlerts() []byte {
	all := c.alerts
	c.alerts = nil
	return all
}

// ReleaseBuffers gives up what an idle connection does not need.
func (c *Conn) ReleaseBuffers() {
	c.responseBuf = nil
	c.Conn.ReleaseBuffers()
}

// NextTag is a tag that nobody has used on the connection.
func (c *Conn) NextTag() string {
	c.tagSerial++
	return c.tagPrefix + strconv.FormatUint(c.tagSerial, 36)
}
