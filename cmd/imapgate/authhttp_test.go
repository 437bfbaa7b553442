//go:build unix

package main

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"

	"imapgate/auth"
	"imapgate/auth/authhttp"
	"imapgate/internal/config"
	"imapgate/internal/identity"
	"imapgate/internal/testbed"
)

// fakeAuthServer is an auth server that keeps the headers of its requests.
type fakeAuthServer struct {
	*httptest.Server

	// Guarded by mu.
	mu       sync.Mutex
	requests []http.Header
}

func startFakeAuthServer(t *testing.T, answer map[string]string) *fakeAuthServer {
	t.Helper()
	p := &fakeAuthServer{}
	p.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.mu.Lock()
		p.requests = append(p.requests, r.Header)
		p.mu.Unlock()
		for name, value := range answer {
			w.Header().Set(name, value)
		}
	}))
	t.Cleanup(p.Close)
	return p
}

// lastRequest returns the headers of the last request.
func (f *fakeAuthServer) lastRequest(t *testing.T) http.Header {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.requests) == 0 {
		t.Fatal("no request was sent")
	}
	return f.requests[len(f.requests)-1]
}

// connectOver is connect over an existing connection, on which it first writes
// first.
func connectOver(t *testing.T, nc net.Conn, first ...string) *testClient {
	t.Helper()
	t.Cleanup(func() { _ = nc.Close() })
	if err := nc.SetDeadline(time.Now().Add(testTimeout)); err != nil {
		t.Fatal(err)
	}
	k := &testClient{nc, bufio.NewReader(nc)}
	for _, line := range first {
		k.writeLine(t, line)
	}
	k.readMatch(t, `^\* OK `)
	return k
}

func TestAuthServerDecidesLoginAndRoute(t *testing.T) {
	t.Parallel()
	b, err := startBackend("east", "demo")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.stop() })
	where := netip.MustParseAddrPort(b.address())
	page := startFakeAuthServer(t, map[string]string{
		"Auth-Status": "OK", "Auth-Server": where.Addr().String(), "Auth-Port": fmt.Sprint(where.Port()),
		"Auth-User": "bob@example.org", "Auth-Pass": "demo",
	})
	cert, key := certificate(t)
	ca := testbed.NewCA(t)
	s := startServe(t, write(t, "imapgate.yaml", fmt.Sprintf(`
listeners:
  - {name: plain, address: "127.0.0.1:0", tls: none}
  - {name: balanced, address: "127.0.0.1:0", tls: none, proxy_protocol: {trusted: [127.0.0.0/8]}}
  - {name: imaps, address: "127.0.0.1:0"}
tls: {certificates: [{cert: %q, key: %q}], client_ca: %q}
auth: {methods: [http], default_domain: example.org, external: {san: dns}, http: {urls: [%q], headers: {X-Realm: mail}}}
routing: {source: http}
backends: {east: {address: %q, tls: none, forward: none}}
audit: {path: ""}
admin: {address: "127.0.0.1:0"}
`, cert, key, ca.File, page.URL+"/auth?a=b", fmt.Sprintf("localhost:%d", where.Port()))))

	balanced := s.awaitMatch(t, `"listener":"balanced","address":"([^"]+)"`)[1]
	nc, err := net.Dial("tcp", balanced)
	if err != nil {
		t.Fatal(err)
	}
	c := connectOver(t, nc, "PROXY TCP4 192.0.2.7 198.51.100.1 4711 143")
	c.writeLine(t, "a LOGIN Alice \"pa ss%\"")
	c.readMatch(t, "^a OK ")
	c.writeLine(t, "b LIST \"\" *")
	c.readMatch(t, "^b OK ")
	for name, want := range map[string]string{
		"Auth-Method": "plain", "Auth-User": "alice@example.org", "Auth-Pass": "pa%20ss%25", "Auth-Protocol": "imap", "Auth-Login-Attempt": "1",
		"Client-Ip": "192.0.2.7", "Proxy-Protocol-Addr": "192.0.2.7", "Proxy-Protocol-Port": "4711",
		"Proxy-Protocol-Server-Addr": "198.51.100.1", "Proxy-Protocol-Server-Port": "143", "X-Realm": "mail", "Auth-Ssl": "",
	} {
		if got := page.lastRequest(t).Get(name); got != want {
			t.Errorf("%s is %q, not %q", name, got, want)
		}
	}

	imaps := s.awaitMatch(t, `"listener":"imaps","address":"([^"]+)"`)[1]
	conf := &tls.Config{InsecureSkipVerify: true} // the test's own certificate, on loopback
	if nc, err = tls.Dial("tcp", imaps, conf); err != nil {
		t.Fatal(err)
	}
	c = connectOver(t, nc)
	c.writeLine(t, "a LOGIN alice x")
	c.readMatch(t, "^a OK ")
	h := page.lastRequest(t)
	if h.Get("Auth-SSL") != "on" || h.Get("Auth-SSL-Protocol") != "TLSv1.3" || h.Get("Auth-SSL-Verify") != "NONE" || h.Get("Client-IP") != "127.0.0.1" || h.Get("Proxy-Protocol-Addr") != "" {
		t.Errorf("with TLS: %v", h)
	}

	pair, err := tls.LoadX509KeyPair(ca.Issue(t, "carol"))
	if err != nil {
		t.Fatal(err)
	}
	conf.Certificates = []tls.Certificate{pair}
	if nc, err = tls.Dial("tcp", imaps, conf); err != nil {
		t.Fatal(err)
	}
	c = connectOver(t, nc)
	c.writeLine(t, "a AUTHENTICATE EXTERNAL =")
	c.readMatch(t, "^a OK ")
	h = page.lastRequest(t)
	if h.Get("Auth-Method") != "external" || h.Get("Auth-User") != "carol@example.org" || h.Get("Auth-Pass") != "" ||
		h.Get("Auth-SSL-Verify") != "SUCCESS" || h.Get("Auth-SSL-Subject") != "CN=carol" || h.Get("Auth-SSL-Issuer") != "CN=Test authority" {
		t.Errorf("with a certificate: %v", h)
	}
}

func TestAuthHTTPErrorsBecomeAuthErrors(t *testing.T) {
	u, err := identity.Canonicalize("alice", "")
	if err != nil {
		t.Fatal(err)
	}
	login := auth.Login{User: u, Password: identity.NewSecret("x"), Mechanism: auth.CommandLogin}
	for name, c := range map[string]struct {
		answer map[string]string
		want   error
		wait   time.Duration
	}{
		"right":              {map[string]string{"Auth-Status": "OK"}, nil, 0},
		"wrong":              {map[string]string{"Auth-Status": "no"}, auth.ErrDenied, 0},
		"wrong, with a wait": {map[string]string{"Auth-Status": "no", "Auth-Wait": "4"}, auth.ErrDenied, 4 * time.Second},
		"nothing":            {nil, auth.ErrUnavailable, 0},
	} {
		page := startFakeAuthServer(t, c.answer)
		cfg := &config.Config{Auth: config.Auth{Settings: auth.Settings{Methods: []string{auth.HTTP}}, HTTP: testbed.WithDefaults(authhttp.Settings{URLs: []string{page.URL}})}}
		s, err := openAuthHTTPServers(cfg, &watchedFiles{}, zap.NewNop())
		if err != nil {
			t.Fatal(err)
		}
		_, err = s.verifyLogin(t.Context(), login)
		if !errors.Is(err, c.want) || errors.Is(err, auth.ErrDenied) && errors.Is(err, auth.ErrUnavailable) {
			t.Errorf("%s: %v", name, err)
		}
		var wait *auth.DelayedDenial
		if errors.As(err, &wait) != (c.wait > 0) || wait != nil && wait.Delay != c.wait {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestARenewedCertificateIsPresentedToTheAuthServer(t *testing.T) {
	ca := testbed.NewCA(t)
	served, err := tls.LoadX509KeyPair(ca.Issue(t, "127.0.0.1"))
	if err != nil {
		t.Fatal(err)
	}
	presented := make(chan string, 2)
	page := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		presented <- r.TLS.PeerCertificates[0].Subject.CommonName
		w.Header().Set("Auth-Status", "OK")
		w.Header().Set("Connection", "close")
	}))
	page.TLS = &tls.Config{Certificates: []tls.Certificate{served}, ClientCAs: ca.Pool, ClientAuth: tls.RequireAndVerifyClientCert}
	page.StartTLS()
	t.Cleanup(page.Close)
	cert, key := ca.Issue(t, "old")
	cfg := &config.Config{Auth: config.Auth{Settings: auth.Settings{Methods: []string{auth.HTTP}}, HTTP: testbed.WithDefaults(authhttp.Settings{URLs: []string{page.URL}, CA: ca.File, Cert: cert, Key: key})}}
	f, err := openFiles(cfg, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	s, err := openAuthHTTPServers(cfg, f, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"old", "new"} {
		if _, err := s.verifyLogin(t.Context(), auth.Login{}); err != nil {
			t.Fatal(err)
		}
		if got := <-presented; got != want {
			t.Errorf("presented %s, want %s", got, want)
		}
		newCert, newKey := ca.Issue(t, "new")
		for from, to := range map[string]string{newCert: cert, newKey: key} {
			if err := os.Rename(from, to); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := f.Reload(); err != nil {
			t.Fatal(err)
		}
	}
	cfg.Auth.HTTP.Key = cert
	if _, err := openFiles(cfg, zap.NewNop()); err == nil || !strings.HasPrefix(err.Error(), "auth.http.key: ") {
		t.Errorf("a certificate without its key: %v", err)
	}
}
