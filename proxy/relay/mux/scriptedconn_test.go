package mux

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"time"

	"imapgate/internal/parking"
	"imapgate/internal/testbed"
)

// testTimeout is how long a test waits for an expected event.
const testTimeout = testbed.Timeout

// scriptedConn is a client, or the backend's end of an upstream connection, driven by a
// script. A goroutine writes its output, so that a script never waits for the gateway to
// read.
type scriptedConn struct {
	// Set once.
	conn  net.Conn // TCP, or TLS over it
	r     *bufio.Reader
	split func(rng *rand.Rand, left int) int

	writes chan queuedWrite // at most 1024 pending
	done   chan struct{}
}

// queuedWrite is data to write, and a function to call afterwards.
type queuedWrite struct {
	bytes []byte
	after func()
}

func newScriptedConn(conn net.Conn, split func(*rand.Rand, int) int) *scriptedConn {
	c := &scriptedConn{conn: conn, r: bufio.NewReaderSize(conn, 128<<10), split: split,
		writes: make(chan queuedWrite, 1024), done: make(chan struct{})}
	go c.writeLoop()
	return c
}

// writeLoop ends when writes is closed.
func (c *scriptedConn) writeLoop() {
	defer close(c.done)
	rng := rand.New(rand.NewPCG(1, 0))
	for s := range c.writes {
		for b := s.bytes; len(b) > 0; {
			n := c.split(rng, len(b))
			if _, err := c.conn.Write(b[:n]); err != nil {
				break // the reader notices the missing data
			}
			b = b[n:]
		}
		if s.after != nil {
			s.after()
		}
	}
}

func (c *scriptedConn) send(text string) { c.writes <- queuedWrite{bytes: []byte(text)} }

// queueClose closes the connection after pending writes, queueCloseWrite closes its own
// side, and queueReset resets the connection.
func (c *scriptedConn) queueClose()      { c.writes <- queuedWrite{after: func() { _ = c.conn.Close() }} }
func (c *scriptedConn) queueCloseWrite() { c.writes <- queuedWrite{after: c.closeWrite} }
func (c *scriptedConn) queueReset()      { c.writes <- queuedWrite{after: c.resetTCP} }

// awaitWritten waits until all pending writes have reached the kernel.
func (c *scriptedConn) awaitWritten() {
	done := make(chan struct{})
	c.writes <- queuedWrite{after: func() { close(done) }}
	<-done
}

func (c *scriptedConn) closeWrite() { _ = c.conn.(interface{ CloseWrite() error }).CloseWrite() }

func (c *scriptedConn) resetTCP() {
	tcp := parking.TCP(c.conn).(*net.TCPConn)
	_ = tcp.SetLinger(0)
	_ = tcp.Close()
}

// readLine returns the next line, with its CRLF.
func (c *scriptedConn) readLine() (string, error) {
	_ = c.conn.SetReadDeadline(time.Now().Add(testTimeout))
	text, err := c.r.ReadString('\n')
	return text, err
}

// expect reads want.
func (c *scriptedConn) expect(want string) error {
	_ = c.conn.SetReadDeadline(time.Now().Add(testTimeout))
	got := make([]byte, len(want))
	n, err := io.ReadFull(c.r, got)
	if err != nil || string(got) != want {
		return fmt.Errorf("received %.200q (%v), want %.200q", got[:n], err, want)
	}
	return nil
}

// readAll reads until the connection ends, and returns how it ended.
func (c *scriptedConn) readAll() (string, error) {
	_ = c.conn.SetReadDeadline(time.Now().Add(testTimeout))
	text, err := io.ReadAll(c.r)
	return string(text), err
}

// expectEnd requires the connection to end without further data.
func (c *scriptedConn) expectEnd(mode endMode) error {
	text, err := c.readAll()
	timeout := net.Error(nil)
	switch {
	case errors.As(err, &timeout) && timeout.Timeout():
		return fmt.Errorf("the connection does not end: received %.200q", text)
	case text != "":
		return fmt.Errorf("received %.200q, want the end", text)
	case mode == cleanEnd && err != nil: // a RST could have overtaken the last response
		return fmt.Errorf("ended with %w", err)
	}
	return nil
}

// endMode is how a connection must end.
type endMode uint8

const (
	anyEnd   endMode = iota
	cleanEnd         // with a FIN
)

func (c *scriptedConn) close() {
	close(c.writes)
	_ = c.conn.Close()
	<-c.done
}

// splitters split the output into packets.
var splitters = map[string]func(rng *rand.Rand, left int) int{
	"whole":  func(_ *rand.Rand, left int) int { return left },
	"bytes":  func(_ *rand.Rand, left int) int { return min(left, max(1, left-4096)) }, // the last octets one by one
	"random": func(rng *rand.Rand, left int) int { return 1 + rng.IntN(min(left, max(40, left/4))) },
}

// backendCaps are a stub's default capabilities.
const backendCaps = "IMAP4rev1 SASL-IR AUTH=PLAIN LITERAL+ ENABLE UNSELECT IDLE CONDSTORE QRESYNC ESEARCH MOVE UIDPLUS"

// stub is a backend that answers logins as a test demands. A script drives each
// connection after its login, from another goroutine and beyond the end of the stub, and its
// output is split into packets. So it is not a testkit.ScriptedIMAP.
type stub struct {
	// Set once.
	l     net.Listener
	tls   *tls.Config // nil: no TLS
	split func(*rand.Rand, int) int
	wg    sync.WaitGroup

	mu sync.Mutex
	// Guarded by mu.
	caps         string          // after the login
	loginRefusal string          // answer to logins; "": accept them
	down         bool            // connections end before the greeting
	peers        []*scriptedConn // connections after their login, in order
	conns        map[net.Conn]struct{}
}

func newStub(secure *tls.Config, split func(*rand.Rand, int) int) (*stub, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s := &stub{l: l, tls: secure, split: split, caps: backendCaps, conns: map[net.Conn]struct{}{}}
	s.wg.Add(1)
	go s.accept()
	return s, nil
}

// accept ends when the listener is closed.
func (s *stub) accept() {
	defer s.wg.Done()
	for {
		nc, err := s.l.Accept()
		if err != nil {
			return
		}
		s.mu.Lock()
		s.conns[nc] = struct{}{}
		down := s.down
		s.mu.Unlock()
		if down {
			_ = nc.Close()
			continue
		}
		s.wg.Add(1)
		go s.greet(nc)
	}
}

// greet ends with the login or its failure.
func (s *stub) greet(nc net.Conn) {
	defer s.wg.Done()
	if s.tls != nil {
		secure := tls.Server(nc, s.tls)
		if secure.Handshake() != nil {
			_ = nc.Close()
			return
		}
		nc = secure
	}
	p := newScriptedConn(nc, s.split)
	p.send("* OK [CAPABILITY IMAP4rev1 SASL-IR AUTH=PLAIN ID] ready\r\n")
	for {
		line, err := p.readLine()
		if err != nil {
			p.close()
			return
		}
		tag, command, _ := strings.Cut(strings.TrimSpace(line), " ")
		if !strings.HasPrefix(command, "AUTHENTICATE") {
			p.send(tag + " OK done\r\n")
			continue
		}
		if s.logIn(p, tag) {
			return
		}
	}
}

// logIn answers a login, and returns true if a script now owns the connection.
func (s *stub) logIn(p *scriptedConn, tag string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.loginRefusal != "" {
		p.send(tag + " " + s.loginRefusal + "\r\n")
		return false
	}
	p.send(tag + " OK [CAPABILITY " + s.caps + "] in\r\n")
	s.peers = append(s.peers, p)
	return true
}

// set changes how the stub treats new connections.
func (s *stub) set(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
}

// peer waits for the n-th login, counted from 1.
func (s *stub) peer(n int) (*scriptedConn, error) {
	for end := time.Now().Add(testTimeout); ; <-time.After(time.Millisecond) {
		s.mu.Lock()
		peers := s.peers
		s.mu.Unlock()
		switch {
		case len(peers) >= n:
			return peers[n-1], nil
		case time.Now().After(end):
			return nil, fmt.Errorf("timeout while waiting for login %d", n)
		}
	}
}

func (s *stub) close() {
	s.closeListener()
	for _, p := range s.peers {
		p.close()
	}
}

// closeListener closes the stub but not its peers.
func (s *stub) closeListener() {
	_ = s.l.Close()
	s.mu.Lock()
	for nc := range s.conns {
		_ = nc.Close()
	}
	s.mu.Unlock()
	s.wg.Wait()
}
