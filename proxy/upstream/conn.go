package upstream

import (
	"bytes"
	"fmt"
	"net"

	"imapgate/internal/descriptors"
	"imapgate/internal/identity"
	"imapgate/internal/imap"
)

// Conn is a connection to a backend on which a user is logged in. Only
// Backend.Login makes one. It belongs to one goroutine.
type Conn struct {
	// Set once.
	user identity.User
	caps imap.Caps
	ok   OK
	id   string

	sockets *descriptors.Counter // of Backend.Sockets

	// Owned by the caller of Login.
	nc       net.Conn // nil once detached or closed
	buffered []byte
}

// User is whose connection this is, for the relay to compare with its client's.
func (c *Conn) User() identity.User { return c.user }

// Caps is the backend's list as of after the login.
func (c *Conn) Caps() imap.Caps { return c.caps }

// OK is how the backend let the user in.
func (c *Conn) OK() OK { return c.ok }

// OK is what a backend has said up to its tagged OK, fit to be forwarded.
type OK struct {
	Alerts []Alert // before it
	Code   string  // "" unless it is meant for the user, as ALERT is; CAPABILITY is in Caps
	Text   string
}

// IsZero reports whether no backend has said anything.
func (o OK) IsZero() bool { return len(o.Alerts) == 0 && o.Code == "" && o.Text == "" }

// AppendUntagged appends what of it is for the user's eyes, as untagged responses
// to dst.
func (o OK) AppendUntagged(dst []byte) []byte {
	dst = AppendAlerts(dst, o.Alerts)
	if o.Code != "" {
		dst = fmt.Appendf(dst, "* OK [%s] %s\r\n", o.Code, o.Text)
	}
	return dst
}

// Alert is an untagged status response with the code ALERT (RFC 9051 §7.1).
type Alert struct {
	Name string // OK, NO or BAD
	Text string // printable ASCII, 1 to maxText bytes
}

// AppendAlerts appends untagged responses to dst.
func AppendAlerts(dst []byte, alerts []Alert) []byte {
	for _, a := range alerts {
		dst = fmt.Appendf(dst, "* %s [ALERT] %s\r\n", a.Name, a.Text)
	}
	return dst
}

// ID is what the backend was told with the login of the client, as Client.ForwardedID; ""
// where it was told nothing.
func (c *Conn) ID() string { return c.id }

// Detach hands the connection on, without a deadline. rest is what the backend
// said behind its OK: whole or begun untagged responses, which are this user's
// and go to the client behind its own OK, before anything read from the
// connection. Close does nothing afterwards: whoever closes nc tells Backend.Sockets.
func (c *Conn) Detach() (nc net.Conn, buffered []byte) {
	nc, buffered = c.nc, c.buffered
	c.nc, c.buffered = nil, nil
	return nc, buffered
}

// Close ends the connection, unless it was detached.
func (c *Conn) Close() error {
	if c.nc == nil {
		return nil
	}
	nc := c.nc
	c.nc, c.buffered = nil, nil
	err := nc.Close()
	c.sockets.RemoveBackend()
	return err
}

// isOnlyUntagged says whether every line of rest, the last of which may be
// unfinished, is an untagged response. Before the client's first command a
// backend has nothing else to say: a tagged line would be taken for the answer
// to a command that is yet to come.
func isOnlyUntagged(rest []byte) bool {
	for len(rest) > 0 {
		line, next, _ := bytes.Cut(rest, []byte("\n"))
		if !bytes.HasPrefix(line, []byte("* ")) && string(line) != "*" {
			return false
		}
		rest = next
	}
	return true
}
