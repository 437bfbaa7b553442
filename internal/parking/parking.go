// Package parking keeps connections cheap while nothing is said on them. A Socket
// holds buffers only while mail flows, Trim takes back those that crypto/tls
// would keep, and a Set waits for many sockets without a goroutine for each.
//
// It does not know what is said, sets no deadline that lasts, and closes
// nothing. Connections belong to the caller, who has one goroutine at a time
// that reads from each; Buffers and a Set are shared by all of its sessions.
package parking

import (
	"crypto/tls"
	"net"
)

// TCP is the innermost socket of a connection.
func TCP(c net.Conn) net.Conn {
	for {
		outer, ok := c.(interface{ NetConn() net.Conn })
		if !ok {
			return c
		}
		c = outer.NetConn()
	}
}

// bufferedConnOf is the Socket under a TLS connection, or nil.
func bufferedConnOf(c net.Conn) *BufferedConn {
	if t, ok := c.(*tls.Conn); ok {
		s, _ := t.NetConn().(*BufferedConn)
		return s
	}
	return nil
}
