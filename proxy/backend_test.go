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

// afterLogin is the capability list of a backend after login; half of it is not for a
// client of a gateway.
const afterLogin = "IMAP4rev1 IDLE UNSELECT STARTTLS AUTH=PLAIN LOGINDISABLED UNAUTHENTICATE"

// slowDenial is how long the mailbox of slow takes to deny a login.
const slowDenial = 800 * time.Millisecond

// testBackend is a backend for any number of clients. A right password logs in, and every
// command is answered with OK. The user names hang, refuse, flood, echo, vanish and slow
// have these effects.
type testBackend struct {
	// Set once.
	l        net.Listener
	password string // of all users
	wg       sync.WaitGroup

	mu       sync.Mutex
	conns    map[net.Conn]bool // Guarded by mu.
	received strings.Builder   // Guarded by mu. Every line of every client.
	hanging  chan struct{}     // closed when a login hangs
	once     sync.Once
}

func openTestBackend(t testing.TB) *testBackend {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	m := &testBackend{l: l, password: password, conns: map[net.Conn]bool{}, hanging: make(chan struct{})}
	m.wg.Add(1)
	go m.accept()
	t.Cleanup(m.close)
	return m
}

func (m *testBackend) addr() string { return m.l.Addr().String() }

func (m *testBackend) close() {
	_ = m.l.Close()
	m.mu.Lock()
	for nc := range m.conns {
		_ = nc.Close()
	}
	m.mu.Unlock()
	m.wg.Wait()
}

// connCount is the number of connections.
func (m *testBackend) connCount() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.conns)
}

func (m *testBackend) receivedText() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.received.String()
}

// accept returns when the listener is closed.
func (m *testBackend) accept() {
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

// serve returns when the connection ends.
func (m *testBackend) serve(nc net.Conn) {
	defer m.wg.Done()
	defer func() {
		_ = nc.Close()
		m.mu.Lock()
		delete(m.conns, nc)
		m.mu.Unlock()
	}()
	s := newBackendConn(nc)
	login, err := s.readLogin()
	if err != nil {
		return
	}
	switch name, _, _ := strings.Cut(login.user, "@"); {
	case name == "hang":
		m.once.Do(func() { close(m.hanging) })
		_, _ = io.Copy(io.Discard, nc)
		return
	case name == "flood": // sends more than the gateway reads
		_ = s.write(login.tag + " OK [CAPABILITY " + afterLogin + "] In.")
		for line := strings.Repeat("x", 1000); s.write("* OK "+line) == nil; {
		}
		return
	case name == "echo":
		coded := base64.StdEncoding.EncodeToString([]byte("\x00" + login.user + "\x00" + login.password))
		_ = s.write(login.tag + " BAD I do not know AUTHENTICATE PLAIN " + coded + " or " + login.password)
		return
	case name == "vanish":
		return
	case name == "refuse":
		_ = s.write(login.tag + " NO [OVERQUOTA] Too much mail.")
		return
	case name == "slow":
		<-time.After(slowDenial)
		_ = s.write(login.tag + " NO [AUTHENTICATIONFAILED] At last.")
		return
	case login.password != m.password && login.authzid == "":
		_ = s.write(login.tag + " NO [AUTHENTICATIONFAILED] Wrong for " + login.user)
		return
	}
	_ = s.write(login.tag + " OK [CAPABILITY " + afterLogin + "] In.")
	for {
		line, err := s.readLine()
		if err != nil {
			return
		}
		m.mu.Lock()
		m.received.WriteString(line + "\n")
		m.mu.Unlock()
		tag, name, _ := strings.Cut(line, " ")
		if s.write(tag+" OK Done.") != nil || name == "LOGOUT" {
			return
		}
	}
}

// backendConn is a backend's end of one connection.
type backendConn struct {
	nc net.Conn
	r  *bufio.Reader
}

func newBackendConn(nc net.Conn) *backendConn {
	return &backendConn{nc: nc, r: bufio.NewReader(nc)}
}

func (u *backendConn) write(line string) error {
	_, err := io.WriteString(u.nc, line+"\r\n")
	return err
}

func (u *backendConn) readLine() (string, error) {
	line, err := u.r.ReadString('\n')
	return strings.TrimSuffix(line, "\r\n"), err
}

// receivedLogin is a login as a backend sees it.
type receivedLogin struct {
	tag, authzid, user, password string
	id                           string // the arguments of ID
}

// readLogin greets and answers commands until it has credentials.
func (u *backendConn) readLogin() (receivedLogin, error) {
	var got receivedLogin
	if err := u.write("* OK [CAPABILITY IMAP4rev1 SASL-IR AUTH=PLAIN ID] Hello."); err != nil {
		return got, err
	}
	for {
		line, err := u.readLine()
		if err != nil {
			return got, err
		}
		tag, command, _ := strings.Cut(line, " ")
		name, args, _ := strings.Cut(command, " ")
		switch name {
		case "ID":
			got.id = args
			err = u.write(tag + " OK Done.")
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

// scriptedBackend is a backend whose lines a dialogue scripts, on one connection at a time.
type scriptedBackend struct {
	t    testing.TB
	l    *net.TCPListener
	conn *backendConn // nil before the first connection and after the last
}

func openScriptedBackend(t testing.TB) *scriptedBackend {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	t.Cleanup(func() { _ = l.Close() })
	return &scriptedBackend{t: t, l: l.(*net.TCPListener)}
}

// backendConn returns the current connection, or waits for the next one.
func (s *scriptedBackend) backendConn() *backendConn {
	s.t.Helper()
	if s.conn == nil {
		must(s.t, s.l.SetDeadline(time.Now().Add(testbed.Timeout)))
		nc, err := s.l.Accept()
		must(s.t, err)
		must(s.t, nc.SetDeadline(time.Now().Add(2*testbed.Timeout)))
		s.t.Cleanup(func() { _ = nc.Close() })
		s.conn = newBackendConn(nc)
	}
	return s.conn
}

func (s *scriptedBackend) closeConn() {
	_ = s.backendConn().nc.Close()
	s.conn = nil
}
