package upstream

import (
	"bytes"
	"fmt"
	"net"

	"imapgate/internal/identity"
	"imapgate/internal/imap"
)

// Conn is a connection to a backend with a logged-in user. Only Backend.Login returns one. It
// is not safe for concurrent use.
type Conn struct {
	// Set once.
	user identity.User
	caps imap.Caps
	ok   OK
	id   string

	hold *Hold // its place at the address

	// Owned by the caller of Login.
	nc       net.Conn // nil once detached or closed
	buffered []byte
}

// User returns the user of the connection, for the relay to compare with its client's.
func (c *Conn) User() identity.User { return c.user }

// Caps returns the backend's capabilities after the login.
func (c *Conn) Caps() imap.Caps { return c.caps }

// OK returns the backend's answer to the login.
func (c *Conn) OK() OK { return c.ok }

// OK is what a backend sent up to its tagged OK, as far as it may be forwarded.
type OK struct {
	Alerts []Alert // before the OK
	Code   string  // "" unless it is for the user, as ALERT is; CAPABILITY is in Caps
	Text   string
}

// IsZero reports whether o is empty.
func (o OK) IsZero() bool { return len(o.Alerts) == 0 && o.Code == "" && o.Text == "" }

// AppendUntagged appends the parts for the user to dst, as untagged responses.
func (o OK) AppendUntagged(dst []byte) []byte {
	for _, a := range o.Alerts {
		dst = fmt.Appendf(dst, "* %s [ALERT] %s\r\n", a.Name, a.Text)
	}
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

// ID returns the pairs sent to the backend for the client, as Client.ForwardedID does; "" if
// none were sent.
func (c *Conn) ID() string { return c.id }

// Detach hands over the connection, without a deadline. buffered is what the backend sent
// after its OK: untagged responses, the last of which may be incomplete. They belong to this
// user and go to the client after its own OK, before anything read from nc. Close does nothing
// after Detach; the caller closes nc and then releases hold.
func (c *Conn) Detach() (nc net.Conn, buffered []byte, hold *Hold) {
	nc, buffered = c.nc, c.buffered
	c.nc, c.buffered = nil, nil
	return nc, buffered, c.hold
}

// Address returns host:port of the address that it is connected to.
func (c *Conn) Address() string { return c.hold.Address() }

// Close ends the connection, unless it was detached.
func (c *Conn) Close() error {
	if c.nc == nil {
		return nil
	}
	nc, _, hold := c.Detach()
	err := nc.Close()
	hold.Release()
	return err
}

// isOnlyUntagged reports whether every line is an untagged response; the last may be
// incomplete. Before the client's first command a backend may send nothing else: a tagged line
// would be taken for the answer to a later command.
func isOnlyUntagged(rest []byte) bool {
	for line := range bytes.Lines(rest) {
		if !bytes.HasPrefix(line, []byte("* ")) && string(bytes.TrimSuffix(line, []byte("\n"))) != "*" {
			return false
		}
	}
	return true
}
