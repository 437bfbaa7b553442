// Package lease is an upstream connection as its one session uses it: responses are framed, and
// the gateway can run its own commands between those of the client.
//
// The package does not know who sends the other commands, or when the gateway may run its own
// (nothing may be outstanding). proxy/relay/mux/pool keeps idle connections. A Conn belongs to one
// goroutine.
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
	"imapgate/proxy/relay/mux/wire"
	"imapgate/proxy/upstream"
)

// Errors of a backend's response. After any of them, or any socket error, the connection is
// unusable.
var (
	ErrBye              = errors.New("backend sent BYE")
	ErrProtocol         = errors.New("backend broke the protocol")
	ErrResponseTooLarge = errors.New("response is larger than the limit")
)

// maxResponseBytes bounds the bytes of all responses to one command of the gateway, and of each
// response that is read whole.
const maxResponseBytes = 16 << 20

// maxAlertBytes bounds the alerts not yet sent to the client, in bytes.
const maxAlertBytes = 4 << 10

// Conn is an upstream connection with a user logged in. It is valid after Open.
type Conn struct {
	wire.Conn

	// Set once.
	user     identity.User
	caps     imap.Caps
	openedAt time.Time
	hold     *upstream.Hold // its place at the address

	// Owned by the session that holds the lease, or by the pool.
	Enabled      imap.Extensions // extensions enabled by ENABLE or by a command that implies it
	Selected     bool            // a mailbox is, or may be, selected
	SentClientID string          // last ID arguments sent to the backend, as upstream.FormatID; "": none
	Broken       bool            // a command of the gateway was not answered
	tagPrefix    string          // random prefix of the gateway's tags
	tagSerial    uint64
	doneSent     bool   // DONE was sent, and no later command was answered
	responseBuf  []byte // scratch: a response larger than the Reader's buffer
	alerts       []byte // at most maxAlertBytes
}

// Open initializes c with the connection of a successful login, which it takes over.
func (c *Conn) Open(up *upstream.Conn, shared *wire.Resources) {
	c.user, c.caps, c.SentClientID, c.tagPrefix, c.openedAt = up.User(), up.Caps(), up.ID(), newTagPrefix(), time.Now()
	nc, rest, hold := up.Detach()
	c.hold = hold
	c.Conn.Open(nc, rest, imap.Responses, shared)
}

// Hold returns the connection's place at its address, which its owner releases when it is
// closed.
func (c *Conn) Hold() *upstream.Hold { return c.hold }

// User returns the user the connection is logged in as.
func (c *Conn) User() identity.User { return c.user }

// Caps returns the backend's capabilities as of the login.
func (c *Conn) Caps() imap.Caps { return c.caps }

// Age returns the time since the login.
func (c *Conn) Age() time.Duration { return time.Since(c.openedAt) }

// TagPrefix returns the prefix of the gateway's tags. A client whose tag begins with it must
// not be served on this connection.
func (c *Conn) TagPrefix() string { return c.tagPrefix }

// ChangeTagPrefix generates another prefix, because a client happens to use this one.
func (c *Conn) ChangeTagPrefix() { c.tagPrefix = newTagPrefix() }

func newTagPrefix() string { return strings.Clone(rand.Text()[:13]) }

// Run sends a command of the gateway, without tag and CRLF, and reads up to its tagged
// response. It returns that response, OK or not. Nothing may be outstanding. Each untagged
// response, literals and CRLF included, is passed to onUntagged, which must not keep it. The
// deadline bounds the whole exchange and is cleared afterwards.
//
// Errors: ErrBye, ErrProtocol, ErrResponseTooLarge, those of onUntagged and of the socket.
// After an error the connection must be closed.
func (c *Conn) Run(deadline time.Time, command string, onUntagged func(response []byte) error) (imap.Response, error) {
	tag := c.NextTag()
	c.Broken = true // until the response arrives
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
			return res, fmt.Errorf("%w: unexpected tagged or continuation response", ErrProtocol)
		}
		c.Broken = false
		c.ClearDone()
		return res, nil
	}
}

// ReadUntagged reads one untagged response, valid until the next read. Errors are those of Run.
func (c *Conn) ReadUntagged() ([]byte, error) {
	budget := maxResponseBytes
	b, err := c.ReadResponse(&budget)
	switch {
	case err != nil:
		return nil, err
	case len(b) < 2 || b[0] != '*' || b[1] != ' ':
		return nil, fmt.Errorf("%w: unexpected tagged or continuation response", ErrProtocol)
	case imap.HasWordPrefix(b[2:], "BYE"):
		return nil, ErrBye
	}
	return b, nil
}

// ReadResponse reads one whole response of any kind, valid until the next call. It subtracts
// the length from the budget, in bytes, and returns ErrResponseTooLarge below zero. With
// ErrProtocol it returns the part that was read.
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

// IsAmbiguous reports whether it is unclear if a line announces a literal, and so where the
// next response begins.
func IsAmbiguous(s imap.Segment) bool { return s.Unclosed && bytes.HasSuffix(s.Bytes, []byte("}\r\n")) }

func checkAmbiguous(s imap.Segment) error {
	if IsAmbiguous(s) {
		return fmt.Errorf("%w: unterminated quoted string", ErrProtocol)
	}
	return nil
}

// SendDone ends an IDLE of the gateway (RFC 2177).
func (c *Conn) SendDone() error {
	c.doneSent = true
	_, err := c.Write([]byte("DONE\r\n"))
	return err
}

// IsDoneRejection reports whether a line refuses a DONE that the backend read as a command,
// because it had ended the IDLE itself. No such line comes after the response to a later
// command: see ClearDone.
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

// ClearDone records that a command sent after any DONE was answered.
func (c *Conn) ClearDone() { c.doneSent = false }

// KeepAlert stores a response with an ALERT for the next session of the connection, and reports
// whether it is one. Alerts beyond maxAlertBytes are dropped.
func (c *Conn) KeepAlert(response []byte) bool {
	if !imap.IsAlert(response) {
		return false
	}
	if len(c.alerts)+len(response) <= maxAlertBytes {
		c.alerts = append(c.alerts, response...)
	}
	return true
}

// TakeAlerts returns and removes the responses stored by KeepAlert.
func (c *Conn) TakeAlerts() []byte {
	alerts := c.alerts
	c.alerts = nil
	return alerts
}

// ReleaseBuffers frees the buffers that an idle connection does not need.
func (c *Conn) ReleaseBuffers() {
	c.responseBuf = nil
	c.Conn.ReleaseBuffers()
}

// NextTag returns a tag not yet used on the connection.
func (c *Conn) NextTag() string {
	c.tagSerial++
	return c.tagPrefix + strconv.FormatUint(c.tagSerial, 36)
}
