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
	// dialTimeout bounds the connection to the target.
	dialTimeout = 10 * time.Second
	// maxListenAttempts and listenPause: a port given up may for a moment be the local
	// end of somebody else's connection.
	maxListenAttempts = 100
	listenPause       = 20 * time.Millisecond
)

// Direction is one of the two ways through the proxy.
type Direction int

// The two directions.
const (
	ToTarget Direction = iota
	ToClient
)

// AcceptMode is what the proxy does with a client that connects.
type AcceptMode int

// The states of the door.
const (
	Accept AcceptMode = iota // connect it to the target
	Hang                     // accept it, never read, never say anything
	Refuse                   // refuse it: nobody listens
)

// Proxy is a running fault proxy.
type Proxy struct {
	// Set once.
	t       testing.TB
	target  string
	address string
	port    testbed.ReservedPorts
	wg      sync.WaitGroup // accept loops and links

	// Guarded by mu.
	mu           sync.Mutex
	acceptMode   AcceptMode
	listener     net.Listener // nil while closed
	rules        [2]*Rules    // by Direction; never changed in place
	rulesChanged chan struct{}
	pairs        map[*connPair]struct{} // as many as the test opens
	closed       bool
}

// Start listens on a loopback port the kernel chose and passes everything to
// target until it is told otherwise.
func Start(t testing.TB, target string) *Proxy {
	t.Helper()
	p := &Proxy{
		t: t, target: target, pairs: map[*connPair]struct{}{},
		rules: [2]*Rules{{}, {}}, rulesChanged: make(chan struct{}),
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("start a fault proxy: %v", err)
	}
	p.address, p.port.Numbers = l.Addr().String(), []int{l.Addr().(*net.TCPAddr).Port}
	p.startAccepting(l)
	t.Cleanup(p.Close)
	return p
}

// Address is where clients connect, as host:port.
func (p *Proxy) Address() string { return p.address }

// SetRules replaces the rules of a direction, for new connections and for those that
// exist. A fault whose byte has passed already happens at once.
func (p *Proxy) SetRules(d Direction, r Rules) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rules[d] = &r
	close(p.rulesChanged)
	p.rulesChanged = make(chan struct{})
	for l := range p.pairs {
		l.interruptReads()
	}
}

// SetAcceptMode opens, mutes or closes the door. Connections that exist stay.
func (p *Proxy) SetAcceptMode(m AcceptMode) {
	p.t.Helper()
	p.mu.Lock()
	p.acceptMode = m
	listener := p.listener
	if m == Refuse {
		p.listener = nil
	}
	p.mu.Unlock()
	switch {
	case m == Refuse && listener != nil:
		_ = listener.Close()
		p.port.Reserve(p.t)
	case m != Refuse && listener == nil:
		p.listenAgain()
	}
}

// ResetConns ends every connection with a RST on both sides.
func (p *Proxy) ResetConns() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for l := range p.pairs {
		l.reset()
	}
}

// ConnCount is how many connections exist.
func (p *Proxy) ConnCount() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.pairs)
}

// Close ends the proxy and all connections and waits for them. It may be called
// again.
func (p *Proxy) Close() {
	p.mu.Lock()
	p.closed = true
	if p.listener != nil {
		_ = p.listener.Close()
		p.listener = nil
	}
	for l := range p.pairs {
		l.reset()
	}
	p.mu.Unlock()
	p.wg.Wait()
}

// listenAgain listens on the old port again.
func (p *Proxy) listenAgain() {
	p.t.Helper()
	defer p.port.Release()
	pause := time.NewTicker(listenPause)
	defer pause.Stop()
	var err error
	for range maxListenAttempts {
		var l net.Listener
		if l, err = net.Listen("tcp", p.address); err == nil {
			p.startAccepting(l)
			return
		}
		<-pause.C
	}
	p.t.Fatalf("open the door of a fault proxy again: %v", err)
}

// startAccepting starts to accept from l.
func (p *Proxy) startAccepting(l net.Listener) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.listener = l
	p.wg.Go(func() { p.acceptLoop(l) })
}

// acceptLoop takes clients; it ends when the listener is closed.
func (p *Proxy) acceptLoop(listener net.Listener) {
	for {
		conn, err := listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // the client left before it was accepted
		}
		if l := p.addPair(conn.(*net.TCPConn)); l != nil {
			p.wg.Go(l.serve)
		}
	}
}

// addPair makes the link of a client, or nil when the proxy has ended.
func (p *Proxy) addPair(client *net.TCPConn) *connPair {
	p.mu.Lock()
	defer p.mu.Unlock()
	l := &connPair{proxy: p, hang: p.acceptMode == Hang, client: client, done: make(chan struct{})}
	if p.closed {
		l.reset()
		return nil
	}
	p.pairs[l] = struct{}{}
	return l
}

// removePair takes an ended link off the list.
func (p *Proxy) removePair(l *connPair) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.pairs, l)
}

// currentRules is the rules of a direction and a channel that is closed when any
// rules change.
func (p *Proxy) currentRules(d Direction) (*Rules, <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.rules[d], p.rulesChanged
}
