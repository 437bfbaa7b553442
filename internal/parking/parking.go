// Package parking keeps idle connections cheap. A BufferedConn holds buffers only while
// mail flows. ReleaseBuffers frees those that crypto/tls would keep. A Poller waits for
// many sockets without a goroutine for each.
//
// The package does not interpret bytes, sets no lasting deadline and closes nothing.
// Callers own the connections and read each from one goroutine at a time. A BufferPool and
// a Poller are shared by all sessions.
package parking

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"reflect"
)

// TCP returns the innermost socket of a connection.
func TCP(c net.Conn) net.Conn {
	for {
		outer, ok := c.(interface{ NetConn() net.Conn })
		if !ok {
			return c
		}
		c = outer.NetConn()
	}
}

// bufferedConnOf returns the BufferedConn under a TLS connection, or nil.
func bufferedConnOf(c net.Conn) *BufferedConn {
	if t, ok := c.(*tls.Conn); ok {
		s, _ := t.NetConn().(*BufferedConn)
		return s
	}
	return nil
}

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

// ReleaseBuffers frees the buffers that crypto/tls keeps for reading in every idle session:
// 3.5 KB with the ClientHello, 20 KB after an upload. It also ends reading ahead.
// crypto/tls has no API for this, so the two fields are found by name and type. Fields that
// differ or hold bytes are left alone. TestReleaseBuffersFreesCryptoTLSBuffers fails if Go
// changes them.
//
// Only reads use these fields: the reading goroutine calls ReleaseBuffers between two
// reads.
func ReleaseBuffers(c net.Conn) {
	t, ok := c.(*tls.Conn)
	if !ok {
		return
	}
	if s := bufferedConnOf(c); s != nil && len(s.readBuf) == 0 {
		s.readBuf = nil
		if s.aheadBuf != nil {
			clear(s.aheadBuf[:])
			s.aheadPool.Put(s.aheadBuf)
			s.aheadBuf = nil
		}
	}
	conn := reflect.ValueOf(t).Elem()
	for _, name := range [...]string{"rawInput", "hand"} {
		field := conn.FieldByName(name)
		if !field.IsValid() || field.Type() != reflect.TypeFor[bytes.Buffer]() {
			return
		}
		if b := (*bytes.Buffer)(field.Addr().UnsafePointer()); b.Len() == 0 {
			*b = bytes.Buffer{}
		}
	}
}
