// Package parking keeps idle connections cheap. A BufferedConn holds buffers only while
// mail flows. ReleaseBuffers frees those that crypto/tls would keep. A Poller waits for
// many sockets without a goroutine for each.
//
// The package does not interpret bytes, sets no lasting deadline and closes nothing.
// Callers own the connections and read each from one goroutine at a time. A BufferPool and
// a Poller are shared by all sessions.
package parking

import (
	"crypto/tls"
	"net"
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
