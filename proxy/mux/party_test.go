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

	"imapgate/internal/quiet"
	"imapgate/internal/testbed"
)

// patience is how long a test waits for what has to come.
const patience = testbed.Patience

// party is a client, or a backend's end of an upstream connection, as a script
// plays it. What it says is written by a goroutine of its own, so that a script
// never waits for the gateway to read.
type party struct {
	// Set once.
	conn net.Conn // TCP, or TLS over it
	r    *bufio.Reader
	cut  func(rng *rand.Rand, left int) int

	out  chan saying // at most 1024 that are not written yet
	done chan struct{}
}

// saying is something to write, and then to do.
type saying struct {
	bytes []byte
	then  func()
}

func newParty(conn net.Conn, cut func(*rand.Rand, int) int) *party {
	p := &party{conn: conn, r: bufio.NewReaderSize(conn, 128<<10), cut: cut,
		out: make(chan saying, 1024), done: make(chan struct{})}
	go p.write()
	return p
}

// write ends when out is closed.
func (p *party) write() {
	defer close(p.done)
	rng := rand.New(rand.NewPCG(1, 0))
	for s := range p.out {
		for b := s.bytes; len(b) > 0; {
			n := p.cut(rng, len(b))
			if _, err := p.conn.Write(b[:n]); err != nil {
				break // whoever is missed says so
			}
			b = b[n:]
		}
		if s.then != nil {
			s.then()
		}
	}
}

func (p *party) say(text string) { p.out <- saying{bytes: []byte(text)} }

// hangUp closes the connection behind what was said, halfClose its own side of it,
// and reset breaks it.
func (p *party) hangUp()    { p.out <- saying{then: func() { _ = p.conn.Close() }} }
func (p *party) halfClose() { p.out <- saying{then: p.closeWrite} }
func (p *party) reset()     { p.out <- saying{then: p.breakUp} }

// said waits until everything that was said is at the kernel.
func (p *party) said() {
	done := make(chan struct{})
	p.out <- saying{then: func() { close(done) }}
	<-done
}

func (p *party) closeWrite() { _ = p.conn.(interface{ CloseWrite() error }).CloseWrite() }

func (p *party) breakUp() {
	tcp := quiet.TCP(p.conn).(*net.TCPConn)
	_ = tcp.SetLinger(0)
	_ = tcp.Close()
}

// line is the next line, with its CRLF.
func (p *party) line() (string, error) {
	_ = p.conn.SetReadDeadline(time.Now().Add(patience))
	text, err := p.r.ReadString('\n')
	return text, err
}

// exactly reads want.
func (p *party) exactly(want string) error {
	_ = p.conn.SetReadDeadline(time.Now().Add(patience))
	got := make([]byte, len(want))
	n, err := io.ReadFull(p.r, got)
	if err != nil || string(got) != want {
		return fmt.Errorf("heard %.200q (%v), want %.200q", got[:n], err, want)
	}
	return nil
}

// rest is everything up to the connection's end, and how it ended.
func (p *party) rest() (string, error) {
	_ = p.conn.SetReadDeadline(time.Now().Add(patience))
	text, err := io.ReadAll(p.r)
	return string(text), err
}

// ends wants the end of the connection and nothing before it.
func (p *party) ends(how manner) error {
	text, err := p.rest()
	timeout := net.Error(nil)
	switch {
	case errors.As(err, &timeout) && timeout.Timeout():
		return fmt.Errorf("it does not end: heard %.200q", text)
	case text != "":
		return fmt.Errorf("heard %.200q, want the end", text)
	case how == clean && err != nil: // a RST could have overtaken the last words
		return fmt.Errorf("ended with %w", err)
	}
	return nil
}

// manner is how a connection is to end.
type manner uint8

const (
	anyhow manner = iota
	clean         // with a FIN
)

func (p *party) close() {
	close(p.out)
	_ = p.conn.Close()
	<-p.done
}

// The ways to cut what is said into packets.
var cuts = map[string]func(rng *rand.Rand, left int) int{
	"whole":  func(_ *rand.Rand, left int) int { return left },
	"bytes":  func(_ *rand.Rand, left int) int { return min(left, max(1, left-4096)) }, // the last ones singly
	"random": func(rng *rand.Rand, left int) int { return 1 + rng.IntN(min(left, max(40, left/4))) },
}

// backendCaps are what a stub can do unless a test says otherwise.
const backendCaps = "IMAP4rev1 SASL-IR AUTH=PLAIN LITERAL+ ENABLE UNSELECT IDLE CONDSTORE QRESYNC ESEARCH MOVE UIDPLUS"

// stub is a backend at which logins go as a test wants, and what follows them is
// said by a script.
type stub struct {
	// Set once.
	l   net.Listener
	tls *tls.Config // nil: no TLS
	cut func(*rand.Rand, int) int
	wg  sync.WaitGroup

	mu sync.Mutex
	// Guarded by mu.
	caps    string   // behind the login
	refusal string   // of logins, "" for none
	down    bool     // connections end before the greeting
	peers   []*party // those logged in, in order
	open    map[net.Conn]struct{}
}

func newStub(secure *tls.Config, cut func(*rand.Rand, int) int) (*stub, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s := &stub{l: l, tls: secure, cut: cut, caps: backendCaps, open: map[net.Conn]struct{}{}}
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
		s.open[nc] = struct{}{}
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

// greet ends with the login, or its failure.
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
	p := newParty(nc, s.cut)
	p.say("* OK [CAPABILITY IMAP4rev1 SASL-IR AUTH=PLAIN ID] ready\r\n")
	for {
		line, err := p.line()
		if err != nil {
			p.close()
			return
		}
		tag, command, _ := strings.Cut(strings.TrimSpace(line), " ")
		if !strings.HasPrefix(command, "AUTHENTICATE") {
			p.say(tag + " OK done\r\n")
			continue
		}
		if s.logIn(p, tag) {
			return
		}
	}
}

// logIn answers a login, and says whether the connection is a script's now.
func (s *stub) logIn(p *party, tag string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refusal != "" {
		p.say(tag + " " + s.refusal + "\r\n")
		return false
	}
	p.say(tag + " OK [CAPABILITY " + s.caps + "] in\r\n")
	s.peers = append(s.peers, p)
	return true
}

// set changes how the stub treats those who come from now on.
func (s *stub) set(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
}

// peer waits for the n-th login, counted from 1.
func (s *stub) peer(n int) (*party, error) {
	for end := time.Now().Add(patience); ; <-time.After(time.Millisecond) {
		s.mu.Lock()
		peers := s.peers
		s.mu.Unlock()
		switch {
		case len(peers) >= n:
			return peers[n-1], nil
		case time.Now().After(end):
			return nil, fmt.Errorf("waited in vain for the %d. login", n)
		}
	}
}

func (s *stub) close() {
	s.shut()
	for _, p := range s.peers {
		p.close()
	}
}

// shut is close where the peers are somebody else's.
func (s *stub) shut() {
	_ = s.l.Close()
	s.mu.Lock()
	for nc := range s.open {
		_ = nc.Close()
	}
	s.mu.Unlock()
	s.wg.Wait()
}
