package proxy

import (
	"encoding/base64"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
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
	*testkit.ScriptedIMAP
	password string // of all users

	mu       sync.Mutex
	received strings.Builder // Guarded by mu. Every line of every client.
	hanging  chan struct{}   // closed when a login hangs
	once     sync.Once
}

func openTestBackend(t testing.TB) *testBackend {
	t.Helper()
	m := &testBackend{password: password, hanging: make(chan struct{})}
	m.ScriptedIMAP = testkit.StartIMAP(t, m.serve)
	return m
}

func (m *testBackend) addr() string { return m.Addr() }

func (m *testBackend) receivedText() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.received.String()
}

// serve returns when the connection ends.
func (m *testBackend) serve(s *testkit.Conn) {
	login, err := s.ReadLogin()
	if err != nil {
		return
	}
	switch name, _, _ := strings.Cut(login.User, "@"); {
	case name == "hang":
		m.once.Do(func() { close(m.hanging) })
		_, _ = io.Copy(io.Discard, s.R)
		return
	case name == "flood": // sends more than the gateway reads
		_ = s.Send(login.Tag + " OK [CAPABILITY " + afterLogin + "] In.")
		for line := strings.Repeat("x", 1000); s.Send("* OK "+line) == nil; {
		}
		return
	case name == "echo":
		coded := base64.StdEncoding.EncodeToString([]byte("\x00" + login.User + "\x00" + login.Password))
		_ = s.Send(login.Tag + " BAD I do not know AUTHENTICATE PLAIN " + coded + " or " + login.Password)
		return
	case name == "vanish":
		return
	case name == "refuse":
		_ = s.Send(login.Tag + " NO [OVERQUOTA] Too much mail.")
		return
	case name == "slow":
		<-time.After(slowDenial)
		_ = s.Send(login.Tag + " NO [AUTHENTICATIONFAILED] At last.")
		return
	case login.Password != m.password && login.AuthzID == "":
		_ = s.Send(login.Tag + " NO [AUTHENTICATIONFAILED] Wrong for " + login.User)
		return
	}
	_ = s.Send(login.Tag + " OK [CAPABILITY " + afterLogin + "] In.")
	for {
		line, err := s.ReadLine()
		if err != nil {
			return
		}
		m.mu.Lock()
		m.received.WriteString(line + "\n")
		m.mu.Unlock()
		tag, name, _ := strings.Cut(line, " ")
		if s.Send(tag+" OK Done.") != nil || name == "LOGOUT" {
			return
		}
	}
}

// scriptedBackend is a backend whose lines a dialogue scripts, on one connection at a time.
// The dialogue runs it in the test's goroutine, so it is not a testkit.ScriptedIMAP.
type scriptedBackend struct {
	t    testing.TB
	l    *net.TCPListener
	conn *testkit.Conn // nil before the first connection and after the last
}

func openScriptedBackend(t testing.TB) *scriptedBackend {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	testkit.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() })
	return &scriptedBackend{t: t, l: l.(*net.TCPListener)}
}

// backendConn returns the current connection, or waits for the next one.
func (s *scriptedBackend) backendConn() *testkit.Conn {
	s.t.Helper()
	if s.conn == nil {
		testkit.NoError(s.t, s.l.SetDeadline(time.Now().Add(testbed.Timeout)))
		nc, err := s.l.Accept()
		testkit.NoError(s.t, err)
		testkit.NoError(s.t, nc.SetDeadline(time.Now().Add(2*testbed.Timeout)))
		s.t.Cleanup(func() { _ = nc.Close() })
		s.conn = testkit.NewConn(nc)
	}
	return s.conn
}

func (s *scriptedBackend) closeConn() {
	_ = s.backendConn().Close()
	s.conn = nil
}
