package admin

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"imapgate/internal/identity"
)

const token = "a-token-of-thirty-two-characters"

// shown is a Shows whose readiness a test can take away.
func shown(away *atomic.Bool) Shows {
	return Shows{
		Metrics: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "imapgate_sessions 3") }),
		Ready: func() error {
			if away.Load() {
				return errors.New("draining")
			}
			return nil
		},
		Explain: func(_ context.Context, user string) (any, error) {
			u, err := identity.Canon(user, "")
			return map[string]string{"user": u.String()}, err
		},
		Sessions: func(_ context.Context, user string) (any, error) {
			u, err := identity.Canon(user, "")
			return map[string]string{"user": u.String()}, err
		},
		Backends: func() any { return map[string]any{"backends": []string{}} },
	}
}

// request is one request as a test writes it down.
type request struct {
	method, target, host, token, body string
}

// ask gives the answer of a server to a request.
func ask(g http.Handler, q request) *http.Response {
	if q.method == "" {
		q.method = http.MethodGet
	}
	if q.host == "" {
		q.host = "127.0.0.1:9143"
	}
	r := httptest.NewRequest(q.method, "http://x", strings.NewReader(q.body))
	r.URL.Path, r.URL.RawQuery, _ = strings.Cut(q.target, "?")
	r.Host = q.host
	r.RemoteAddr = "192.0.2.7:4711"
	if q.token != "" {
		r.Header.Set("Authorization", "Bearer "+q.token)
	}
	w := httptest.NewRecorder()
	g.ServeHTTP(w, r)
	return w.Result()
}

func withToken(t testing.TB) http.Handler {
	t.Helper()
	cfg := Config{Address: "127.0.0.1:9143", Token: identity.NewSecret(token)}
	return New(cfg, shown(new(atomic.Bool)), zap.NewNop()).guard
}

func TestRequestsThatMayNotBeAnsweredAreRefused(t *testing.T) {
	tests := map[string]struct {
		request
		want int
	}{
		"metrics":                    {request{target: "/metrics", token: token}, 200},
		"sessions, no token":         {request{target: "/v1/sessions?user=alice"}, 401},
		"backends, no token":         {request{target: "/v1/backends"}, 401},
		"backends":                   {request{target: "/v1/backends", token: token}, 200},
		"head":                       {request{method: "HEAD", target: "/metrics", token: token}, 200},
		"health without a token":     {request{target: "/healthz"}, 200},
		"ready without a token":      {request{target: "/readyz"}, 200},
		"no token":                   {request{target: "/metrics"}, 401},
		"wrong token":                {request{target: "/metrics", token: "wrong"}, 401},
		"a prefix of the token":      {request{target: "/metrics", token: token[:8]}, 401},
		"unknown path, no token":     {request{target: "/nothing"}, 401},
		"unknown path":               {request{target: "/nothing", token: token}, 404},
		"root":                       {request{target: "/", token: token}, 404},
		"trailing slash":             {request{target: "/metrics/", token: token}, 404},
		"double slash":               {request{target: "//metrics", token: token}, 404},
		"dot dot":                    {request{target: "/v1/../metrics", token: token}, 404},
		"upper case":                 {request{target: "/Metrics", token: token}, 404},
		"open paths are exact":       {request{target: "/healthz/"}, 401},
		"profiler":                   {request{target: "/debug/pprof/", token: token}, 404},
		"post":                       {request{method: "POST", target: "/metrics", token: token}, 405},
		"delete":                     {request{method: "DELETE", target: "/v1/routes/explain", token: token}, 405},
		"options":                    {request{method: "OPTIONS", target: "/metrics"}, 405},
		"a body":                     {request{target: "/metrics", token: token, body: "x"}, 413},
		"foreign host":               {request{target: "/metrics", token: token, host: "evil.example"}, 421},
		"foreign host with our port": {request{target: "/metrics", token: token, host: "evil.example:9143"}, 421},
		"foreign host for health":    {request{target: "/healthz", host: "evil.example"}, 421},
		"our address as a subdomain": {request{target: "/metrics", token: token, host: "127.0.0.1.evil.example"}, 421},
		"localhost":                  {request{target: "/metrics", token: token, host: "localhost:9143"}, 200},
		"IPv6 address":               {request{target: "/metrics", token: token, host: "[::1]:9143"}, 200},
		"IPv6 address, no port":      {request{target: "/metrics", token: token, host: "[::1]"}, 200},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got := ask(withToken(t), test.request)
			if got.StatusCode != test.want {
				t.Errorf("status %d, want %d", got.StatusCode, test.want)
			}
			if got.Header.Get("X-Content-Type-Options") != "nosniff" || got.Header.Get("Content-Security-Policy") == "" {
				t.Error("the answer has no protective headers")
			}
		})
	}
}

func TestARenewedTokenReplacesTheOldOne(t *testing.T) {
	live := identity.NewLiveSecret(token)
	h := New(Config{Address: "127.0.0.1:9143", Token: live.Secret()}, shown(new(atomic.Bool)), zap.NewNop()).guard
	if got := ask(h, request{target: "/v1/backends", token: token}); got.StatusCode != http.StatusOK {
		t.Errorf("%d", got.StatusCode)
	}
	live.Replace("another token of 16")
	for given, want := range map[string]int{token: http.StatusUnauthorized, "another token of 16": http.StatusOK} {
		if got := ask(h, request{target: "/v1/backends", token: given}); got.StatusCode != want {
			t.Errorf("%q: %d", given, got.StatusCode)
		}
	}
}

func TestWithoutATokenEverybodyOnTheAddressMayAsk(t *testing.T) {
	g := New(Config{Address: "127.0.0.1:9143"}, shown(new(atomic.Bool)), zap.NewNop()).guard
	if got := ask(g, request{target: "/metrics"}); got.StatusCode != 200 {
		t.Errorf("status %d", got.StatusCode)
	}
	if got := ask(g, request{target: "/metrics", host: "evil.example"}); got.StatusCode != 421 {
		t.Errorf("status %d under a foreign name", got.StatusCode)
	}
}

func TestTheEleventhGuessInAMinuteIsTooMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := withToken(t)
		for range guesses {
			if got := ask(g, request{target: "/metrics", token: "guess"}); got.StatusCode != 401 {
				t.Fatalf("status %d", got.StatusCode)
			}
		}
		if got := ask(g, request{target: "/metrics", token: "guess"}); got.StatusCode != 429 {
			t.Errorf("status %d for a guess too many", got.StatusCode)
		}
		if got := ask(g, request{target: "/metrics", token: token}); got.StatusCode != 200 {
			t.Errorf("status %d for the operator beside somebody who guesses", got.StatusCode)
		}
		if got := ask(g, request{target: "/metrics"}); got.StatusCode != 401 {
			t.Errorf("status %d without a token, which is no guess", got.StatusCode)
		}
		<-time.After(window) // fake time
		if got := ask(g, request{target: "/metrics", token: "guess"}); got.StatusCode != 401 {
			t.Errorf("status %d for a guess a minute later", got.StatusCode)
		}
	})
}

func TestManyAddressesBuyNoMoreGuessesThanOne(t *testing.T) {
	g := withToken(t).(*guard)
	r := httptest.NewRequest("GET", "http://127.0.0.1/metrics", nil)
	r.Header.Set("Authorization", "Bearer guess")
	refused := 0
	for i := range maxGuessers + 200 {
		r.RemoteAddr = netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)}), 1).String()
		if g.admit(r) == http.StatusTooManyRequests {
			refused++
		}
	}
	if refused != 200-guesses {
		t.Errorf("%d of the 200 addresses too many were refused, want %d", refused, 200-guesses)
	}
	if len(g.wrong) > maxGuessers+1 {
		t.Errorf("%d addresses are remembered", len(g.wrong))
	}
}

func TestIPv6NeighboursCountAsOne(t *testing.T) {
	if a, b := network("[2001:db8::1]:1"), network("[2001:db8::ffff:2]:9"); a != b {
		t.Errorf("%v is not %v", a, b)
	}
	if a, b := network("[::ffff:192.0.2.1]:1"), network("192.0.2.1:9"); a != b {
		t.Errorf("%v is not %v", a, b)
	}
}

func TestExplainAndSessionsTakeOneUser(t *testing.T) {
	for target, want := range map[string]int{
		"/v1/routes/explain?user=Alice@Example.org": 200,
		"/v1/routes/explain":                        400,
		"/v1/routes/explain?user=":                  400,
		"/v1/routes/explain?user=a&user=b":          400,
		"/v1/routes/explain?user=%0d%0a":            400,
		"/v1/sessions?user=Alice@Example.org":       200,
		"/v1/sessions":                              400,
		"/v1/sessions?user=a&user=b":                400,
		"/v1/sessions?user=%0d%0a":                  400,
	} {
		got := ask(withToken(t), request{target: target, token: token})
		body, err := io.ReadAll(got.Body)
		if err != nil {
			t.Fatal(err)
		}
		if got.StatusCode != want {
			t.Errorf("%s: status %d, want %d", target, got.StatusCode, want)
		}
		var says map[string]string
		if want == 200 && (json.Unmarshal(body, &says) != nil || says["user"] != "alice@example.org") {
			t.Errorf("%s: %s", target, body)
		}
	}
}

func TestServingEndsWithItsContext(t *testing.T) {
	var away atomic.Bool
	s := New(Config{Address: "127.0.0.1:0"}, shown(&away), zap.NewNop())
	if err := s.Listen(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx) }()
	url := "http://" + s.Addr().String()
	if got := status(t, url+"/readyz"); got != 200 {
		t.Errorf("ready: %d", got)
	}
	away.Store(true)
	if got := status(t, url+"/readyz"); got != 503 {
		t.Errorf("ready while draining: %d", got)
	}
	if got := status(t, url+"/healthz"); got != 200 {
		t.Errorf("health while draining: %d", got)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if _, err := net.Dial("tcp", s.Addr().String()); err == nil {
		t.Error("it still listens")
	}
}

func status(t *testing.T, url string) int {
	t.Helper()
	got, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer got.Body.Close()
	return got.StatusCode
}

// serving lets a server serve until the test ends.
func serving(t *testing.T, s *Server) {
	t.Helper()
	if err := s.Listen(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx) }()
	t.Cleanup(func() { cancel(); <-ended })
}

func TestConnectionsAreBounded(t *testing.T) {
	s := New(Config{Address: "127.0.0.1:0"}, shown(new(atomic.Bool)), zap.NewNop())
	serving(t, s)

	held := make([]net.Conn, 3*maxConns)
	for i := range held {
		held[i] = get(t, s.Addr())
		defer held[i].Close()
		if line, err := bufio.NewReader(held[i]).ReadString('\n'); err != nil || !strings.Contains(line, "200") {
			t.Fatalf("connection %d: %q, %v", i, line, err)
		}
	}
	ended := make(chan error, len(held))
	for _, c := range held {
		go func() {
			_, err := io.Copy(io.Discard, c)
			ended <- err
		}()
	}
	for i := range 2 * maxConns {
		if err := <-ended; err != nil {
			t.Fatalf("only %d connections were closed: %v", i, err)
		}
	}
}

// get opens a connection and asks for health on it.
func get(t *testing.T, addr net.Addr) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(c, "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	return c
}

func FuzzAdminHTTP(f *testing.F) {
	f.Add("GET", "/metrics", "127.0.0.1", "Bearer x")
	f.Add("POST", "/v1/routes/explain", "evil.example", "")
	f.Add("GET", "/healthz/../metrics", "localhost", "Basic eA==")
	f.Add("GET", "/debug/pprof/heap", "[::1]:9143", "bearer ")
	f.Fuzz(func(t *testing.T, method, path, host, authorization string) {
		if strings.Contains(authorization, token) || path == pathHealth || path == pathReady {
			return
		}
		r := &http.Request{Method: method, Host: host, Header: http.Header{"Authorization": {authorization}}, RemoteAddr: "192.0.2.1:1"}
		r.URL = httptest.NewRequest("GET", "http://x/", nil).URL
		r.URL.Path = path
		w := httptest.NewRecorder()
		withToken(t).ServeHTTP(w, r)
		switch w.Code {
		case 401, 405, 413, 421, 429:
		default:
			t.Errorf("%q %q without the token: %d", method, path, w.Code)
		}
	})
}
