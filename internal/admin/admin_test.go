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

	"imapgate/internal/admin/legacy"
	"imapgate/internal/identity"
	"imapgate/routing"
)

const token = "a-token-of-thirty-two-characters"

// testDeps returns Deps whose readiness a test can change.
func testDeps(notReady *atomic.Bool) Deps {
	return Deps{
		Metrics: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "imapgate_sessions 3") }),
		Ready: func() error {
			if notReady.Load() {
				return errors.New("draining")
			}
			return nil
		},
		Legacy: []legacy.Endpoint{
			legacy.Handle(legacy.ExplainRoute, func(_ context.Context, name string) (routing.Explanation, error) {
				u, err := parseName(name)
				return routing.Explanation{User: u.String()}, err
			}),
			legacy.Handle(legacy.ListSessions, func(_ context.Context, name string) (legacy.SessionList, error) {
				u, err := parseName(name)
				return legacy.SessionList{User: u.String()}, err
			}),
			legacy.Handle(legacy.ListBackends, func(context.Context, legacy.None) (legacy.BackendList, error) { return legacy.BackendList{}, nil }),
		},
	}
}

// newServer returns a server whose tokens are those of cfg.
func newServer(cfg Settings, deps Deps) *Server {
	tokens, err := OpenTokens(cfg)
	if err != nil {
		panic(err)
	}
	deps.Tokens = tokens
	return New(cfg, deps, zap.NewNop())
}

func parseName(name string) (identity.User, error) {
	u, err := identity.Canonicalize(name, "")
	if err != nil {
		err = fmt.Errorf("%w: invalid user name", legacy.ErrBadRequest)
	}
	return u, err
}

// testRequest is a request of a test.
type testRequest struct {
	method, target, host, token, body string
}

// do returns the response of a handler to a request.
func do(h http.Handler, req testRequest) *http.Response {
	if req.method == "" {
		req.method = http.MethodGet
	}
	if req.host == "" {
		req.host = "127.0.0.1:9143"
	}
	r := httptest.NewRequest(req.method, "http://x", strings.NewReader(req.body))
	r.URL.Path, r.URL.RawQuery, _ = strings.Cut(req.target, "?")
	r.Host = req.host
	r.RemoteAddr = "192.0.2.7:4711"
	if req.token != "" {
		r.Header.Set("Authorization", "Bearer "+req.token)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Result()
}

func withToken(t testing.TB) http.Handler {
	t.Helper()
	cfg := Settings{Address: "127.0.0.1:9143", Token: identity.NewSecret(token)}
	return newServer(cfg, testDeps(new(atomic.Bool))).filter
}

func TestForbiddenRequestsAreRefused(t *testing.T) {
	tests := map[string]struct {
		testRequest
		want int
	}{
		"metrics":                    {testRequest{target: "/metrics", token: token}, 200},
		"sessions, no token":         {testRequest{target: "/v1/sessions?user=alice"}, 401},
		"backends, no token":         {testRequest{target: "/v1/backends"}, 401},
		"backends":                   {testRequest{target: "/v1/backends", token: token}, 200},
		"head":                       {testRequest{method: "HEAD", target: "/metrics", token: token}, 200},
		"health without a token":     {testRequest{target: "/healthz"}, 200},
		"ready without a token":      {testRequest{target: "/readyz"}, 200},
		"no token":                   {testRequest{target: "/metrics"}, 401},
		"wrong token":                {testRequest{target: "/metrics", token: "wrong"}, 401},
		"a prefix of the token":      {testRequest{target: "/metrics", token: token[:8]}, 401},
		"unknown path, no token":     {testRequest{target: "/nothing"}, 401},
		"unknown path":               {testRequest{target: "/nothing", token: token}, 404},
		"root":                       {testRequest{target: "/", token: token}, 404},
		"trailing slash":             {testRequest{target: "/metrics/", token: token}, 404},
		"double slash":               {testRequest{target: "//metrics", token: token}, 404},
		"dot dot":                    {testRequest{target: "/v1/../metrics", token: token}, 404},
		"upper case":                 {testRequest{target: "/Metrics", token: token}, 404},
		"open paths are exact":       {testRequest{target: "/healthz/"}, 401},
		"profiler":                   {testRequest{target: "/debug/pprof/", token: token}, 404},
		"post":                       {testRequest{method: "POST", target: "/metrics", token: token}, 405},
		"delete":                     {testRequest{method: "DELETE", target: "/v1/routes/explain", token: token}, 405},
		"options":                    {testRequest{method: "OPTIONS", target: "/metrics"}, 405},
		"a body":                     {testRequest{target: "/metrics", token: token, body: "x"}, 413},
		"foreign host":               {testRequest{target: "/metrics", token: token, host: "evil.example"}, 421},
		"foreign host with our port": {testRequest{target: "/metrics", token: token, host: "evil.example:9143"}, 421},
		"foreign host for health":    {testRequest{target: "/healthz", host: "evil.example"}, 421},
		"our address as a subdomain": {testRequest{target: "/metrics", token: token, host: "127.0.0.1.evil.example"}, 421},
		"localhost":                  {testRequest{target: "/metrics", token: token, host: "localhost:9143"}, 200},
		"IPv6 address":               {testRequest{target: "/metrics", token: token, host: "[::1]:9143"}, 200},
		"IPv6 address, no port":      {testRequest{target: "/metrics", token: token, host: "[::1]"}, 200},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got := do(withToken(t), test.testRequest)
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
	h := newServer(Settings{Address: "127.0.0.1:9143", Token: live.Secret()}, testDeps(new(atomic.Bool))).filter
	if got := do(h, testRequest{target: "/v1/backends", token: token}); got.StatusCode != http.StatusOK {
		t.Errorf("%d", got.StatusCode)
	}
	live.Replace("another token of 16")
	for given, want := range map[string]int{token: http.StatusUnauthorized, "another token of 16": http.StatusOK} {
		if got := do(h, testRequest{target: "/v1/backends", token: given}); got.StatusCode != want {
			t.Errorf("%q: %d", given, got.StatusCode)
		}
	}
}

func TestWithoutATokenEveryClientMayRead(t *testing.T) {
	g := newServer(Settings{Address: "127.0.0.1:9143"}, testDeps(new(atomic.Bool))).filter
	if got := do(g, testRequest{target: "/metrics"}); got.StatusCode != 200 {
		t.Errorf("status %d", got.StatusCode)
	}
	if got := do(g, testRequest{target: "/metrics", host: "evil.example"}); got.StatusCode != 421 {
		t.Errorf("status %d for a foreign host name", got.StatusCode)
	}
}

func TestTheEleventhGuessInAMinuteIsTooMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := withToken(t)
		for range maxGuesses {
			if got := do(g, testRequest{target: "/metrics", token: "guess"}); got.StatusCode != 401 {
				t.Fatalf("status %d", got.StatusCode)
			}
		}
		if got := do(g, testRequest{target: "/metrics", token: "guess"}); got.StatusCode != 429 {
			t.Errorf("status %d for the eleventh guess", got.StatusCode)
		}
		if got := do(g, testRequest{target: "/metrics", token: token}); got.StatusCode != 200 {
			t.Errorf("status %d for the operator's correct token", got.StatusCode)
		}
		if got := do(g, testRequest{target: "/metrics"}); got.StatusCode != 401 {
			t.Errorf("status %d without a token", got.StatusCode)
		}
		<-time.After(guessWindow) // fake time
		if got := do(g, testRequest{target: "/metrics", token: "guess"}); got.StatusCode != 401 {
			t.Errorf("status %d for a guess a minute later", got.StatusCode)
		}
	})
}

func TestUntrackedAddressesShareOneGuessCount(t *testing.T) {
	g := withToken(t).(*accessFilter)
	r := httptest.NewRequest("GET", "http://127.0.0.1/metrics", nil)
	r.Header.Set("Authorization", "Bearer guess")
	refused := 0
	for i := range maxGuessers + 200 {
		r.RemoteAddr = netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)}), 1).String()
		if _, status := g.authenticate(r); status == http.StatusTooManyRequests {
			refused++
		}
	}
	if refused != 200-maxGuesses {
		t.Errorf("%d of the 200 addresses too many were refused, want %d", refused, 200-maxGuesses)
	}
	if len(g.guesses) > maxGuessers+1 {
		t.Errorf("%d addresses are counted separately", len(g.guesses))
	}
}

func TestIPv6NetworkCountsAsOneClient(t *testing.T) {
	if a, b := clientNet("[2001:db8::1]:1"), clientNet("[2001:db8::ffff:2]:9"); a != b {
		t.Errorf("%v is not %v", a, b)
	}
	if a, b := clientNet("[::ffff:192.0.2.1]:1"), clientNet("192.0.2.1:9"); a != b {
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
		got := do(withToken(t), testRequest{target: target, token: token})
		body, err := io.ReadAll(got.Body)
		if err != nil {
			t.Fatal(err)
		}
		if got.StatusCode != want {
			t.Errorf("%s: status %d, want %d", target, got.StatusCode, want)
		}
		var response legacy.SessionList // an explanation has the user too
		if want == 200 && (json.Unmarshal(body, &response) != nil || response.User != "alice@example.org") {
			t.Errorf("%s: %s", target, body)
		}
	}
}

func TestServingEndsWithItsContext(t *testing.T) {
	var notReady atomic.Bool
	s := newServer(Settings{Address: "127.0.0.1:0"}, testDeps(&notReady))
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
	notReady.Store(true)
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
		t.Error("it is still listening")
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

// startServing runs a server until the test ends.
func startServing(t *testing.T, s *Server) {
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
	s := newServer(Settings{Address: "127.0.0.1:0"}, testDeps(new(atomic.Bool)))
	startServing(t, s)

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

// get opens a connection and requests health on it.
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
