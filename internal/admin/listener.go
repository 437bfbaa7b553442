package admin

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"
)

// boundedListener is a listener with at most maxConns connections at a time. When it
// is full, a new connection replaces one that is not being served. Such a connection
// waits for a request, or its client is slow to send the rest of one or to read the
// answer. A connection whose request is being served is not replaced.
type boundedListener struct {
	net.Listener

	// Set once.
	slotFreed chan struct{} // a connection has ended, or is idle again
	closed    chan struct{}
	once      sync.Once

	mu sync.Mutex
	// Guarded by mu.
	conns    map[*boundedConn]struct{} // at most maxConns
	requests int                       // requests for other paths than health and readiness; at most maxRequests
}

func newBoundedListener(l net.Listener) *boundedListener {
	return &boundedListener{
		Listener: l, slotFreed: make(chan struct{}, 1), closed: make(chan struct{}), conns: make(map[*boundedConn]struct{}, maxConns),
	}
}

// Accept returns the next connection once there is a slot for it.
func (b *boundedListener) Accept() (net.Conn, error) {
	conn, err := b.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c := &boundedConn{Conn: conn, listener: b, clientNet: clientNet(conn.RemoteAddr().String()), waitingSince: time.Now()}
	if local, ok := conn.(*net.UnixConn); ok {
		c.peerName = peerName(local)
	}
	for !b.addConn(c) {
		select {
		case <-b.slotFreed:
		case <-b.closed:
			_ = conn.Close()
			return nil, net.ErrClosed
		}
	}
	return c, nil
}

// addConn acquires a slot for c, if necessary that of an idle connection.
func (b *boundedListener) addConn(c *boundedConn) bool {
	b.mu.Lock()
	var evicted *boundedConn
	if len(b.conns) >= maxConns {
		if evicted = b.longestIdle(); evicted == nil {
			b.mu.Unlock()
			return false
		}
		b.removeConn(evicted)
	}
	b.conns[c] = struct{}{}
	b.mu.Unlock()
	if evicted != nil {
		_ = evicted.Conn.Close()
	}
	return true
}

// longestIdle returns the connection that has been idle longest, among those of the
// network with the most connections: a client that opens many connections replaces
// its own. It returns nil if all are being served. mu is held.
func (b *boundedListener) longestIdle() (found *boundedConn) {
	perNet := make(map[netip.Prefix]int, len(b.conns))
	for c := range b.conns {
		perNet[c.clientNet]++
	}
	for c := range b.conns {
		switch {
		case c.serving:
		case found == nil, perNet[c.clientNet] > perNet[found.clientNet],
			perNet[c.clientNet] == perNet[found.clientNet] && c.waitingSince.Before(found.waitingSince):
			found = c
		}
	}
	return found
}

// removeConn removes c and releases its slots. mu is held.
func (b *boundedListener) removeConn(c *boundedConn) {
	delete(b.conns, c)
	b.releaseRequestSlot(c)
}

// releaseRequestSlot releases c's slot for requests, if it has one. mu is held.
func (b *boundedListener) releaseRequestSlot(c *boundedConn) {
	if c.hasRequestSlot {
		c.hasRequestSlot = false
		b.requests--
	}
}

// wakeAccept wakes Accept. One signal is enough, because Accept checks all
// connections.
func (b *boundedListener) wakeAccept() {
	select {
	case b.slotFreed <- struct{}{}:
	default:
	}
}

// Close ends Accept.
func (b *boundedListener) Close() error {
	b.once.Do(func() { close(b.closed) })
	return b.Listener.Close()
}

// boundedConn is a connection of a boundedListener. A nil boundedConn belongs to no
// listener and has no bounds.
type boundedConn struct {
	net.Conn

	// Set once.
	listener  *boundedListener
	clientNet netip.Prefix
	peerName  string // of a peer at the socket, which needs no token; else ""

	// Guarded by the listener's mu.
	waitingSince   time.Time // since it was opened, or its last request was served
	serving        bool      // a request is being served
	hasRequestSlot bool      // a request for another path than health and readiness is in progress
}

// Close closes the connection and releases its slot.
func (c *boundedConn) Close() error {
	err := c.Conn.Close() // first: open connections must not exceed the slots
	b := c.listener
	b.mu.Lock()
	b.removeConn(c)
	b.mu.Unlock()
	b.wakeAccept()
	return err
}

// beginRequest reports whether the request that was just read may be served. It may
// not if the connection has been replaced: the answer could not be sent.
func (c *boundedConn) beginRequest() bool {
	if c == nil {
		return true
	}
	b := c.listener
	b.mu.Lock()
	defer b.mu.Unlock()
	_, c.serving = b.conns[c]
	return c.serving
}

// acquireRequestSlot acquires one of the slots for requests that may take long. It
// is released when the answer is written.
func (c *boundedConn) acquireRequestSlot() bool {
	if c == nil {
		return true
	}
	b := c.listener
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.requests >= maxRequests {
		return false
	}
	b.requests++
	c.hasRequestSlot = true
	return true
}

// endRequest marks the request as served. The rest, reading the request body and
// writing buffered data, depends on the client.
func (c *boundedConn) endRequest() {
	if c == nil {
		return
	}
	b := c.listener
	b.mu.Lock()
	c.serving, c.waitingSince = false, time.Now()
	b.mu.Unlock()
	b.wakeAccept()
}

// markIdle marks the connection as waiting for its next request.
func (c *boundedConn) markIdle() {
	c.listener.mu.Lock()
	c.listener.releaseRequestSlot(c)
	c.listener.mu.Unlock()
	c.endRequest()
}

// peer returns who is at the other end of a connection to the socket; "" for other
// connections.
func (c *boundedConn) peer() string {
	if c == nil {
		return ""
	}
	return c.peerName
}

// connKey is the key of a request's connection in its context.
type connKey struct{}

// withConn is an http.Server's ConnContext.
func withConn(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, plainConn(c))
}

// connOf returns the connection of a request, or nil.
func connOf(r *http.Request) *boundedConn {
	c, _ := r.Context().Value(connKey{}).(*boundedConn)
	return c
}

// onStateChange is an http.Server's ConnState. The answer is written when the
// connection becomes idle, which is after the handler returns.
func onStateChange(c net.Conn, state http.ConnState) {
	if state == http.StateIdle {
		plainConn(c).markIdle()
	}
}

// plainConn returns the connection that boundedListener has returned, under TLS too.
func plainConn(c net.Conn) *boundedConn {
	if secured, ok := c.(*tls.Conn); ok {
		c = secured.NetConn()
	}
	return c.(*boundedConn) // boundedListener returns no other type
}
