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

// said is one IMAP dialogue's client.
type said struct {
	t    *testing.T
	conn net.Conn
	r    *bufio.Reader
}

func dial(t *testing.T, address string, over ...func(net.Conn) net.Conn) *said {
	t.Helper()
	conn, err := net.DialTimeout("tcp", address, testTime)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(testTime)); err != nil {
		t.Fatal(err)
	}
	for _, wrap := range over {
		conn = wrap(conn)
	}
	c := &said{t, conn, bufio.NewReader(conn)}
	c.read()
	return c
}

func (c *said) read() string {
	c.t.Helper()
	line, err := c.r.ReadString('\n')
	if err != nil {
		c.t.Fatalf("read from nginx: %v", err)
	}
	return strings.TrimSuffix(line, "\r\n")
}

func (c *said) say(line string) {
	c.t.Helper()
	if _, err := fmt.Fprintf(c.conn, "%s\r\n", line); err != nil {
		c.t.Fatal(err)
	}
}

// plain logs in with AUTHENTICATE PLAIN, which can carry every byte but NUL.
func (c *said) plain(user, password string) string {
	c.t.Helper()
	c.say("a AUTHENTICATE PLAIN")
	c.read()
	c.say(base64.StdEncoding.EncodeToString([]byte("\x00" + user + "\x00" + password)))
	return c.read()
}

// startNginx starts one that asks s: for IMAP in the clear, with TLS and client
// certificates, and behind a balancer.
func startNginx(t *testing.T, s *authServer, ca *testbed.CA) []string {
	t.Helper()
	cert, key := ca.Issue(t, "localhost")
	return testbed.StartNginx(t, 3, func(a []string) string {
		return fmt.Sprintf(`
auth_http http://%s/auth;
auth_http_header X-Auth-Key "s3cret";
auth_http_pass_client_cert on;
imap_auth plain login external;
imap_client_buffer 8k;
server { protocol imap; listen %s; }
server { protocol imap; listen %s ssl; ssl_certificate %s; ssl_certificate_key %s; ssl_client_certificate %s; ssl_verify_client optional; }
server { protocol imap; listen %s proxy_protocol; set_real_ip_from 127.0.0.1; }`,
			s.address, a[0], a[1], cert, key, ca.File, a[2])
	})
}

// sameQuestion compares what nginx has asked with what we ask. Host has no port
// in either; nothing of ours may come on top.
func sameQuestion(t *testing.T, s *authServer, cfg Config, q Question) {
	t.Helper()
	theirs := s.questions()
	if len(theirs) != 1 {
		t.Fatalf("nginx has asked %d questions", len(theirs))
	}
	a := newAsker(t, cfg)
	if _, err := a.Ask(t.Context(), q); err != nil && !errors.Is(err, ErrDenied) {
		t.Fatal(err)
	}
	ours := s.questions()
	if len(ours) != 1 {
		t.Fatalf("we have asked %d questions", len(ours))
	}
	if !reflect.DeepEqual(ours[0].header, theirs[0].header) || len(ours[0].names) != len(theirs[0].names) {
		t.Errorf("we ask\n%q\nnginx asks\n%q", ours[0].header, theirs[0].header)
	}
	if got, want := strings.TrimSuffix(ours[0].line, "HTTP/1.1"), strings.TrimSuffix(theirs[0].line, "HTTP/1.0"); got != want {
		t.Errorf("we ask %q, nginx %q", got, want)
	}
}

func TestNginxAsksTheSame(t *testing.T) {
	t.Parallel()
	s := startAuthServer(t, always(response("Auth-Status: no")))
	nginx := startNginx(t, s, testbed.NewCA(t))
	cfg := to(s)
	cfg.Headers = header("X-Auth-Key", "s3cret")
	local := netip.MustParseAddr("127.0.0.1")

	t.Run("of the command LOGIN", func(t *testing.T) {
		c := dial(t, nginx[0])
		c.say(`a LOGIN "al%ice@example.org" "pass word"`)
		c.read()
		sameQuestion(t, s, cfg, Question{Method: Plain, User: "al%ice@example.org", Password: secret("pass word"), Attempt: 1, Client: local})
	})
	t.Run("of every byte a user or a password can have", func(t *testing.T) {
		var odd []byte
		for c := 1; c < 256; c++ {
			if c != 0x7f { // nginx sends DEL as it is, which is no HTTP
				odd = append(odd, byte(c))
			}
		}
		dial(t, nginx[0]).plain(string(odd), "p"+string(odd))
		sameQuestion(t, s, cfg, Question{Method: Plain, User: string(odd), Password: secret("p" + string(odd)), Attempt: 1, Client: local})
	})
	t.Run("of the mechanism EXTERNAL", func(t *testing.T) {
		c := dial(t, nginx[0])
		c.say("a AUTHENTICATE EXTERNAL")
		c.read()
		c.say(base64.StdEncoding.EncodeToString([]byte("alice")))
		c.read()
		sameQuestion(t, s, cfg, Question{Method: External, User: "alice", Attempt: 1, Client: local})
	})
	t.Run("behind a balancer", func(t *testing.T) {
		c := dial(t, nginx[2], func(c net.Conn) net.Conn {
			if _, err := fmt.Fprintf(c, "PROXY TCP6 2001:db8::7 2001:db8::25 4711 993\r\n"); err != nil {
				t.Fatal(err)
			}
			return c
		})
		c.plain("alice", "wrong")
		sameQuestion(t, s, cfg, Question{Method: Plain, User: "alice", Password: secret("wrong"), Attempt: 1, Client: netip.MustParseAddr("2001:db8::7"),
			Proxy: &Proxy{netip.MustParseAddrPort("[2001:db8::7]:4711"), netip.MustParseAddrPort("[2001:db8::25]:993")}})
	})
	t.Run("of the second attempt", func(t *testing.T) {
		s.says(response("Auth-Status: no", "Auth-Wait: 1"))
		defer s.says(response("Auth-Status: no"))
		c := dial(t, nginx[0])
		c.plain("alice", "one")
		s.questions()
		c.plain("alice", "two")
		sameQuestion(t, s, cfg, Question{Method: Plain, User: "alice", Password: secret("two"), Attempt: 2, Client: local})
	})
}

func TestNginxSaysTheSameOfTLS(t *testing.T) {
	t.Parallel()
	s := startAuthServer(t, always(response("Auth-Status: no")))
	ca := testbed.NewCA(t)
	nginx := startNginx(t, s, ca)
	cfg := to(s)
	cfg.Headers = header("X-Auth-Key", "s3cret")
	cfg.ClientCerts, cfg.PassCert = true, true
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
			client.plain("alice", "wrong")
			// What the server of this connection would see.
			state := tls.ConnectionState{Version: up.ConnectionState().Version, CipherSuite: up.ConnectionState().CipherSuite}
			if len(c.Certificates) > 0 {
				leaf, err := x509.ParseCertificate(pair.Certificate[0])
				if err != nil {
					t.Fatal(err)
				}
				state.PeerCertificates = []*x509.Certificate{leaf}
				state.VerifiedChains = [][]*x509.Certificate{state.PeerCertificates}
			}
			sameQuestion(t, s, cfg, Question{Method: Plain, User: "alice", Password: secret("wrong"), Attempt: 1,
				Client: netip.MustParseAddr("127.0.0.1"), TLS: &state})
		})
	}
}

// nginxLogin is who nginx logs in at the backend, and where; "" for nobody.
func nginxLogin(t *testing.T, nginx string, backend net.Listener) string {
	t.Helper()
	arrived := make(chan string, 1)
	go func() { arrived <- backendLogin(backend) }()
	c := dial(t, nginx)
	answer := c.plain("alice", "hers")
	if strings.HasPrefix(answer, "a OK") {
		return <-arrived
	}
	// Nobody has come: end the wait with a connection that says nothing.
	stop, err := net.Dial("tcp", backend.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	_ = stop.Close()
	if who := <-arrived; who != "" {
		t.Errorf("nginx says %q and logs %s in", answer, who)
	}
	return ""
}

// backendLogin plays the server of one connection: LOGIN with two literals is
// all that nginx says.
func backendLogin(l net.Listener) string {
	c, err := l.Accept()
	if err != nil {
		return ""
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(testTime))
	r := bufio.NewReader(c)
	var lines []string
	for _, say := range []string{"* OK hello\r\n", "+ go\r\n", "+ go\r\n", "a OK you are in\r\n"} {
		if _, err := c.Write([]byte(say)); err != nil {
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

func TestNginxDecidesTheSame(t *testing.T) {
	t.Parallel()
	backend, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = backend.Close() })
	at := "Auth-Server: 127.0.0.1\r\nAuth-Port: " + fmt.Sprint(backend.Addr().(*net.TCPAddr).Port)
	s := startAuthServer(t, always(""))
	nginx := startNginx(t, s, testbed.NewCA(t))
	for name, c := range map[string]struct {
		answer string
		denied bool
	}{
		"right":                         {answer: response("Auth-Status: OK", at)},
		"with another user":             {answer: response("auth-status: OK", at, "Auth-User: u%20l-17@store")},
		"with another password":         {answer: response("Auth-Status: OK", at, "Auth-Pass:   g%41te way  ")},
		"with both, and other headers":  {answer: response("Auth-Status: OK", at, "Auth-User: x", "Auth-Pass: y", "X-Powered-By: z", "Auth-Error-Code: 535")},
		"and no status line to look at": {answer: strings.Replace(response("Auth-Status: OK", at), "200 OK", "403 Forbidden", 1)},
		"by redirect":                   {answer: strings.Replace(response("Auth-Status: OK", "Location: http://127.0.0.1:1/", at), "200 OK", "302 Found", 1)},
		"wrong":                         {answer: response("Auth-Status: Invalid login or password"), denied: true},
		"wrong, with a delay":           {answer: response("Auth-Status: Invalid login or password", "Auth-Wait: 1"), denied: true},
		"wrong in small letters":        {answer: response("Auth-Status: ok", at), denied: true},
		"no server":                     {answer: response("Auth-Status: OK", "Auth-Port: 143")},
		"no port":                       {answer: response("Auth-Status: OK", "Auth-Server: 127.0.0.1")},
		"a name for a server":           {answer: response("Auth-Status: OK", "Auth-Server: localhost", "Auth-Port: 143")},
		"a port that is none":           {answer: response("Auth-Status: OK", "Auth-Server: 127.0.0.1", "Auth-Port: 65536")},
		"a page":                        {answer: "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 5\r\n\r\nsorry"},
		"garbage":                       {answer: "\x00\x01\x02\r\n\r\nConnection: close"},
	} {
		t.Run(name, func(t *testing.T) {
			s.says(c.answer)
			theirs := nginxLogin(t, nginx[0], backend)
			answer, err := newAsker(t, to(s)).Ask(t.Context(), Question{Method: Plain, User: "alice", Password: secret("hers"), Attempt: 1, Client: netip.IPv4Unspecified()})
			if errors.Is(err, ErrDenied) != c.denied || err != nil && !c.denied && !errors.Is(err, ErrUnavailable) {
				t.Errorf("we say %v", err)
			}
			ours := ""
			if err == nil && answer.Server.IsValid() {
				ours = or(answer.User, "alice") + " " + or(answer.Password.Reveal(), "hers") + " at " + answer.Server.String()
			}
			if ours != theirs {
				t.Errorf("nginx logs in %q, we %q (%v)", theirs, ours, err)
			}
		})
	}
}

func TestAfterWAITNginxAsksAgainAndSoDoWe(t *testing.T) {
	t.Parallel()
	turn := 0
	s := startAuthServer(t, func(asked) string {
		if turn++; turn%2 == 1 {
			return response("Auth-Status: WAIT", "Auth-Wait: 1")
		}
		return response("Auth-Status: no")
	})
	nginx := startNginx(t, s, testbed.NewCA(t))
	began := time.Now()
	if got := dial(t, nginx[0]).plain("alice", "hers"); got != "a NO no" || time.Since(began) < time.Second {
		t.Errorf("nginx says %q after %v", got, time.Since(began))
	}
	theirs := s.questions()
	began = time.Now()
	_, err := newAsker(t, to(s)).Ask(t.Context(), Question{Method: Plain, User: "alice", Password: secret("hers"), Attempt: 1, Client: netip.MustParseAddr("127.0.0.1")})
	if !errors.Is(err, ErrDenied) || time.Since(began) < time.Second {
		t.Errorf("we say %v after %v", err, time.Since(began))
	}
	ours := s.questions()
	if len(theirs) != 2 || len(ours) != 2 {
		t.Fatalf("nginx has asked %d times, we %d", len(theirs), len(ours))
	}
	for i := range ours {
		if got, want := ours[i].header["Auth-Login-Attempt"], theirs[i].header["Auth-Login-Attempt"]; got != want {
			t.Errorf("question %d: our attempt is %s, nginx's %s", i, got, want)
		}
	}
}

func or(s, other string) string {
	if s == "" {
		return other
	}
	return s
}
