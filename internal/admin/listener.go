package admin

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"
)

// bounded is a listener that has at most maxConns connections at a time. When it
// is full, a new connection takes the place of one that waits for a request, or
// whose client takes its time with the rest of one or with the answer. A connection
// whose request is being answered keeps its place.
type bounded struct {
	net.Listener

	// Set once.
	freed  chan struct{} // a connection has ended, or waits again
	closed chan struct{}
	once   sync.Once

	mu sync.Mutex
	// Guarded by mu.
	conns   map[*connection]struct{} // at most maxConns
	claimed int                      // requests for other pages than health and readiness; at most maxRequests
}

func newBounded(l net.Listener) *bounded {
	return &bounded{
		Listener: l, freed: make(chan struct{}, 1), closed: make(chan struct{}), conns: make(map[*connection]struct{}, maxConns),
	}
}

// Accept returns the next connection once there is a place for it.
func (b *bounded) Accept() (net.Conn, error) {
	conn, err := b.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c := &connection{Conn: conn, listener: b, from: network(conn.RemoteAddr().String()), since: time.Now()}
	for !b.place(c) {
		select {
		case <-b.freed:
		case <-b.closed:
			_ = conn.Close()
			return nil, net.ErrClosed
		}
	}
	return c, nil
}

// place takes a place for c, if need be that of a connection that waits.
func (b *bounded) place(c *connection) bool {
	b.mu.Lock()
	var evicted *connection
	if len(b.conns) >= maxConns {
		if evicted = b.longestIdle(); evicted == nil {
			b.mu.Unlock()
			return false
		}
		b.remove(evicted)
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
func (b *bounded) longestIdle() (found *connection) {
	count := make(map[netip.Prefix]int, len(b.conns))
	for c := range b.conns {
		count[c.from]++
	}
	for c := range b.conns {
		switch {
		case c.answering:
		case found == nil, count[c.from] > count[found.from],
			count[c.from] == count[found.from] && c.since.Before(found.since):
			found = c
		}
	}
	return found
}

// remove takes c off the list and frees what it has claimed. mu is held.
func (b *bounded) remove(c *connection) {
	delete(b.conns, c)
	b.release(c)
}

// release ends c's claim on the places for requests. mu is held.
func (b *bounded) release(c *connection) {
	if c.claimed {
		c.claimed = false
		b.claimed--
	}
}

// signal wakes Accept. One signal is enough: it looks at all connections.
func (b *bounded) signal() {
	select {
	case b.freed <- struct{}{}:
	default:
	}
}

// Close ends Accept.
func (b *bounded) Close() error {
	b.once.Do(func() { close(b.closed) })
	return b.Listener.Close()
}

// connection is one of the connections of a bounded listener. A nil connection
// has every right: it belongs to no listener.
type connection struct {
	net.Conn

	// Set once.
	listener *bounded
	from     netip.Prefix

	// Guarded by the listener's mu.
	since     time.Time // when it began to wait for a request, or its answer was given
	answering bool      // the answer to a request is being made
	claimed   bool      // a request for another page than health and readiness is not yet done with
}

// Close closes the connection and gives its place to another.
func (c *connection) Close() error {
	err := c.Conn.Close() // first: there are never more open than places
	b := c.listener
	b.mu.Lock()
	b.remove(c)
	b.mu.Unlock()
	b.signal()
	return err
}

// begin reports whether the request that was just read may be answered. It may not
// when the connection has lost its place: nobody would hear the answer.
func (c *connection) begin() bool {
	if c == nil {
		return true
	}
	b := c.listener
	b.mu.Lock()
	defer b.mu.Unlock()
	_, c.answering = b.conns[c]
	return c.answering
}

// claim takes one of the places for requests that may take long. It is given back
// when the answer is written.
func (c *connection) claim() bool {
	if c == nil {
		return true
	}
	b := c.listener
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.claimed >= maxRequests {
		return false
	}
	b.claimed++
	c.claimed = true
	return true
}

// answered notes that the answer has been given. What is left, reading the rest of
// the request and writing what is buffered, takes as long as the client wants.
func (c *connection) answered() {
	if c == nil {
		return
	}
	b := c.listener
	b.mu.Lock()
	c.answering, c.since = false, time.Now()
	b.mu.Unlock()
	b.signal()
}

// wait notes that the connection waits for its next request.
func (c *connection) wait() {
	b := c.listener
	b.mu.Lock()
	c.answering, c.since = false, time.Now()
	b.release(c)
	b.mu.Unlock()
	b.signal()
}

// connectionKey is the key of a request's connection in its context.
type connectionKey struct{}

// withConnection is a http.Server's ConnContext.
func withConnection(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, connectionKey{}, c)
}

// connectionOf returns the connection that a request came by, or nil.
func connectionOf(r *http.Request) *connection {
	c, _ := r.Context().Value(connectionKey{}).(*connection)
	return c
}

// watchState is a http.Server's ConnState: the answer is written when the
// connection is idle, which is later than the end of the request's function.
func watchState(c net.Conn, state http.ConnState) {
	if state == http.StateIdle {
		c.(*connection).wait() // bounded makes no others
	}
}
