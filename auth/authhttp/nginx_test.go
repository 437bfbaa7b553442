//go:build unix

package authhttp

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"imapgate/internal/testbed"
)

// imapClient is the client of one IMAP dialogue.
type imapClient struct {
	t    *testing.T
	conn net.Conn
	r    *bufio.Reader
}

func dial(t *testing.T, address string, wraps ...func(net.Conn) net.Conn) *imapClient {
	t.Helper()
	conn, err := net.DialTimeout("tcp", address, testTimeout)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(testTimeout)); err != nil {
		t.Fatal(err)
	}
	for _, wrap := range wraps {
		conn = wrap(conn)
	}
	c := &imapClient{t, conn, bufio.NewReader(conn)}
	c.readLine()
	return c
}

func (c *imapClient) readLine() string {
	c.t.Helper()
	line, err := c.r.ReadString('\n')
	if err != nil {
		c.t.Fatalf("read from nginx: %v", err)
	}
	return strings.TrimSuffix(line, "\r\n")
}

func (c *imapClient) writeLine(line string) {
	c.t.Helper()
	if _, err := fmt.Fprintf(c.conn, "%s\r\n", line); err != nil {
		c.t.Fatal(err)
	}
}

// authenticatePlain logs in with AUTHENTICATE PLAIN, which can carry every byte but NUL.
func (c *imapClient) authenticatePlain(user, password string) string {
	c.t.Helper()
	c.writeLine("a AUTHENTICATE PLAIN")
	c.readLine()
	c.writeLine(base64.StdEncoding.EncodeToString([]byte("\x00" + user + "\x00" + password)))
	return c.readLine()
}

// startNginx starts an nginx that uses s: for IMAP in the clear, with TLS and client
// certificates, and with PROXY headers.
func startNginx(t *testing.T, s *authServer, ca *testbed.CA) []string {
	t.Helper()
	cert, key := ca.Issue(t, "localhost")
	return testbed.StartNginx(t, 3, func(addrs []string) string {
		return fmt.Sprintf(`
auth_http http://%s/auth;
auth_http_header X-Auth-Key "s3cret";
auth_http_pass_client_cert on;
imap_auth plain login external;
imap_client_buffer 8k;
server { protocol imap; listen %s; }
server { protocol imap; listen %s ssl; ssl_certificate %s; ssl_certificate_key %s; ssl_client_certificate %s; ssl_verify_client optional; }
server { protocol imap; listen %s proxy_protocol; set_real_ip_from 127.0.0.1; }`,
			s.address, addrs[0], addrs[1], cert, key, ca.File, addrs[2])
	})
}

// expectSameRequest compares nginx's request with that of a Client. Host has no port in either,
// and the Client may not add a header.
func expectSameRequest(t *testing.T, s *authServer, cfg Config, req Request) {
	t.Helper()
	nginxRequests := s.takeRequests()
	if len(nginxRequests) != 1 {
		t.Fatalf("nginx has sent %d requests", len(nginxRequests))
	}
	a := newClient(t, cfg)
	if _, err := a.Authenticate(t.Context(), req); err != nil && !errors.Is(err, ErrDenied) {
		t.Fatal(err)
	}
	ownRequests := s.takeRequests()
	if len(ownRequests) != 1 {
		t.Fatalf("the Client has sent %d requests", len(ownRequests))
	}
	if !reflect.DeepEqual(ownRequests[0].header, nginxRequests[0].header) || len(ownRequests[0].names) != len(nginxRequests[0].names) {
		t.Errorf("the Client sends\n%q\nnginx sends\n%q", ownRequests[0].header, nginxRequests[0].header)
	}
	if got, want := strings.TrimSuffix(ownRequests[0].line, "HTTP/1.1"), strings.TrimSuffix(nginxRequests[0].line, "HTTP/1.0"); got != want {
		t.Errorf("the Client sends %q, nginx %q", got, want)
	}
}

func TestRequestsMatchNginx(t *testing.T) {
	t.Parallel()
	s := startAuthServer(t, respondAlways(formatResponse("Auth-Status: no")))
	nginx := startNginx(t, s, testbed.NewCA(t))
	cfg := configFor(s)
	cfg.Secrets = operatorHeader("X-Auth-Key", "s3cret")
	local := netip.MustParseAddr("127.0.0.1")

	t.Run("of the command LOGIN", func(t *testing.T) {
		c := dial(t, nginx[0])
		c.writeLine(`a LOGIN "al%ice@example.org" "pass word"`)
		c.readLine()
		expectSameRequest(t, s, cfg, Request{Method: MethodPlain, User: "al%ice@example.org", Password: secret("pass word"), Attempt: 1, ClientAddr: local})
	})
	t.Run("of every byte a user or a password can have", func(t *testing.T) {
		var odd []byte
		for c := 1; c < 256; c++ {
			if c != 0x7f { // nginx sends DEL unescaped, which is not valid HTTP
				odd = append(odd, byte(c))
			}
		}
		dial(t, nginx[0]).authenticatePlain(string(odd), "p"+string(odd))
		expectSameRequest(t, s, cfg, Request{Method: MethodPlain, User: string(odd), Password: secret("p" + string(odd)), Attempt: 1, ClientAddr: local})
	})
	t.Run("of the mechanism EXTERNAL", func(t *testing.T) {
		c := dial(t, nginx[0])
		c.writeLine("a AUTHENTICATE EXTERNAL")
		c.readLine()
		c.writeLine(base64.StdEncoding.EncodeToString([]byte("alice")))
		c.readLine()
		expectSameRequest(t, s, cfg, Request{Method: MethodExternal, User: "alice", Attempt: 1, ClientAddr: local})
	})
	t.Run("with a PROXY header", func(t *testing.T) {
		c := dial(t, nginx[2], func(c net.Conn) net.Conn {
			if _, err := fmt.Fprintf(c, "PROXY TCP6 2001:db8::7 2001:db8::25 4711 993\r\n"); err != nil {
				t.Fatal(err)
			}
			return c
		})
		c.authenticatePlain("alice", "wrong")
		expectSameRequest(t, s, cfg, Request{Method: MethodPlain, User: "alice", Password: secret("wrong"), Attempt: 1, ClientAddr: netip.MustParseAddr("2001:db8::7"),
			ProxyHeader: &ProxyHeader{netip.MustParseAddrPort("[2001:db8::7]:4711"), netip.MustParseAddrPort("[2001:db8::25]:993")}})
	})
	t.Run("of the second attempt", func(t *testing.T) {
		s.setResponse(formatResponse("Auth-Status: no", "Auth-Wait: 1"))
		defer s.setResponse(formatResponse("Auth-Status: no"))
		c := dial(t, nginx[0])
		c.authenticatePlain("alice", "one")
		s.takeRequests()
		c.authenticatePlain("alice", "two")
		expectSameRequest(t, s, cfg, Request{Method: MethodPlain, User: "alice", Password: secret("two"), Attempt: 2, ClientAddr: local})
	})
}

func TestTLSHeadersMatchNginx(t *testing.T) {
	t.Parallel()
	s := startAuthServer(t, respondAlways(formatResponse("Auth-Status: no")))
	ca := testbed.NewCA(t)
	nginx := startNginx(t, s, ca)
	cfg := configFor(s)
	cfg.Secrets = operatorHeader("X-Auth-Key", "s3cret")
	cfg.ClientCerts, cfg.PassClientCert = true, true
	cert, key := ca.Issue(t, "alice@example.org")
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]*tls.Config{
		"without a certificate": {MaxVersion: tls.VersionTLS12},
		"with a certificate":    {Certificates: []tls.Certificate{pair}},
	} {
		t.Run(name, func(t *testing.T) {
			c.InsecureSkipVerify = true // it is our own, on loopback
			var up *tls.Conn
			client := dial(t, nginx[1], func(nc net.Conn) net.Conn { up = tls.Client(nc, c); return up })
			client.authenticatePlain("alice", "wrong")
			// The state that the server of this connection has.
			state := tls.ConnectionState{Version: up.ConnectionState().Version, CipherSuite: up.ConnectionState().CipherSuite}
			if len(c.Certificates) > 0 {
				leaf, err := x509.ParseCertificate(pair.Certificate[0])
				if err != nil {
					t.Fatal(err)
				}
				state.PeerCertificates = []*x509.Certificate{leaf}
				state.VerifiedChains = [][]*x509.Certificate{state.PeerCertificates}
			}
			expectSameRequest(t, s, cfg, Request{Method: MethodPlain, User: "alice", Password: secret("wrong"), Attempt: 1,
				ClientAddr: netip.MustParseAddr("127.0.0.1"), TLS: &state})
		})
	}
}

// logInThroughNginx returns the login that nginx makes at the backend, and the backend; "" for
// none.
func logInThroughNginx(t *testing.T, nginx string, backend net.Listener) string {
	t.Helper()
	logins := make(chan string, 1)
	go func() { logins <- readBackendLogin(backend) }()
	c := dial(t, nginx)
	answer := c.authenticatePlain("alice", "hers")
	if strings.HasPrefix(answer, "a OK") {
		return <-logins
	}
	// There was no login: an empty connection ends the wait.
	stop, err := net.Dial("tcp", backend.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	_ = stop.Close()
	if login := <-logins; login != "" {
		t.Errorf("nginx answers %q and logs %s in", answer, login)
	}
	return ""
}

// readBackendLogin plays the server of one connection. nginx sends only LOGIN with two
// literals.
func readBackendLogin(l net.Listener) string {
	c, err := l.Accept()
	if err != nil {
		return ""
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(testTimeout))
	r := bufio.NewReader(c)
	var lines []string
	for _, text := range []string{"* OK hello\r\n", "+ go\r\n", "+ go\r\n", "a OK you are in\r\n"} {
		if _, err := c.Write([]byte(text)); err != nil {
			return ""
		}
		if len(lines) == 3 {
			break
		}
		line, err := r.ReadString('\n')
		if err != nil {
			return ""
		}
		lines = append(lines, strings.TrimSuffix(line, "\r\n"))
	}
	user, _, _ := strings.Cut(lines[1], " {")
	return user + " " + lines[2] + " at " + l.Addr().String()
}

func TestDecisionsMatchNginx(t *testing.T) {
	t.Parallel()
	backend, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = backend.Close() })
	at := "Auth-Server: 127.0.0.1\r\nAuth-Port: " + fmt.Sprint(backend.Addr().(*net.TCPAddr).Port)
	s := startAuthServer(t, respondAlways(""))
	nginx := startNginx(t, s, testbed.NewCA(t))
	for name, c := range map[string]struct {
		answer string
		denied bool
	}{
		"right":                         {answer: formatResponse("Auth-Status: OK", at)},
		"with another user":             {answer: formatResponse("auth-status: OK", at, "Auth-User: u%20l-17@store")},
		"with another password":         {answer: formatResponse("Auth-Status: OK", at, "Auth-Pass:   g%41te way  ")},
		"with both, and other headers":  {answer: formatResponse("Auth-Status: OK", at, "Auth-User: x", "Auth-Pass: y", "X-Powered-By: z", "Auth-Error-Code: 535")},
		"and no status line to look at": {answer: strings.Replace(formatResponse("Auth-Status: OK", at), "200 OK", "403 Forbidden", 1)},
		"by redirect":                   {answer: strings.Replace(formatResponse("Auth-Status: OK", "Location: http://127.0.0.1:1/", at), "200 OK", "302 Found", 1)},
		"wrong":                         {answer: formatResponse("Auth-Status: Invalid login or password"), denied: true},
		"wrong, with a delay":           {answer: formatResponse("Auth-Status: Invalid login or password", "Auth-Wait: 1"), denied: true},
		"wrong in small letters":        {answer: formatResponse("Auth-Status: ok", at), denied: true},
		"no server":                     {answer: formatResponse("Auth-Status: OK", "Auth-Port: 143")},
		"no port":                       {answer: formatResponse("Auth-Status: OK", "Auth-Server: 127.0.0.1")},
		"a name for a server":           {answer: formatResponse("Auth-Status: OK", "Auth-Server: localhost", "Auth-Port: 143")},
		"an invalid port":               {answer: formatResponse("Auth-Status: OK", "Auth-Server: 127.0.0.1", "Auth-Port: 65536")},
		"a page":                        {answer: "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 5\r\n\r\nsorry"},
		"garbage":                       {answer: "\x00\x01\x02\r\n\r\nConnection: close"},
	} {
		t.Run(name, func(t *testing.T) {
			s.setResponse(c.answer)
			nginxResult := logInThroughNginx(t, nginx[0], backend)
			answer, err := newClient(t, configFor(s)).Authenticate(t.Context(), Request{Method: MethodPlain, User: "alice", Password: secret("hers"), Attempt: 1, ClientAddr: netip.IPv4Unspecified()})
			if errors.Is(err, ErrDenied) != c.denied || err != nil && !c.denied && !errors.Is(err, ErrUnavailable) {
				t.Errorf("the Client returns %v", err)
			}
			ownResult := ""
			if err == nil && answer.BackendAddr.IsValid() {
				ownResult = orDefault(answer.LoginName, "alice") + " " + orDefault(answer.Password.Reveal(), "hers") + " at " + answer.BackendAddr.String()
			}
			if ownResult != nginxResult {
				t.Errorf("nginx logs in %q, the Client %q (%v)", nginxResult, ownResult, err)
			}
		})
	}
}

func TestWAITIsRetriedAsInNginx(t *testing.T) {
	t.Parallel()
	requests := 0
	s := startAuthServer(t, func(receivedRequest) string {
		if requests++; requests%2 == 1 {
			return formatResponse("Auth-Status: WAIT", "Auth-Wait: 1")
		}
		return formatResponse("Auth-Status: no")
	})
	nginx := startNginx(t, s, testbed.NewCA(t))
	start := time.Now()
	if got := dial(t, nginx[0]).authenticatePlain("alice", "hers"); got != "a NO no" || time.Since(start) < time.Second {
		t.Errorf("nginx answers %q after %v", got, time.Since(start))
	}
	nginxRequests := s.takeRequests()
	start = time.Now()
	_, err := newClient(t, configFor(s)).Authenticate(t.Context(), Request{Method: MethodPlain, User: "alice", Password: secret("hers"), Attempt: 1, ClientAddr: netip.MustParseAddr("127.0.0.1")})
	if !errors.Is(err, ErrDenied) || time.Since(start) < time.Second {
		t.Errorf("the Client returns %v after %v", err, time.Since(start))
	}
	ownRequests := s.takeRequests()
	if len(nginxRequests) != 2 || len(ownRequests) != 2 {
		t.Fatalf("nginx has sent %d requests, the Client %d", len(nginxRequests), len(ownRequests))
	}
	for i := range ownRequests {
		if got, want := ownRequests[i].header["Auth-Login-Attempt"], nginxRequests[i].header["Auth-Login-Attempt"]; got != want {
			t.Errorf("request %d: the Client's attempt is %s, nginx's %s", i, got, want)
		}
	}
}

func orDefault(s, other string) string {
	if s == "" {
		return other
	}
	return s
}
