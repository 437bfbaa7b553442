package tests

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"

	"imapgate/internal/testbed"
)

// stubEnv in the environment turns the test program into a stub backend: the
// files of its certificate and its key, joined by a comma.
const stubEnv = "IMAPGATE_TESTS_STUB"

// stubBackend is a backend that lets everybody in and does as little as IMAP allows, so
// that thousands of sessions cost a test nothing but the gateway's share. What a
// real backend does with a session is the other tests' matter.
type stubBackend struct {
	// Set once.
	listener net.Listener
	serve    func(net.Conn) // one connection, until it ends
	wg       sync.WaitGroup // accept and every connection

	mu    sync.Mutex
	conns map[net.Conn]struct{} // Guarded by mu.
}

// startStub starts one in this process.
func startStub(t testing.TB, conf *tls.Config) *stubBackend {
	t.Helper()
	return startStubWith(t, conf, serveMinimal)
}

// startStubWith starts one that has its own way to talk.
func startStubWith(t testing.TB, conf *tls.Config, serve func(net.Conn)) *stubBackend {
	t.Helper()
	s, err := listenStub(conf, serve)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.close)
	return s
}

func listenStub(conf *tls.Config, serve func(net.Conn)) (*stubBackend, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	if conf != nil {
		l = tls.NewListener(l, conf)
	}
	s := &stubBackend{listener: l, serve: serve, conns: map[net.Conn]struct{}{}}
	s.wg.Go(s.accept)
	return s, nil
}

func (s *stubBackend) address() string { return s.listener.Addr().String() }

// accept ends when the listener closes.
func (s *stubBackend) accept() {
	for {
		conn, err := s.listener.Accept()
		if err != nil {
			return
		}
		s.mu.Lock()
		s.conns[conn] = struct{}{}
		s.mu.Unlock()
		s.wg.Go(func() {
			s.serve(conn)
			_ = conn.Close()
			s.mu.Lock()
			delete(s.conns, conn)
			s.mu.Unlock()
		})
	}
}

// serveMinimal answers one connection until it ends.
func serveMinimal(conn net.Conn) {
	const capabilities = "CAPABILITY IMAP4rev1 SASL-IR LITERAL+ ID AUTH=PLAIN"
	if _, err := io.WriteString(conn, "* OK ["+capabilities+"] ready\r\n"); err != nil {
		return
	}
	r := bufio.NewReaderSize(conn, 512)
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		tag, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		name, _, _ := strings.Cut(rest, " ")
		answer := tag + " OK done\r\n"
		switch name {
		case "AUTHENTICATE":
			answer = tag + " OK [" + capabilities + "] welcome\r\n"
		case "LOGOUT":
			answer = "* BYE so long\r\n" + answer
		}
		if _, err := io.WriteString(conn, answer); err != nil || name == "LOGOUT" {
			return
		}
	}
}

// close ends it and waits.
func (s *stubBackend) close() {
	_ = s.listener.Close()
	s.mu.Lock()
	for conn := range s.conns {
		_ = conn.Close()
	}
	s.mu.Unlock()
	s.wg.Wait()
}

// stubMain is what the test program does as a stub backend, until it is ended.
func stubMain(files string) error {
	cert, key, _ := strings.Cut(files, ",")
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		return err
	}
	s, err := listenStub(&tls.Config{Certificates: []tls.Certificate{pair}}, serveMinimal)
	if err != nil {
		return err
	}
	fmt.Println("listening on", s.address())
	s.wg.Wait()
	return nil
}

// startStubProcess starts a stub backend with TLS in a process of its own, which
// has descriptors of its own, and gives its address.
func startStubProcess(t testing.TB, ca *testbed.CA) string {
	t.Helper()
	cert, key := ca.Issue(t, testbed.DovecotName)
	p, err := testbed.Start(t, testbed.FindProgram(t, "env", "coreutils"), stubEnv+"="+cert+","+key, os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	address := ""
	err = p.WaitUntil("say where it listens", func() bool {
		_, rest, listening := strings.Cut(p.Output(), "listening on ")
		line, _, complete := strings.Cut(rest, "\n")
		address = line
		return listening && complete
	})
	if err != nil {
		t.Fatal(err)
	}
	return address
}
