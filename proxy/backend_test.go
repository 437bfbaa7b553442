package proxy

import (
	"bufio"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"imapgate/internal/testbed"
)

// afterLogin is what a backend offers once somebody is logged in; half of it is
// not for a client behind a gateway.
const afterLogin = "IMAP4rev1 IDLE UNSELECT STARTTLS AUTH=PLAIN LOGINDISABLED UNAUTHENTICATE"

// slowDenial is how long the mailbox of slow takes to deny a login.
const slowDenial = 800 * time.Millisecond

// mailbox is a backend that takes any number of clients. Whose password is
// right gets in and has every command answered with OK; the names hang, refuse,
// flood, echo, vanish and slow do as they say.
type mailbox struct {
	// Set once.
	l        net.Listener
	password string // of everybody
	wg       sync.WaitGroup

	mu    sync.Mutex
	conns map[net.Conn]bool // Guarded by mu.
	heard strings.Builder   // Guarded by mu. Every line of every client.
	held  chan struct{}     // closed when a login hangs
	once  sync.Once
}

func openMailbox(t testing.TB) *mailbox {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	m := &mailbox{l: l, password: password, conns: map[net.Conn]bool{}, held: make(chan struct{})}
	m.wg.Add(1)
	go m.accept()
	t.Cleanup(m.close)
	return m
}

func (m *mailbox) addr() string { return m.l.Addr().String() }

func (m *mailbox) close() {
	_ = m.l.Close()
	m.mu.Lock()
	for nc := range m.conns {
		_ = nc.Close()
	}
	m.mu.Unlock()
	m.wg.Wait()
}

// open is the number of connections.
func (m *mailbox) open() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.conns)
}

func (m *mailbox) text() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.heard.String()
}

// accept ends with the listener.
func (m *mailbox) accept() {
	defer m.wg.Done()
	for {
		nc, err := m.l.Accept()
		if err != nil {
			return
		}
		m.mu.Lock()
		m.conns[nc] = true
		m.mu.Unlock()
		m.wg.Add(1)
		go m.serve(nc)
	}
}

// serve ends with the connection.
func (m *mailbox) serve(nc net.Conn) {
	defer m.wg.Done()
	defer func() {
		_ = nc.Close()
		m.mu.Lock()
		delete(m.conns, nc)
		m.mu.Unlock()
	}()
	s := newUpstreamSide(nc)
	login, err := s.login()
	if err != nil {
		return
	}
	switch name, _, _ := strings.Cut(login.user, "@"); {
	case name == "hang":
		m.once.Do(func() { close(m.held) })
		_, _ = io.Copy(io.Discard, nc)
		return
	case name == "flood": // says more than anybody reads
		_ = s.say(login.tag + " OK [CAPABILITY " + afterLogin + "] In.")
		for line := strings.Repeat("x", 1000); s.say("* OK "+line) == nil; {
		}
		return
	case name == "echo":
		coded := base64.StdEncoding.EncodeToString([]byte("\x00" + login.user + "\x00" + login.password))
		_ = s.say(login.tag + " BAD I do not know AUTHENTICATE PLAIN " + coded + " or " + login.password)
		return
	case name == "vanish":
		return
	case name == "refuse":
		_ = s.say(login.tag + " NO [OVERQUOTA] Too much mail.")
		return
	case name == "slow":
		<-time.After(slowDenial)
		_ = s.say(login.tag + " NO [AUTHENTICATIONFAILED] At last.")
		return
	case login.password != m.password && login.authzid == "":
		_ = s.say(login.tag + " NO [AUTHENTICATIONFAILED] Wrong for " + login.user)
		return
	}
	_ = s.say(login.tag + " OK [CAPABILITY " + afterLogin + "] In.")
	for {
		line, err := s.line()
		if err != nil {
			return
		}
		m.mu.Lock()
		m.heard.WriteString(line + "\n")
		m.mu.Unlock()
		tag, name, _ := strings.Cut(line, " ")
		if s.say(tag+" OK Done.") != nil || name == "LOGOUT" {
			return
		}
	}
}

// upstreamSide is a backend's end of one connection.
type upstreamSide struct {
	nc net.Conn
	r  *bufio.Reader
}

func newUpstreamSide(nc net.Conn) *upstreamSide {
	return &upstreamSide{nc: nc, r: bufio.NewReader(nc)}
}

func (u *upstreamSide) say(line string) error {
	_, err := io.WriteString(u.nc, line+"\r\n")
	return err
}

func (u *upstreamSide) line() (string, error) {
	line, err := u.r.ReadString('\n')
	return strings.TrimSuffix(line, "\r\n"), err
}

// upstreamLogin is a login as a backend sees it.
type upstreamLogin struct {
	tag, authzid, user, password string
	id                           string // the arguments of ID
}

// login greets and goes on until the credentials are there.
func (u *upstreamSide) login() (upstreamLogin, error) {
	var got upstreamLogin
	if err := u.say("* OK [CAPABILITY IMAP4rev1 SASL-IR AUTH=PLAIN ID] Hello."); err != nil {
		return got, err
	}
	for {
		line, err := u.line()
		if err != nil {
			return got, err
		}
		tag, command, _ := strings.Cut(line, " ")
		name, args, _ := strings.Cut(command, " ")
		switch name {
		case "ID":
			got.id = args
			err = u.say(tag + " OK Who cares.")
		case "AUTHENTICATE":
			raw, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(args, "PLAIN "))
			parts := strings.Split(string(raw), "\x00")
			if err != nil || len(parts) != 3 {
				return got, fmt.Errorf("no PLAIN: %q", line)
			}
			got.tag, got.authzid, got.user, got.password = tag, parts[0], parts[1], parts[2]
			return got, nil
		default:
			err = errors.New("unexpected: " + line)
		}
		if err != nil {
			return got, err
		}
	}
}

// scripted is a backend whose every word a dialogue says, on one connection at
// a time.
type scripted struct {
	t testing.TB
	l *net.TCPListener
	u *upstreamSide // nil before the first connection and behind the last
}

func openScripted(t testing.TB) *scripted {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	t.Cleanup(func() { _ = l.Close() })
	return &scripted{t: t, l: l.(*net.TCPListener)}
}

// side is the connection under way, or the next one.
func (s *scripted) side() *upstreamSide {
	s.t.Helper()
	if s.u == nil {
		must(s.t, s.l.SetDeadline(time.Now().Add(testbed.Patience)))
		nc, err := s.l.Accept()
		must(s.t, err)
		must(s.t, nc.SetDeadline(time.Now().Add(2*testbed.Patience)))
		s.t.Cleanup(func() { _ = nc.Close() })
		s.u = newUpstreamSide(nc)
	}
	return s.u
}

func (s *scripted) hangUp() {
	_ = s.side().nc.Close()
	s.u = nil
}
