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

// stubEnv is the environment variable that turns the test program into a stub backend. Its
// value is the paths of certificate and key, joined by a comma.
const stubEnv = "IMAPGATE_TESTS_STUB"

// stubBackend is a minimal backend that accepts every login, so that tests with thousands of
// sessions measure the gateway. Other tests use real backends.
type stubBackend struct {
	// Set once.
	listener net.Listener
	serve    func(net.Conn) // serves one connection until it ends
	wg       sync.WaitGroup // accept and every connection

	mu    sync.Mutex
	conns map[net.Conn]struct{} // Guarded by mu.
}

// startStub starts a stub in this process.
func startStub(t testing.TB, conf *tls.Config) *stubBackend {
	t.Helper()
	return startStubWith(t, conf, serveMinimal)
}

// startStubWith starts a stub with another serve function.
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

// accept accepts connections until the listener is closed.
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

// serveMinimal serves one connection until it ends.
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

// close closes listener and connections and waits for their goroutines.
func (s *stubBackend) close() {
	_ = s.listener.Close()
	s.mu.Lock()
	for conn := range s.conns {
		_ = conn.Close()
	}
	s.mu.Unlock()
	s.wg.Wait()
}

// stubMain runs the test program as a stub backend until it is killed.
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

// startStubProcess starts a stub backend with TLS in a separate process, which has its own
// descriptors, and returns its address.
func startStubProcess(t testing.TB, ca *testbed.CA) string {
	t.Helper()
	cert, key := ca.Issue(t, testbed.DovecotName)
	p, err := testbed.Start(t, testbed.FindProgram(t, "env", "coreutils"), stubEnv+"="+cert+","+key, os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	address := ""
	err = p.WaitUntil("print its address", func() bool {
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
