package admin

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"
)

// boundedListener is a listener that has at most maxConns connections at a time. When it
// is full, a new connection takes the place of one that waits for a request, or
// whose client takes its time with the rest of one or with the answer. A connection
// whose request is being answered keeps its place.
type boundedListener struct {
	net.Listener

	// Set once.
	slotFreed chan struct{} // a connection has ended, or waits again
	closed    chan struct{}
	once      sync.Once

	mu sync.Mutex
	// Guarded by mu.
	conns    map[*boundedConn]struct{} // at most maxConns
	requests int                       // requests for other pages than health and readiness; at most maxRequests
}

func newBoundedListener(l net.Listener) *boundedListener {
	return &boundedListener{
		Listener: l, slotFreed: make(chan struct{}, 1), closed: make(chan struct{}), conns: make(map[*boundedConn]struct{}, maxConns),
	}
}

// Accept returns the next connection once there is a place for it.
func (b *boundedListener) Accept() (net.Conn, error) {
	conn, err := b.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c := &boundedConn{Conn: conn, listener: b, clientNet: clientNet(conn.RemoteAddr().String()), waitingSince: time.Now()}
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

// addConn takes a place for c, if need be that of a connection that waits.
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

// longestIdle returns the connection that has waited longest for a request, among
// those of the network with the most connections: one client that opens many
// closes its own. It returns nil when every request is being answered. mu is held.
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

// removeConn takes c off the list and frees what it has claimed. mu is held.
func (b *boundedListener) removeConn(c *boundedConn) {
	delete(b.conns, c)
	b.releaseRequestSlot(c)
}

// releaseRequestSlot ends c's claim on the places for requests. mu is held.
func (b *boundedListener) releaseRequestSlot(c *boundedConn) {
	if c.hasRequestSlot {
		c.hasRequestSlot = false
		b.requests--
	}
}

// wakeAccept wakes Accept. One signal is enough: it looks at all connections.
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

// boundedConn is one of the connections of a bounded listener. A nil connection
// has every right: it belongs to no listener.
type boundedConn struct {
	net.Conn

	// Set once.
	listener  *boundedListener
	clientNet netip.Prefix

	// Guarded by the listener's mu.
	waitingSince   time.Time // when it began to wait for a request, or its answer was given
	serving        bool      // the answer to a request is being made
	hasRequestSlot bool      // a request for another page than health and readiness is not yet done with
}

// Close closes the connection and gives its place to another.
func (c *boundedConn) Close() error {
	err := c.Conn.Close() // first: there are never more open than places
	b := c.listener
	b.mu.Lock()
	b.removeConn(c)
	b.mu.Unlock()
	b.wakeAccept()
	return err
}

// beginRequest reports whether the request that was just read may be answered. It may not
// when the connection has lost its place: nobody would hear the answer.
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

// acquireRequestSlot takes one of the places for requests that may take long. It is given back
// when the answer is written.
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

// endRequest notes that the answer has been given. What is left, reading the rest of
// the request and writing what is buffered, takes as long as the client wants.
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

// markIdle notes that the connection waits for its next request.
func (c *boundedConn) markIdle() {
	b := c.listener
	b.mu.Lock()
	c.serving, c.waitingSince = false, time.Now()
	b.releaseRequestSlot(c)
	b.mu.Unlock()
	b.wakeAccept()
}

// connKey is the key of a request's connection in its context.
type connKey struct{}

// withConn is a http.Server's ConnContext.
func withConn(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, c)
}

// connOf returns the connection that a request came by, or nil.
func connOf(r *http.Request) *boundedConn {
	c, _ := r.Context().Value(connKey{}).(*boundedConn)
	return c
}

// onStateChange is a http.Server's ConnState: the answer is written when the
// connection is idle, which is later than the end of the request's function.
func onStateChange(c net.Conn, state http.ConnState) {
	if state == http.StateIdle {
		c.(*boundedConn).markIdle() // bounded makes no others
	}
}
