// Package faultproxy is a TCP proxy for tests that injects faults: it delays, slows,
// splits, discards, corrupts and inserts bytes, half-closes or resets connections, stops
// reading, and refuses to accept.
//
// It counts bytes and does not interpret them. The test that starts a Proxy owns it and
// may change its rules at any time, also for existing connections. The proxy and all its
// connections end with the test.
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
	// maxListenAttempts and listenPause bound the wait for a released port, which may
	// briefly be the local port of another connection.
	maxListenAttempts = 100
	listenPause       = 20 * time.Millisecond
)

// Direction is a direction through the proxy.
type Direction int

// The two directions.
const (
	ToTarget Direction = iota
	ToClient
)

// AcceptMode is what the proxy does with a new client.
type AcceptMode int

// The accept modes.
const (
	Accept AcceptMode = iota // connect the client to the target
	Hang                     // accept the client, never read or write
	Refuse                   // close the listener
)

// Proxy is a running fault proxy.
type Proxy struct {
	// Set once.
	t       testing.TB
	target  string
	address string
	port    testbed.ReservedPorts
	wg      sync.WaitGroup // accept loops and pairs

	// Guarded by mu.
	mu           sync.Mutex
	acceptMode   AcceptMode
	listener     net.Listener // nil while closed
	rules        [2]*Rules    // by Direction; replaced, not modified
	rulesChanged chan struct{}
	pairs        map[*connPair]struct{} // bounded by the test
	closed       bool
}

// Start listens on a loopback port chosen by the kernel and relays everything to target
// until the rules change.
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

// Address returns the host:port on which clients connect.
func (p *Proxy) Address() string { return p.address }

// SetRules replaces the rules of a direction for new and existing connections. A fault
// whose offset has already passed happens at once.
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

// SetAcceptMode sets what happens to new clients. Existing connections stay open.
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

// ResetConns resets every connection on both sides.
func (p *Proxy) ResetConns() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for l := range p.pairs {
		l.reset()
	}
}

// ConnCount returns the number of open connections.
func (p *Proxy) ConnCount() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.pairs)
}

// Close closes the proxy and all connections and waits for their goroutines. It may be
// called again.
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

// listenAgain listens on the previous port again.
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
	p.t.Fatalf("reopen the listener of a fault proxy: %v", err)
}

// startAccepting starts an accept loop for l.
func (p *Proxy) startAccepting(l net.Listener) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.listener = l
	p.wg.Go(func() { p.acceptLoop(l) })
}

// acceptLoop accepts clients until the listener is closed.
func (p *Proxy) acceptLoop(listener net.Listener) {
	for {
		conn, err := listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // the client disconnected before Accept
		}
		if l := p.addPair(conn.(*net.TCPConn)); l != nil {
			p.wg.Go(l.serve)
		}
	}
}

// addPair adds a pair for a client. It returns nil if the proxy is closed.
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

// removePair removes an ended pair.
func (p *Proxy) removePair(l *connPair) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.pairs, l)
}

// currentRules returns the rules of a direction and a channel that is closed when the
// rules of any direction change.
func (p *Proxy) currentRules(d Direction) (*Rules, <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.rules[d], p.rulesChanged
}
