package parking

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
)

// maxLinger bounds the bytes that Linger reads.
const maxLinger = 1 << 20

// CloseWrite closes the write side of a connection. Under TLS it sends close_notify first.
// A FIN follows because some peers do not react to close_notify.
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

// Linger closes the write side and reads until the peer closes too. Closing with unread
// bytes would send a RST, which can overtake the last bytes written. The caller bounds the
// time and closes the connection.
func Linger(c net.Conn) {
	_ = CloseWrite(c) // the peer may already be gone
	_, _ = io.CopyN(io.Discard, TCP(c), maxLinger)
}
