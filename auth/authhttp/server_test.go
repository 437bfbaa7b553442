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
)

const testTime = 20 * time.Second // for everything that a busy machine may do slowly

// asked is a question as it came: net/http's server would refuse some of the
// bytes that nginx sends.
type asked struct {
	line   string
	names  []string // in order
	header map[string]string
}

// authServer is an auth server that answers every question with the same bytes.
type authServer struct {
	// Set once.
	address  string
	listener net.Listener
	serving  sync.WaitGroup

	// Guarded by mu.
	mu     sync.Mutex
	answer func(asked) string // "" is silence
	asked  []asked
	conns  []net.Conn
}

// startAuthServer serves until the test ends.
func startAuthServer(t *testing.T, answer func(asked) string) *authServer {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &authServer{address: l.Addr().String(), listener: l, answer: answer}
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

// accept ends with the listener.
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

// serve answers on one connection until its client or the test ends it.
func (s *authServer) serve(c net.Conn) {
	defer s.serving.Done()
	defer c.Close()
	for r := bufio.NewReader(c); ; {
		q, ok := readQuestion(r)
		if !ok {
			return
		}
		s.mu.Lock()
		s.asked = append(s.asked, q)
		text := s.answer(q)
		s.mu.Unlock()
		if _, err := c.Write([]byte(text)); err != nil {
			return
		}
		// What nginx asks ends with its answer.
		if strings.HasSuffix(q.line, "HTTP/1.0") && text != "" || strings.Contains(text, "Connection: close") {
			return
		}
	}
}

func readQuestion(r *bufio.Reader) (q asked, ok bool) {
	q.header = make(map[string]string)
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return q, false
		}
		line = strings.TrimSuffix(line, "\r\n")
		name, value, pair := strings.Cut(line, ": ")
		switch {
		case line == "":
			return q, true
		case q.line == "":
			q.line = line
		case !pair:
			name, value = strings.TrimSuffix(line, ":"), ""
			fallthrough
		default:
			q.names = append(q.names, name)
			q.header[name] = value
		}
	}
}

// questions takes what was asked since the last call.
func (s *authServer) questions() []asked {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := s.asked
	s.asked = nil
	return list
}

// says changes the answer to bytes that are always the same.
func (s *authServer) says(answer string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answer = always(answer)
}

func (s *authServer) connections() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns)
}

func always(answer string) func(asked) string { return func(asked) string { return answer } }

// response is one that keeps the connection.
func response(lines ...string) string {
	return "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n" + strings.Join(lines, "\r\n") + "\r\n\r\n"
}

func newAsker(t *testing.T, cfg Config) *Asker {
	t.Helper()
	a, err := New(cfg, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Close)
	return a
}

func to(servers ...*authServer) Config {
	var cfg Config
	for _, s := range servers {
		cfg.URLs = append(cfg.URLs, (&url.URL{Scheme: "http", Host: s.address, Path: "/auth"}).String())
	}
	return cfg
}

func secret(s string) identity.Secret { return identity.NewSecret(s) }

// header is one of an operator's own.
func header(name, value string) map[string]identity.Secret {
	return map[string]identity.Secret{name: secret(value)}
}
