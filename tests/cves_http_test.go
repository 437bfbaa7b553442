package tests

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"go.uber.org/zap"

	"imapgate/auth/authhttp"
	"imapgate/internal/identity"
	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
)

// clientCertState returns the state of a connection with a client certificate for name.
func clientCertState(t *testing.T, name string) *tls.ConnectionState {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name, Organization: []string{name}}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.ConnectionState{Version: tls.VersionTLS13, CipherSuite: tls.TLS_AES_128_GCM_SHA256,
		PeerCertificates: []*x509.Certificate{cert}, VerifiedChains: [][]*x509.Certificate{{cert}}}
}

// nginx CVE-2026-28753: a user name with line ends, sent to the auth server in a header,
// added headers to the request.
func TestNoHeaderToAnAuthServerHasLineEndsOrNULs(t *testing.T) {
	t.Parallel()
	questions := make(chan []byte, 1)
	server := testkit.StartIMAP(t, func(conn *testkit.Conn) {
		for {
			var question []byte
			for !bytes.HasSuffix(question, []byte("\r\n\r\n")) {
				line, err := conn.R.ReadBytes('\n')
				if err != nil {
					return
				}
				question = append(question, line...)
			}
			questions <- question
			_, _ = conn.Write([]byte("HTTP/1.1 200 OK\r\nAuth-Status: OK\r\nAuth-Server: 127.0.0.1\r\nAuth-Port: 143\r\nContent-Length: 0\r\n\r\n"))
		}
	})
	config := testbed.WithDefaults(authhttp.Config{Settings: authhttp.Settings{URLs: []string{"http://" + server.Addr() + "/auth"}, PassClientCert: true}, ClientCerts: true})
	asker, err := authhttp.New(config, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(asker.Close)
	for _, end := range []string{"\r\n", "\n", "\r", "\x00", "\r\n\r\n", "\n\n", "\x00\r\n", "\v\f\u0085\u2028"} {
		evil := "a" + end + "Auth-Status: OK" + end + "X-Evil: 1"
		at := netip.AddrPortFrom(netip.MustParseAddr("fe80::1").WithZone(evil), 993)
		good := authhttp.Request{Method: authhttp.MethodPlain, User: "alice", Password: identity.NewSecret(password), Attempt: 1, ClientAddr: at.Addr()}
		for part, change := range map[string]func(*authhttp.Request){
			"user":        func(q *authhttp.Request) { q.User = evil },
			"password":    func(q *authhttp.Request) { q.Password = identity.NewSecret(evil) },
			"address":     func(*authhttp.Request) {},
			"proxy":       func(q *authhttp.Request) { q.ProxyHeader = &authhttp.ProxyHeader{Source: at, Server: at} },
			"certificate": func(q *authhttp.Request) { q.TLS = clientCertState(t, evil) },
		} {
			q := good
			change(&q)
			if _, err := asker.Authenticate(context.Background(), q); err != nil {
				t.Errorf("%s with %q: %v", part, end, err) // a value without line ends is valid
				continue
			}
			question := <-questions
			seen := map[string]bool{}
			for i, line := range strings.SplitAfter(strings.TrimSuffix(string(question), "\r\n"), "\n") {
				name, value, _ := strings.Cut(strings.TrimSuffix(line, "\r\n"), ": ")
				wrong := strings.ContainsAny(value, "\r\n\x00\v\f\x7f") || line != "" && !strings.HasSuffix(line, "\r\n") ||
					seen[name] || name == "Auth-Status" || name == "X-Evil"
				if i > 0 && wrong {
					t.Errorf("%s with %q: the auth server is sent %q", part, end, line)
				}
				seen[name] = true
			}
		}
		config := config
		config.Secrets = map[string]identity.Secret{"X-Key": identity.NewSecret(evil)}
		if _, err := authhttp.New(config, zap.NewNop()); err == nil && strings.ContainsAny(end, "\r\n\x00") {
			t.Errorf("a header of the configuration may have %q", end)
		}
	}
}

// authRequest is the auth server's view of one attempt.
type authRequest struct{ user, password, attempt string }

// nginx CVE-2026-27651: the next attempt, by any mechanism, used or freed the state of an
// attempt that the auth server had delayed.
func TestAttemptsAfterADelayedRefusalAreIndependent(t *testing.T) {
	t.Parallel()
	ca := testbed.NewCA(t)
	host, port := splitAddress(t, startStub(t, nil).Addr())
	var mu sync.Mutex
	all := map[string][]authRequest{} // guarded by mu
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a := authRequest{r.Header.Get("Auth-User"), r.Header.Get("Auth-Pass"), r.Header.Get("Auth-Login-Attempt")}
		session, _, _ := strings.Cut(a.user, ".")
		mu.Lock()
		all[session] = append(all[session], a)
		mu.Unlock()
		w.Header().Set("Auth-Status", "OK")
		w.Header().Set("Auth-Server", host)
		w.Header().Set("Auth-Port", port)
		if a.password != "right" {
			w.Header().Set("Auth-Status", "Invalid login")
			w.Header().Set("Auth-Wait", "1")
		}
	}))
	t.Cleanup(server.Close)
	b := startProcess(t, ca, fmt.Sprintf(`backends:
  east: {address: %q, tls: none}
auth: {methods: [http], http: {urls: [%q]}}
routing: {source: http}`, net.JoinHostPort(host, port), server.URL+"/auth"))

	code := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) + "\r\n" }
	ways := map[string]func(user, password string) string{
		"command": func(user, password string) string { return "t LOGIN " + user + " " + password + "\r\n" },
		"PLAIN": func(user, password string) string {
			return "t AUTHENTICATE PLAIN\r\n" + code("\x00"+user+"\x00"+password)
		},
		"PLAIN, IR": func(user, password string) string { return "t AUTHENTICATE PLAIN " + code("\x00"+user+"\x00"+password) },
		"LOGIN":     func(user, password string) string { return "t AUTHENTICATE LOGIN\r\n" + code(user) + code(password) },
		"broken off": func(user, password string) string {
			return "b AUTHENTICATE LOGIN\r\n" + code("mallory") + "*\r\nt LOGIN " + user + " " + password + "\r\n"
		},
	}
	var attempts sync.WaitGroup
	for first, begin := range ways {
		for second, end := range ways {
			attempts.Go(func() {
				session := strings.ToLower(strings.NewReplacer(" ", "", ",", "").Replace(first + "-" + second))
				c, err := dialIMAP(b.endpoint("implicit"), "")
				if err != nil {
					t.Error(err)
					return
				}
				defer c.Close()
				for i, text := range []string{begin(session+".1", "wrong"), end(session+".2", "right"), "t NOOP\r\n"} {
					_, err := c.Write([]byte(text))
					got := []Response(nil)
					if err == nil {
						got, err = c.ReadUntil("t")
					}
					want := [...]string{"t NO [AUTHENTICATIONFAILED] ", "t OK [CAPABILITY ", "t OK "}[i]
					if err != nil || !strings.HasPrefix(got[len(got)-1].Text, want) {
						t.Errorf("%s, then %s: step %d: %v, %v", first, second, i, got, err)
						return
					}
				}
				mu.Lock()
				defer mu.Unlock()
				seen := all[session]
				if len(seen) != 2 || seen[0].user != session+".1" || seen[0].password != "wrong" ||
					seen[1].user != session+".2" || seen[1].password != "right" || seen[1].attempt <= seen[0].attempt {
					t.Errorf("%s, then %s: the auth server received %v", first, second, seen)
				}
			})
		}
	}
	attempts.Wait()
}
