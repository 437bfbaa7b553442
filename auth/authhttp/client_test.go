package authhttp

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/textproto"
	"net/url"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"imapgate/internal/breaker"
	"imapgate/internal/identity"
	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
)

func newRequest() Request {
	return Request{Method: MethodPlain, User: "alice", Password: secret("hunter2"), Attempt: 1, ClientAddr: netip.MustParseAddr("192.0.2.7")}
}

// acceptAt returns a response that accepts every login, at 10.0.0.n.
func acceptAt(n int) string {
	return formatResponse("Auth-Status: OK", fmt.Sprintf("Auth-Server: 10.0.0.%d", n), "Auth-Port: 143")
}

// closedAddress returns an address that refuses connections.
func closedAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	return l.Addr().String()
}

func TestNextServerIsTriedAfterUnusableResponse(t *testing.T) {
	t.Parallel()
	good := startAuthServer(t, respondAlways(acceptAt(2)))
	for name, first := range map[string]string{
		"refuses connections": closedAddress(t),
		"is silent":           startAuthServer(t, respondAlways("")).address,
		"speaks garbage":      startAuthServer(t, respondAlways("220 mail ESMTP\r\n")).address,
		"hangs up":            startAuthServer(t, respondAlways("Connection: close")).address,
		"has a page of error": startAuthServer(t, respondAlways("HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")).address,
		"has OK twice":        startAuthServer(t, respondAlways(formatResponse("Auth-Status: OK", "Auth-Status: OK"))).address,
		"has half a header":   startAuthServer(t, respondAlways("HTTP/1.1 200 OK\r\nAuth-Status: OK\r\nConnection: close")).address,
		"has a long header":   startAuthServer(t, respondAlways(formatResponse("Auth-Status: OK", "X: "+strings.Repeat("x", maxHeader)))).address,
		"has an odd line":     startAuthServer(t, respondAlways(formatResponse("Auth-Status: OK", "no colon"))).address,
	} {
		t.Run(name, func(t *testing.T) {
			cfg := configFor(good)
			cfg.URLs = append([]string{"http://" + first}, cfg.URLs...)
			cfg.Timeout = time.Second / 2
			answer, err := newClient(t, cfg).Authenticate(t.Context(), newRequest())
			if err != nil || answer.BackendAddr != netip.MustParseAddrPort("10.0.0.2:143") {
				t.Errorf("%v, %v", answer, err)
			}
			cfg.URLs = cfg.URLs[:1]
			answer, err = newClient(t, cfg).Authenticate(t.Context(), newRequest())
			if !errors.Is(err, ErrUnavailable) || errors.Is(err, ErrDenied) || answer != (Response{}) {
				t.Errorf("the only server: accepted at %v, %v", answer, err)
			}
			if strings.Contains(fmt.Sprint(err), "hunter2") {
				t.Errorf("the password is in %v", err)
			}
		})
	}
}

// Only a server that received the password may have refused it.
func TestSentRequestsAreDistinguished(t *testing.T) {
	silent, hangsUp := startAuthServer(t, respondAlways("")), startAuthServer(t, respondAlways("x"))
	for name, tc := range map[string]struct {
		urls []string
		sent bool
	}{
		"refused":                    {[]string{"http://127.0.0.1:1/"}, false},
		"silence":                    {[]string{"http://" + silent.address}, true},
		"no HTTP":                    {[]string{"http://" + hangsUp.address}, true},
		"no answer that can be used": {[]string{"http://" + startAuthServer(t, respondAlways(formatResponse("X: y"))).address}, true},
		"to wait, for ever":          {[]string{"http://" + startAuthServer(t, respondAlways(formatResponse("Auth-Status: WAIT", "Auth-Wait: 1"))).address}, true},
		"silence, then refused":      {[]string{"http://" + silent.address, "http://127.0.0.1:1/"}, true},
		"refused, and no answer":     {[]string{"http://127.0.0.1:1/", "http://" + hangsUp.address}, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := configFor(silent)
			cfg.URLs, cfg.Timeout = tc.urls, 200*time.Millisecond
			_, err := newClient(t, cfg).Authenticate(t.Context(), newRequest())
			if !errors.Is(err, ErrUnavailable) || errors.Is(err, ErrNoResponse) != tc.sent {
				t.Errorf("%v", err)
			}
		})
	}
}

// The error does not contain a password that the server has echoed.
func TestErrorsDoNotQuoteServer(t *testing.T) {
	const word = "2retnuh"
	for _, lines := range [][]string{
		{"Auth-Status: " + word}, {"Auth-Status: OK", "Auth-Server: " + word, "Auth-Port: 143"}, {"Auth-Status: OK", "Auth-Server: 10.0.0.1", "Auth-Port: " + word},
		{"Auth-Status: OK", "Auth-Server: 10.0.0.1", "Auth-Port: 143", "Auth-User: " + word + "\x7f"}, {"X: " + word, word + ": x"}, {word},
	} {
		_, err := newClient(t, configFor(startAuthServer(t, respondAlways(formatResponse(lines...))))).Authenticate(t.Context(), newRequest())
		if err == nil || strings.Contains(err.Error(), word) {
			t.Errorf("%q: %v", lines, err)
		}
	}
}

func TestDenialIsFinal(t *testing.T) {
	first := startAuthServer(t, respondAlways(formatResponse("Auth-Status: Account \x80 blocked", "Auth-Wait: 7")))
	second := startAuthServer(t, respondAlways(acceptAt(2)))
	_, err := newClient(t, configFor(first, second)).Authenticate(t.Context(), newRequest())
	var denial *Denial
	if !errors.As(err, &denial) || denial.Delay != 7*time.Second || strings.Contains(err.Error(), "blocked") {
		t.Errorf("%v", err)
	}
	if n := len(second.takeRequests()); n != 0 {
		t.Errorf("the next server received %d requests", n)
	}
}

func TestUnavailableServerIsProbedRarely(t *testing.T) {
	core, logs := observer.New(zapcore.InfoLevel)
	silent := startAuthServer(t, respondAlways(""))
	cfg := configFor(silent)
	cfg.Timeout = 100 * time.Millisecond
	a, err := New(testbed.WithDefaults(cfg), zap.New(core))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Close)
	start := time.Now()
	for range breaker.Threshold {
		if _, err := a.Authenticate(t.Context(), newRequest()); !errors.Is(err, ErrUnavailable) {
			t.Fatal(err)
		}
	}
	for range 1000 {
		if _, err := a.Authenticate(t.Context(), newRequest()); !errors.Is(err, ErrUnavailable) {
			t.Fatal(err)
		}
	}
	// One further request is the first probe; then a probe and a client's request a second.
	all := silent.takeRequests()
	if n, most := len(all), breaker.Threshold+3+2*int(time.Since(start)*5/4/breaker.TrialInterval); n < breaker.Threshold+1 || n > most {
		t.Errorf("%d requests, want %d at most", n, most)
	}
	if q := all[breaker.Threshold]; q.header["Auth-Method"] != "none" || q.header["Auth-User"] != "" || q.header["Auth-Pass"] != "" {
		t.Errorf("the probe is %v", q.header)
	}
	silent.setResponse(acceptAt(1))
	testkit.Eventually(t, "the server to be used again", func() bool {
		_, err := a.Authenticate(t.Context(), newRequest())
		return err == nil
	})
	if logs.FilterMessage("auth server gives no answers").Len() != 1 || logs.FilterMessage("auth server answers again").Len() != 1 {
		t.Errorf("log: %v", logs.All())
	}
}

// A slow probe finds the server up. Logins that arrive during the probe are not
// refused.
func TestLoginsDuringSuccessfulProbeSucceed(t *testing.T) {
	o := testbed.NewOutage()
	isProbe := func(r *http.Request) bool { return r.Header.Get("Auth-Method") == methodNone }
	server := httptest.NewServer(o.Handler(isProbe, func(w http.ResponseWriter, _ *http.Request) {
		w.Header()["Auth-Status"], w.Header()["Auth-Server"], w.Header()["Auth-Port"] = []string{"OK"}, []string{"10.0.0.1"}, []string{"143"}
	}))
	t.Cleanup(server.Close)
	a, err := New(testbed.WithDefaults(Config{Settings: Settings{URLs: []string{server.URL}, Timeout: testTimeout}}), zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Close)
	o.Run(t, breaker.Threshold+1, ErrUnavailable, func() error {
		_, err := a.Authenticate(t.Context(), newRequest())
		return err
	})
}

func TestErrorStatusForOneUserDoesNotAffectOthers(t *testing.T) {
	s := startAuthServer(t, func(q receivedRequest) string {
		if q.header["Auth-User"] == "broken" {
			return "HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n"
		}
		return acceptAt(1)
	})
	a := newClient(t, configFor(s))
	broken := newRequest()
	broken.User = "broken"
	for range 3 * breaker.Threshold {
		if _, err := a.Authenticate(t.Context(), broken); !errors.Is(err, ErrUnavailable) {
			t.Fatal(err)
		}
	}
	if _, err := a.Authenticate(t.Context(), newRequest()); err != nil {
		t.Error(err)
	}
}

func TestMissingResponseForOneUserDoesNotAffectOthers(t *testing.T) {
	s := startAuthServer(t, func(q receivedRequest) string {
		if q.header["Auth-User"] == "odd" {
			return "no HTTP\r\n\r\n"
		}
		return acceptAt(1)
	})
	cfg := configFor(s)
	cfg.Timeout = testTimeout
	a := newClient(t, cfg)
	odd := newRequest()
	odd.User = "odd"
	for range 2 * breaker.Threshold {
		if _, err := a.Authenticate(t.Context(), odd); !errors.Is(err, ErrUnavailable) {
			t.Fatal(err)
		}
	}
	if _, err := a.Authenticate(t.Context(), newRequest()); err != nil {
		t.Error(err)
	}
}

// net/http closes the connection when a handler panics.
func TestServerThatFailsProbesIsUsed(t *testing.T) {
	var broken atomic.Bool
	broken.Store(true)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if broken.Load() || r.Header.Get("Auth-User") == "" {
			panic(http.ErrAbortHandler)
		}
		for name, value := range map[string]string{"Auth-Status": "OK", "Auth-Server": "10.0.0.1", "Auth-Port": "143"} {
			w.Header().Set(name, value)
		}
	}))
	t.Cleanup(s.Close)
	a := newClient(t, Config{Settings: Settings{URLs: []string{s.URL}, Timeout: testTimeout}})
	for range breaker.Threshold + 1 {
		if _, err := a.Authenticate(t.Context(), newRequest()); !errors.Is(err, ErrUnavailable) {
			t.Fatal(err)
		}
	}
	broken.Store(false)
	testkit.Eventually(t, "a request for a login", func() bool {
		_, err := a.Authenticate(t.Context(), newRequest())
		return err == nil
	})
	for range 100 {
		if _, err := a.Authenticate(t.Context(), newRequest()); err != nil {
			t.Fatal(err)
		}
	}
}

func TestCancelledRequestIsNotServerFailure(t *testing.T) {
	silent := startAuthServer(t, respondAlways(""))
	a := newClient(t, configFor(silent))
	for range 3 * breaker.Threshold {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
		if _, err := a.Authenticate(ctx, newRequest()); !errors.Is(err, ErrUnavailable) {
			t.Fatal(err)
		}
		cancel()
	}
	silent.setResponse(acceptAt(1))
	if _, err := a.Authenticate(t.Context(), newRequest()); err != nil {
		t.Error(err)
	}
}

func TestConnectionsAreReused(t *testing.T) {
	s := startAuthServer(t, respondAlways(strings.Replace(acceptAt(1), "Content-Length: 0", "Content-Length: 5", 1)+"hello"))
	a := newClient(t, configFor(s))
	for range 20 {
		if _, err := a.Authenticate(t.Context(), newRequest()); err != nil {
			t.Fatal(err)
		}
	}
	if n := s.countConns(); n != 1 {
		t.Errorf("%d connections", n)
	}
}

func TestBodyIsNotAwaited(t *testing.T) {
	for name, server := range map[string]http.HandlerFunc{
		"endless": func(w http.ResponseWriter, r *http.Request) {
			for chunk := make([]byte, 1<<20); ; {
				if _, err := w.Write(chunk); err != nil {
					return
				}
			}
		},
		"silent": func(w http.ResponseWriter, r *http.Request) {
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header()["Auth-Status"] = []string{"OK"}
				server(w, r)
			}))
			defer s.Close()
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			a := newClient(t, Config{Settings: Settings{URLs: []string{s.URL}, Timeout: time.Hour}}) // longer than the test
			if _, err := a.Authenticate(t.Context(), newRequest()); err != nil {
				t.Error(err)
			}
			runtime.ReadMemStats(&after)
			if grown := after.TotalAlloc - before.TotalAlloc; name == "endless" && grown > 16<<20 {
				t.Errorf("%d bytes allocated", grown)
			}
		})
	}
}

func TestRepeatedWAITIsUnavailable(t *testing.T) {
	t.Parallel()
	s := startAuthServer(t, respondAlways(formatResponse("Auth-Status: WAIT")))
	start := time.Now()
	_, err := newClient(t, configFor(s)).Authenticate(t.Context(), newRequest())
	if n := len(s.takeRequests()); !errors.Is(err, ErrUnavailable) || n != 1+maxRetries || time.Since(start) < maxRetries*time.Second {
		t.Errorf("after %v and %d requests: %v", time.Since(start), n, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := newClient(t, configFor(s)).Authenticate(ctx, newRequest()); !errors.Is(err, ErrUnavailable) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a client that disconnects during the wait: %v", err)
	}
}

func TestOverTLSBothSidesAreVerified(t *testing.T) {
	t.Parallel()
	ca, other := testbed.NewCA(t), testbed.NewCA(t)
	pair := func(ca *testbed.CA, name string) tls.Certificate {
		p, err := tls.LoadX509KeyPair(ca.Issue(t, name))
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header()["Auth-Status"] = []string{"OK"}
	}))
	s.TLS = &tls.Config{Certificates: []tls.Certificate{pair(ca, "127.0.0.1")}, ClientCAs: ca.Pool, ClientAuth: tls.RequireAndVerifyClientCert}
	s.Config.ErrorLog = zap.NewStdLog(zap.NewNop())
	s.StartTLS()
	defer s.Close()
	client := []tls.Certificate{pair(ca, "gateway")}
	for name, c := range map[string]struct {
		tls *tls.Config
		ok  bool
	}{
		"as it should be":          {&tls.Config{RootCAs: ca.Pool, Certificates: client}, true},
		"another authority":        {&tls.Config{RootCAs: other.Pool, Certificates: client}, false},
		"the system's authorities": {nil, false},
		"no certificate of ours":   {&tls.Config{RootCAs: ca.Pool}, false},
		"a stranger's certificate": {&tls.Config{RootCAs: ca.Pool, Certificates: []tls.Certificate{pair(other, "gateway")}}, false},
	} {
		_, err := newClient(t, Config{Settings: Settings{URLs: []string{s.URL + "/auth"}}, TLS: testbed.StaticTLS(c.tls)}).Authenticate(t.Context(), newRequest())
		if (err == nil) != c.ok || err != nil && !errors.Is(err, ErrUnavailable) {
			t.Errorf("%s: %v", name, err)
		}
	}
	plain := startAuthServer(t, respondAlways(acceptAt(1)))
	_, err := newClient(t, Config{Settings: Settings{URLs: []string{"https://" + plain.address}, Timeout: time.Second / 2}}).Authenticate(t.Context(), newRequest())
	if !errors.Is(err, ErrUnavailable) || len(plain.takeRequests()) != 0 {
		t.Errorf("a server without TLS: %v", err)
	}
}

func TestAuthStatusIsParsed(t *testing.T) {
	at := []string{"Auth-Server: 10.0.0.1", "Auth-Port: 143"}
	for name, c := range map[string]struct {
		lines []string
		want  Response
		err   error
	}{
		"without a backend":    {[]string{"Auth-Status: OK"}, Response{}, nil},
		"an IPv6 backend":      {[]string{"Auth-Status: OK", "Auth-Server: 2001:db8::1", "Auth-Port: 0993"}, Response{BackendAddr: netip.MustParseAddrPort("[2001:db8::1]:993")}, nil},
		"an IPv4 one as IPv6":  {[]string{"Auth-Status: OK", "Auth-Server: ::ffff:10.0.0.1", "Auth-Port: 143"}, Response{BackendAddr: netip.MustParseAddrPort("10.0.0.1:143")}, nil},
		"overrides":            {append(at, "Auth-Status: OK", "Auth-User: a*m", "Auth-Pass: \xe4"), Response{netip.MustParseAddrPort("10.0.0.1:143"), "a*m", secret("\xe4")}, nil},
		"no status":            {at, Response{}, ErrUnavailable},
		"an empty status":      {append(at, "Auth-Status:"), Response{}, ErrUnavailable},
		"a zone":               {[]string{"Auth-Status: OK", "Auth-Server: fe80::1%eth0", "Auth-Port: 143"}, Response{}, ErrUnavailable},
		"a unix socket":        {[]string{"Auth-Status: OK", "Auth-Server: unix:/run/imap", "Auth-Port: 143"}, Response{}, ErrUnavailable},
		"port 0":               {[]string{"Auth-Status: OK", at[0], "Auth-Port: 0"}, Response{}, ErrUnavailable},
		"a signed port":        {[]string{"Auth-Status: OK", at[0], "Auth-Port: +143"}, Response{}, ErrUnavailable},
		"a control in a name":  {append(at, "Auth-Status: OK", "Auth-User: a\x01b"), Response{}, ErrUnavailable},
		"DEL in a password":    {append(at, "Auth-Status: OK", "Auth-Pass: a\x7f"), Response{}, ErrUnavailable},
		"CR in a password":     {append(at, "Auth-Status: OK", "Auth-Pass: a\rb"), Response{}, ErrUnavailable},
		"an empty name":        {append(at, "Auth-Status: OK", "Auth-User:"), Response{}, ErrUnavailable},
		"an empty password":    {append(at, "Auth-Status: OK", "Auth-Pass: "), Response{}, ErrUnavailable},
		"a long password":      {append(at, "Auth-Status: OK", "Auth-Pass: "+strings.Repeat("a", maxOverride+1)), Response{}, ErrUnavailable},
		"two servers":          {append(at, "Auth-Status: OK", "Auth-Server: 10.0.0.2"), Response{}, ErrUnavailable},
		"two ways to be right": {append(at, "Auth-Status: no", "Auth-Status: OK"), Response{}, ErrUnavailable},
		"a word":               {append(at, "Auth-Status: OK!"), Response{}, ErrDenied},
	} {
		s := startAuthServer(t, respondAlways(formatResponse(c.lines...)))
		got, err := newClient(t, configFor(s)).Authenticate(t.Context(), newRequest())
		if got != c.want || !errors.Is(err, c.err) || errors.Is(err, ErrDenied) && errors.Is(err, ErrUnavailable) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}

func TestAuthWaitIsBounded(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"": 0, "3": 3 * time.Second, "0": 0, "soon": 0, "-1": 0, "1.5": 0, "30": maxDelay, "31": maxDelay,
		"4294967296": maxDelay, strings.Repeat("9", 40): maxDelay, "007": 7 * time.Second,
	} {
		if got := parseWait(text); got != want {
			t.Errorf("%q is %v, not %v", text, got, want)
		}
	}
}

func TestHeadersAndURLsThatWouldBreakTheProtocolAreRefused(t *testing.T) {
	for _, bad := range [][2]string{
		{"", "x"}, {"X Y", "x"}, {"X:", "x"}, {"X\r\nY", "x"}, {"Host", "x"}, {"auth-user", "x"}, {"AUTH-SSL-VERIFY", "SUCCESS"},
		{"proxy-protocol-addr", "x"}, {"client-ip", "x"}, {"Transfer-Encoding", "chunked"}, {"X", "a\r\nAuth-User: b"}, {"X", "a\x00"},
	} {
		if _, err := New(testbed.WithDefaults(Config{Settings: Settings{URLs: []string{"http://a"}, Secrets: operatorHeader(bad[0], bad[1])}}), zap.NewNop()); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
	for _, bad := range []string{"", "/auth", "a:80/auth", "ftp://a/", "http://", "http://u:p@a/", "http://a/#x", "unix:/run/x", "http://a/\n"} {
		if _, err := New(testbed.WithDefaults(Config{Settings: Settings{URLs: []string{bad}}}), zap.NewNop()); err == nil || strings.Contains(err.Error(), "u:p") {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if _, err := New(testbed.WithDefaults(Config{Settings: Settings{URLs: make([]string, MaxURLs+1)}}), zap.NewNop()); err == nil {
		t.Error("too many servers are accepted")
	}
}

func FuzzAuthHTTPQuestion(f *testing.F) {
	f.Add("alice@example.org", "pa%ss word")
	f.Add("a\r\nAuth-Status: OK", "\x00\x7f\xff")
	f.Fuzz(func(t *testing.T, user, password string) {
		h := (&Client{}).newHeader(Request{User: user, Password: identity.NewSecret(password)})
		for name, want := range map[string]string{"Auth-User": user, "Auth-Pass": password} {
			got, err := url.PathUnescape(h[name][0])
			if err != nil || got != want || strings.ContainsFunc(h[name][0], func(r rune) bool { return r <= ' ' || r == 0x7f }) {
				t.Errorf("%s of %q is %q, which is %q, %v", name, want, h[name][0], got, err)
			}
		}
	})
}

func FuzzAuthHTTPAnswer(f *testing.F) {
	for _, lines := range []string{
		"Auth-Status: OK\r\nAuth-Server: 10.0.0.1\r\nAuth-Port: 143\r\nAuth-User: x\r\nAuth-Pass: y", "Auth-Status: WAIT\r\nAuth-Wait: 3", "Auth-Status: no",
	} {
		f.Add([]byte(lines + "\r\n\r\n"))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		h, err := textproto.NewReader(bufio.NewReader(strings.NewReader(string(raw)))).ReadMIMEHeader()
		if err != nil {
			return
		}
		r, err := parseHeader(http.Header(h))
		if err != nil {
			if r != (result{}) {
				t.Errorf("%+v with %v", r, err)
			}
			return
		}
		a := r.response
		if (r.denial == nil && r.retryAfter == 0) != (h.Get("Auth-Status") == "OK") || r.retryAfter < 0 || r.retryAfter > maxDelay {
			t.Errorf("%+v of %q", r, h)
		}
		if strings.ContainsAny(a.LoginName+a.Password.Reveal(), "\x00\r\n") || a.BackendAddr.IsValid() && (a.BackendAddr.Port() == 0 || a.BackendAddr.Addr().Zone() != "") {
			t.Errorf("%+v", a)
		}
	})
}
