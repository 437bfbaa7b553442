package authhttp

import (
	"bufio"
	"net"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"

	"imapgate/internal/identity"
	"imapgate/internal/testbed"
)

const testTimeout = 20 * time.Second // generous, for a busy machine

// receivedRequest is a request as received: net/http's server would refuse some of the bytes
// that nginx sends.
type receivedRequest struct {
	line   string
	names  []string // in order
	header map[string]string
}

// authServer is an auth server with one response to every request.
type authServer struct {
	// Set once.
	address  string
	listener net.Listener
	serving  sync.WaitGroup

	// Guarded by mu.
	mu       sync.Mutex
	respond  func(receivedRequest) string // "" sends no response
	received []receivedRequest
	conns    []net.Conn
}

// startAuthServer serves until the test ends.
func startAuthServer(t *testing.T, answer func(receivedRequest) string) *authServer {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &authServer{address: l.Addr().String(), listener: l, respond: answer}
	s.serving.Add(1)
	go s.accept()
	t.Cleanup(s.stop)
	return s
}

func (s *authServer) stop() {
	_ = s.listener.Close()
	s.mu.Lock()
	for _, c := range s.conns {
		_ = c.Close()
	}
	s.mu.Unlock()
	s.serving.Wait()
}

// accept accepts connections until the listener is closed.
func (s *authServer) accept() {
	defer s.serving.Done()
	for {
		c, err := s.listener.Accept()
		if err != nil {
			return
		}
		s.mu.Lock()
		s.conns = append(s.conns, c)
		s.mu.Unlock()
		s.serving.Add(1)
		go s.serve(c)
	}
}

// serve answers requests on one connection until its client or the test ends it.
func (s *authServer) serve(c net.Conn) {
	defer s.serving.Done()
	defer c.Close()
	for r := bufio.NewReader(c); ; {
		q, ok := readRequest(r)
		if !ok {
			return
		}
		s.mu.Lock()
		s.received = append(s.received, q)
		text := s.respond(q)
		s.mu.Unlock()
		if _, err := c.Write([]byte(text)); err != nil {
			return
		}
		// nginx sends one request on a connection.
		if strings.HasSuffix(q.line, "HTTP/1.0") && text != "" || strings.Contains(text, "Connection: close") {
			return
		}
	}
}

func readRequest(r *bufio.Reader) (req receivedRequest, ok bool) {
	req.header = make(map[string]string)
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return req, false
		}
		line = strings.TrimSuffix(line, "\r\n")
		name, value, pair := strings.Cut(line, ": ")
		switch {
		case line == "":
			return req, true
		case req.line == "":
			req.line = line
		case !pair:
			name, value = strings.TrimSuffix(line, ":"), ""
			fallthrough
		default:
			req.names = append(req.names, name)
			req.header[name] = value
		}
	}
}

// takeRequests returns the requests since the last call.
func (s *authServer) takeRequests() []receivedRequest {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := s.received
	s.received = nil
	return list
}

// setResponse sets a constant response.
func (s *authServer) setResponse(answer string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.respond = respondAlways(answer)
}

func (s *authServer) countConns() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns)
}

func respondAlways(answer string) func(receivedRequest) string {
	return func(receivedRequest) string { return answer }
}

// formatResponse returns a response that keeps the connection open.
func formatResponse(lines ...string) string {
	return "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n" + strings.Join(lines, "\r\n") + "\r\n\r\n"
}

func newClient(t *testing.T, cfg Config) *Client {
	t.Helper()
	a, err := New(testbed.WithDefaults(cfg), zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Close)
	return a
}

func configFor(servers ...*authServer) Config {
	var cfg Config
	for _, s := range servers {
		cfg.URLs = append(cfg.URLs, (&url.URL{Scheme: "http", Host: s.address, Path: "/auth"}).String())
	}
	return cfg
}

func secret(s string) identity.Secret { return identity.NewSecret(s) }

// operatorHeader returns a configured header.
func operatorHeader(name, value string) map[string]identity.Secret {
	return map[string]identity.Secret{name: secret(value)}
}
