// Package faultproxy is a TCP proxy for tests that breaks what passes through
// it: it delays, slows, slices, swallows, corrupts and injects bytes, closes
// half of a connection, resets it, stops reading, and refuses to accept.
//
// It counts bytes and knows nothing of what they mean. The test that started a
// Proxy owns it and may change its rules at any time; the change reaches the
// connections that exist. It is gone, with all connections, when the test ends.
package faultproxy

import (
	"errors"
	"net"
	"sync"
	"testing"
	"time"

	"imapgate/internal/testbed"
)

const (
	// dialTime bounds the connection to the target.
	dialTime = 10 * time.Second
	// listenTries and listenPause: a port given up may for a moment be the local
	// end of somebody else's connection.
	listenTries = 100
	listenPause = 20 * time.Millisecond
)

// Direction is one of the two ways through the proxy.
type Direction int

// The two directions.
const (
	ToTarget Direction = iota
	ToClient
)

// Door is what the proxy does with a client that connects.
type Door int

// The states of the door.
const (
	Open   Door = iota // connect it to the target
	Mute               // accept it, never read, never say anything
	Closed             // refuse it: nobody listens
)

// Proxy is a running fault proxy.
type Proxy struct {
	// Set once.
	t       testing.TB
	target  string
	address string
	port    testbed.KeptPorts
	running sync.WaitGroup // accept loops and links

	// Guarded by mu.
	mu       sync.Mutex
	door     Door
	listener net.Listener // nil while closed
	rules    [2]*Rules    // by Direction; never changed in place
	changed  chan struct{}
	links    map[*link]struct{} // as many as the test opens
	ended    bool
}

// Start listens on a loopback port the kernel chose and passes everything to
// target until it is told otherwise.
func Start(t testing.TB, target string) *Proxy {
	t.Helper()
	p := &Proxy{
		t: t, target: target, links: map[*link]struct{}{},
		rules: [2]*Rules{{}, {}}, changed: make(chan struct{}),
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("start a fault proxy: %v", err)
	}
	p.address, p.port.Numbers = l.Addr().String(), []int{l.Addr().(*net.TCPAddr).Port}
	p.listen(l)
	t.Cleanup(p.Close)
	return p
}

// Address is where clients connect, as host:port.
func (p *Proxy) Address() string { return p.address }

// Set replaces the rules of a direction, for new connections and for those that
// exist. A fault whose byte has passed already happens at once.
func (p *Proxy) Set(d Direction, r Rules) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rules[d] = &r
	close(p.changed)
	p.changed = make(chan struct{})
	for l := range p.links {
		l.wake()
	}
}

// SetDoor opens, mutes or closes the door. Connections that exist stay.
func (p *Proxy) SetDoor(d Door) {
	p.t.Helper()
	p.mu.Lock()
	p.door = d
	listener := p.listener
	if d == Closed {
		p.listener = nil
	}
	p.mu.Unlock()
	switch {
	case d == Closed && listener != nil:
		_ = listener.Close()
		p.port.Hold(p.t)
	case d != Closed && listener == nil:
		p.reopen()
	}
}

// Reset ends every connection with a RST on both sides.
func (p *Proxy) Reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for l := range p.links {
		l.reset()
	}
}

// Links is how many connections exist.
func (p *Proxy) Links() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.links)
}

// Close ends the proxy and all connections and waits for them. It may be called
// again.
func (p *Proxy) Close() {
	p.mu.Lock()
	p.ended = true
	if p.listener != nil {
		_ = p.listener.Close()
		p.listener = nil
	}
	for l := range p.links {
		l.reset()
	}
	p.mu.Unlock()
	p.running.Wait()
}

// reopen listens on the old port again.
func (p *Proxy) reopen() {
	p.t.Helper()
	defer p.port.Release()
	pause := time.NewTicker(listenPause)
	defer pause.Stop()
	var err error
	for range listenTries {
		var l net.Listener
		if l, err = net.Listen("tcp", p.address); err == nil {
			p.listen(l)
			return
		}
		<-pause.C
	}
	p.t.Fatalf("open the door of a fault proxy again: %v", err)
}

// listen starts to accept from l.
func (p *Proxy) listen(l net.Listener) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.listener = l
	p.running.Go(func() { p.accept(l) })
}

// accept takes clients; it ends when the listener is closed.
func (p *Proxy) accept(listener net.Listener) {
	for {
		conn, err := listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // the client left before it was accepted
		}
		if l := p.admit(conn.(*net.TCPConn)); l != nil {
			p.running.Go(l.serve)
		}
	}
}

// admit makes the link of a client, or nil when the proxy has ended.
func (p *Proxy) admit(client *net.TCPConn) *link {
	p.mu.Lock()
	defer p.mu.Unlock()
	l := &link{proxy: p, mute: p.door == Mute, client: client, gone: make(chan struct{})}
	if p.ended {
		l.reset()
		return nil
	}
	p.links[l] = struct{}{}
	return l
}

// forget takes an ended link off the list.
func (p *Proxy) forget(l *link) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.links, l)
}

// current is the rules of a direction and a channel that is closed when any
// rules change.
func (p *Proxy) current(d Direction) (*Rules, <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.rules[d], p.changed
}
