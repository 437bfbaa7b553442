package parking

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
)

// maxLinger bounds what Linger reads.
const maxLinger = 1 << 20

// CloseWrite ends our direction of a connection only: with TLS's close_notify where
// there is TLS, then with a FIN, because not every peer ends on the first.
func CloseWrite(c net.Conn) error {
	var err error
	if t, ok := c.(*tls.Conn); ok {
		err = t.CloseWrite()
	}
	h, ok := TCP(c).(interface{ CloseWrite() error })
	if !ok {
		return errors.Join(err, errors.ErrUnsupported)
	}
	return errors.Join(err, h.CloseWrite())
}

// Linger hangs up and reads what the peer still sends, until it does so too: to
// close over unread bytes is to send a RST, which can overtake our last words.
// Whoever calls it bounds its time, and closes.
func Linger(c net.Conn) {
	_ = CloseWrite(c) // a peer that is gone need not hear it
	_, _ = io.CopyN(io.Discard, TCP(c), maxLinger)
}
