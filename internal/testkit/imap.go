package testkit

import (
	"bufio"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
)

// ScriptedIMAP is a mail server that runs a script of the test for each connection to a
// loopback port.
type ScriptedIMAP struct {
	// Set once.
	listener net.Listener
	script   func(*Conn)
	serving  sync.WaitGroup // accept and every script

	mu sync.Mutex
	// Guarded by mu.
	conns    map[*Conn]struct{}
	accepted int
	closed   bool
}

// StartIMAP starts a server that ends with the test.
func StartIMAP(t testing.TB, script func(*Conn)) *ScriptedIMAP {
	t.Helper()
	s := Must(ListenIMAP("127.0.0.1:0", script))(t)
	t.Cleanup(s.Close)
	return s
}

// ListenIMAP starts a server at an address that ends with Close. A script runs in a goroutine of its own,
// and its connection is closed when it returns.
func ListenIMAP(address string, script func(*Conn)) (*ScriptedIMAP, error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, err
	}
	s := &ScriptedIMAP{listener: l, script: script, conns: map[*Conn]struct{}{}}
	s.serving.Go(s.accept)
	return s, nil
}

// Addr returns the server's address.
func (s *ScriptedIMAP) Addr() string { return s.listener.Addr().String() }

// accept ends when the listener is closed.
func (s *ScriptedIMAP) accept() {
	for {
		nc, err := s.listener.Accept()
		if err != nil {
			return
		}
		c := NewConn(nc)
		c.Server = s
		if s.add(c) {
			s.serving.Go(func() { s.serve(c) })
		}
	}
}

// add registers a connection, or closes it if the server is closed.
func (s *ScriptedIMAP) add(c *Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		_ = c.tcp.Close()
		return false
	}
	s.conns[c] = struct{}{}
	s.accepted++
	return true
}

// serve ends when the script does.
func (s *ScriptedIMAP) serve(c *Conn) {
	s.script(c)
	_ = c.Conn.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
}

// Open returns the number of open connections.
func (s *ScriptedIMAP) Open() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns)
}

// Accepted returns the number of connections so far.
func (s *ScriptedIMAP) Accepted() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.accepted
}

// Refuse closes the listener, so that new connections are refused.
func (s *ScriptedIMAP) Refuse() { _ = s.listener.Close() }

// CloseConns closes all connections.
func (s *ScriptedIMAP) CloseConns() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		_ = c.tcp.Close()
	}
}

// Close closes listener and connections, and waits for the scripts.
func (s *ScriptedIMAP) Close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.Refuse()
	s.CloseConns()
	s.Wait()
}

// Wait waits until the listener is closed and all scripts have ended.
func (s *ScriptedIMAP) Wait() { s.serving.Wait() }

// Conn is a server's end of a connection.
type Conn struct {
	net.Conn               // TCP, or TLS over it
	R        *bufio.Reader // of Conn
	Server   *ScriptedIMAP // set once; nil for a connection of NewConn

	tcp net.Conn // set once; under TLS too
}

// NewConn returns a connection on nc, which may be one end of a net.Pipe.
func NewConn(nc net.Conn) *Conn { return &Conn{Conn: nc, R: bufio.NewReader(nc), tcp: nc} }

// StartTLS continues under TLS.
func (c *Conn) StartTLS(config *tls.Config) error {
	secure := tls.Server(c.Conn, config)
	c.Conn, c.R = secure, bufio.NewReader(secure)
	return secure.Handshake()
}

// Send writes lines, each with CRLF.
func (c *Conn) Send(lines ...string) error {
	_, err := io.WriteString(c.Conn, strings.Join(lines, "\r\n")+"\r\n")
	return err
}

// ReadLine returns the next line, without its CRLF.
func (c *Conn) ReadLine() (string, error) {
	line, err := c.R.ReadString('\n')
	return strings.TrimSuffix(line, "\r\n"), err
}

// ReadCommand returns the next line as a command.
func (c *Conn) ReadCommand() (tag, command string, err error) {
	line, err := c.ReadLine()
	tag, command, _ = strings.Cut(line, " ")
	return tag, command, err
}

// Login is a login as a server sees it.
type Login struct {
	Tag, AuthzID, User, Password string
	ID                           string // the arguments of ID
}

// ReadLogin greets, answers ID, and returns when it has the credentials of an AUTHENTICATE
// PLAIN. The caller answers that.
func (c *Conn) ReadLogin() (Login, error) {
	var got Login
	if err := c.Send("* OK [CAPABILITY IMAP4rev1 SASL-IR AUTH=PLAIN ID] Hello."); err != nil {
		return got, err
	}
	for {
		tag, command, err := c.ReadCommand()
		if err != nil {
			return got, err
		}
		switch name, args, _ := strings.Cut(command, " "); name {
		case "ID":
			got.ID = args
			if err := c.Send(tag + " OK Done."); err != nil {
				return got, err
			}
		case "AUTHENTICATE":
			got.Tag = tag
			return got, got.decodePlain(args)
		default:
			return got, fmt.Errorf("unexpected: %q", command)
		}
	}
}

// decodePlain reads the arguments of AUTHENTICATE PLAIN.
func (l *Login) decodePlain(args string) error {
	raw, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(args, "PLAIN "))
	parts := strings.Split(string(raw), "\x00")
	if err != nil || len(parts) != 3 {
		return fmt.Errorf("not PLAIN: %q", args)
	}
	l.AuthzID, l.User, l.Password = parts[0], parts[1], parts[2]
	return nil
}
