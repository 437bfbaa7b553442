package admin

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"

	"imapgate/internal/admin/api"
	"imapgate/internal/admin/legacy"
	"imapgate/internal/audit"
	"imapgate/internal/testkit"
)

const (
	viewerToken  = "viewer-token-of-a-test-0123456789"
	expiredToken = "expired-token-of-a-test-012345678"
)

// writeTokens writes a file of tokens.
func writeTokens(t testing.TB) string {
	t.Helper()
	line := func(name, role, token, expires string) string {
		return fmt.Sprintf("%s %s %x %s\n", name, role, sha256.Sum256([]byte(token)), expires)
	}
	file := filepath.Join(t.TempDir(), "tokens")
	testkit.NoError(t, os.WriteFile(file, []byte("# tokens\n\n"+line("ops", "operator", token, "")+line("watch", "viewer", viewerToken, "2999-01-01")+line("old", "operator", expiredToken, "2020-01-01T00:00:00Z")), 0o600))
	return file
}

// apiServer is a server of two operations that counts what it does.
type apiServer struct {
	*Server
	kicks   atomic.Int64
	by      atomic.Value // the caller of the latest kick
	refused atomic.Value // the latest refused request
}

func newAPIServer(t testing.TB, cfg Settings) *apiServer {
	t.Helper()
	s := &apiServer{}
	log := testkit.Must(audit.Open(audit.Config{Settings: audit.Settings{Path: filepath.Join(t.TempDir(), "audit.log"), OnFailure: "drop"}}, zap.NewNop()))(t)
	t.Cleanup(func() { _ = log.Close() })
	deps := Deps{
		Metrics: http.NotFoundHandler(), Ready: func() error { return nil }, Follow: log.Follow,
		OnRefusal: func(c api.Caller, request string) { s.refused.Store(c.Name + " " + request) },
		API: []api.Endpoint{
			api.ListGateways.Handle(func(context.Context, *api.None) (api.GatewayList, error) {
				return api.GatewayList{Gateways: []api.Gateway{}}, nil
			}),
			api.KickUser.Handle(func(ctx context.Context, in *api.KickRequest) (api.KickAnswer, error) {
				s.kicks.Add(1)
				s.by.Store(api.CallerOf(ctx).Name)
				if in.User == "nobody@example.org" {
					return api.KickAnswer{}, fmt.Errorf("%w: no such user", api.ErrNotFound)
				}
				_ = log.OperatorAction(&audit.OperatorAction{Action: "kick", Operator: "x", Subject: in.User})
				return api.KickAnswer{User: in.User, By: map[string]int{}, Gateways: api.Gateways{Missing: []string{}}}, nil
			}),
		},
		Legacy: []legacy.Endpoint{},
	}
	s.Server = newServer(cfg, deps)
	return s
}

const kickPath = "/api/v1/users/bob%2Fx@example.org/kick"

// change sends a change as an operator's program would, after modify.
func (s *apiServer) change(modify func(*http.Request)) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodPost, "http://127.0.0.1:9143"+kickPath, strings.NewReader("{}"))
	r.RemoteAddr = "127.0.0.1:4711"
	r.Header.Set("Authorization", "Bearer "+token)
	r.Header.Set("Content-Type", "application/json")
	if modify != nil {
		modify(r)
	}
	w := httptest.NewRecorder()
	s.filter.ServeHTTP(w, r)
	return w
}

func TestRolesAndAttacksOnChanges(t *testing.T) {
	cfg := Settings{Address: "127.0.0.1:9143", TokensFile: writeTokens(t)}
	header := func(name, value string) func(*http.Request) {
		return func(r *http.Request) { r.Header.Set(name, value) }
	}
	path := func(path string) func(*http.Request) {
		return func(r *http.Request) { r.URL = testkit.Must(url.ParseRequestURI(path))(t) } // dots stay
	}
	for name, c := range map[string]struct {
		modify func(*http.Request)
		want   int
	}{
		"an operator":         {nil, 200},
		"no token":            {func(r *http.Request) { r.Header.Del("Authorization") }, 401},
		"a wrong token":       {header("Authorization", "Bearer wrong-token-0123456789"), 401},
		"an expired token":    {header("Authorization", "Bearer "+expiredToken), 401},
		"the hash of a token": {header("Authorization", fmt.Sprintf("Bearer %x", sha256.Sum256([]byte(token)))), 401},
		"a viewer":            {header("Authorization", "Bearer "+viewerToken), 403},
		"another site":        {header("Sec-Fetch-Site", "cross-site"), 403},
		"another origin":      {header("Origin", "http://evil.example"), 403},
		"the same origin":     {header("Origin", "http://127.0.0.1:9143"), 200},
		"a form":              {header("Content-Type", "text/plain"), 415},
		"no type":             {func(r *http.Request) { r.Header.Del("Content-Type") }, 415},
		"a foreign host":      {func(r *http.Request) { r.Host = "evil.example" }, 421},
		"an unknown field":    {func(r *http.Request) { r.Body = io.NopCloser(strings.NewReader(`{"backnd":"east"}`)) }, 422},
		"not JSON":            {func(r *http.Request) { r.Body = io.NopCloser(strings.NewReader(`{`)) }, 400},
		"a body of 1 MiB": {func(r *http.Request) {
			r.Body, r.ContentLength = io.NopCloser(strings.NewReader(strings.Repeat(" ", 1<<20))), 1<<20
		}, 413},
		"a chunked body of 1 MiB": {func(r *http.Request) {
			r.Body, r.ContentLength = io.NopCloser(strings.NewReader(strings.Repeat(" ", 1<<20))), -1
		}, 413},
		"a body of 16 MiB":           {func(r *http.Request) { r.ContentLength = 16 << 20 }, 413},
		"GET":                        {func(r *http.Request) { r.Method, r.Body, r.ContentLength = "GET", nil, 0 }, 405},
		"PUT":                        {func(r *http.Request) { r.Method = "PUT" }, 405},
		"PATCH":                      {func(r *http.Request) { r.Method = "PATCH" }, 405},
		"OPTIONS":                    {func(r *http.Request) { r.Method = "OPTIONS" }, 405},
		"TRACE":                      {func(r *http.Request) { r.Method = "TRACE" }, 405},
		"a trailing slash":           {path(kickPath + "/"), 405},
		"two slashes":                {path("//api/v1/users/bob/kick"), 405},
		"dots":                       {path("/api/v1/x/../users/bob/kick"), 405},
		"encoded dots":               {path("/api/v1/x/%2e%2e/users/bob/kick"), 405},
		"upper case":                 {path("/API/v1/users/bob/kick"), 405},
		"an unknown path":            {path("/api/v1/users/bob/kill"), 404},
		"an unknown query parameter": {path(kickPath + "?force=true"), 422},
		"a bad scope":                {path(kickPath + "?scope=world"), 422},
		"not found":                  {path("/api/v1/users/nobody@example.org/kick"), 404},
	} {
		t.Run(name, func(t *testing.T) {
			s := newAPIServer(t, cfg)
			w := s.change(c.modify)
			if w.Code != c.want {
				t.Errorf("status %d, want %d: %s", w.Code, c.want, w.Body)
			}
			if done := s.kicks.Load() > 0; done != (c.want == 200 || name == "not found") {
				t.Errorf("carried out: %v", done)
			}
			if refused := s.refused.Load(); (refused != nil) != (name == "a viewer") {
				t.Errorf("recorded as refused: %v", refused)
			}
			if w.Code == 422 && (w.Header().Get("Content-Type") != "application/problem+json" || !json.Valid(w.Body.Bytes())) {
				t.Errorf("%s: %s", w.Header().Get("Content-Type"), w.Body)
			}
			if location := w.Header().Get("Location"); location != "" {
				t.Errorf("redirected to %s", location)
			}
		})
	}
	s := newAPIServer(t, cfg)
	if w := s.change(nil); s.by.Load() != "ops" || !strings.Contains(w.Body.String(), `"user":"bob/x@example.org"`) {
		t.Errorf("by %v: %s", s.by.Load(), w.Body)
	}
}

func TestAViewerReads(t *testing.T) {
	s := newAPIServer(t, Settings{Address: "127.0.0.1:9143", TokensFile: writeTokens(t)})
	for path, want := range map[string]int{"/api/v1/gateways": 200, "/api/openapi.json": 200, "/api/v1/gateways/": 404, "/api": 404} {
		if got := do(s.filter, testRequest{target: path, token: viewerToken}); got.StatusCode != want {
			t.Errorf("%s: %d", path, got.StatusCode)
		}
		if got := do(s.filter, testRequest{target: path}); got.StatusCode != 401 {
			t.Errorf("%s without a token: %d", path, got.StatusCode)
		}
	}
}

func TestTokensOfTheFileAreParsedStrictly(t *testing.T) {
	hash := strings.Repeat("0a", 32)
	for line, want := range map[string]string{
		"a operator " + hash: "", "a viewer " + hash + " 2030-01-01": "", "": "",
		"a admin " + hash: "role", "a operator " + hash[1:]: "SHA-256", "a operator " + hash + "0": "SHA-256", "a operator x" + hash[1:]: "SHA-256",
		"a;b operator " + hash: "name", "a operator": "expected", "a operator " + hash + " soon": "time", "a operator " + hash + " 2030-01-01 x": "expected",
		"a viewer " + hash + "\na operator " + hash: "already",
	} {
		_, err := ParseTokens([]byte(line))
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", line, err)
		}
	}
}

func TestATokenIsRevokedByTheFile(t *testing.T) {
	file := writeTokens(t)
	s := newAPIServer(t, Settings{Address: "127.0.0.1:9143", TokensFile: file})
	testkit.NoError(t, os.WriteFile(file, []byte("broken"), 0o600))
	if changed, err := s.filter.tokens.Reload(); changed || err == nil {
		t.Errorf("%v, %v", changed, err)
	}
	if w := s.change(nil); w.Code != 200 {
		t.Errorf("after a broken file: %d", w.Code)
	}
	testkit.NoError(t, os.WriteFile(file, nil, 0o600))
	if changed, err := s.filter.tokens.Reload(); !changed || err != nil {
		t.Errorf("%v, %v", changed, err)
	}
	if w := s.change(nil); w.Code != 401 {
		t.Errorf("a revoked token: %d", w.Code)
	}
}

// The peer at the socket is an operator without a token, and is named by its uid.
func TestTheSocketNeedsNoToken(t *testing.T) {
	path := filepath.Join(t.TempDir(), "admin.sock")
	s := newAPIServer(t, Settings{Socket: path, TokensFile: writeTokens(t)})
	startServing(t, s.Server)
	info := testkit.Must(os.Stat(path))(t)
	if info.Mode().Perm() != socketMode {
		t.Errorf("mode %v", info.Mode())
	}
	conn := testkit.Must(net.Dial("unix", path))(t)
	defer conn.Close()
	fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: anything\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}", kickPath)
	answer := testkit.Must(http.ReadResponse(bufio.NewReader(conn), nil))(t)
	if answer.StatusCode != 200 || s.by.Load() != fmt.Sprintf("uid %d", os.Getuid()) {
		t.Errorf("%d, by %v", answer.StatusCode, s.by.Load())
	}
	next := newAPIServer(t, Settings{Socket: path})
	testkit.NoError(t, next.Listen())
	testkit.NoError(t, s.Close())
	if _, err := os.Stat(path); err != nil {
		t.Errorf("the end of a process removes the socket of the next one: %v", err)
	}
	testkit.NoError(t, next.Close())
	if _, err := os.Stat(path); err == nil {
		t.Error("the socket is left")
	}
	testkit.NoError(t, os.WriteFile(path, nil, 0o600))
	if err := newAPIServer(t, Settings{Socket: path}).Listen(); err == nil {
		t.Error("a file was replaced")
	}
}

func TestEventsAreStreamed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "admin.sock")
	s := newAPIServer(t, Settings{Socket: path})
	startServing(t, s.Server)
	conn := testkit.Must(net.Dial("unix", path))(t)
	defer conn.Close()
	testkit.NoError(t, conn.SetDeadline(time.Now().Add(answerTimeout)))
	fmt.Fprint(conn, "GET /api/v1/events?event=operator_action HTTP/1.1\r\nHost: x\r\n\r\n")
	r := bufio.NewReader(conn)
	readUntil := func(want string) {
		t.Helper()
		for {
			line, err := r.ReadString('\n')
			if err != nil {
				t.Fatalf("no %q: %v", want, err)
			}
			if strings.Contains(line, want) {
				return
			}
		}
	}
	readUntil(": events from here on")
	s.change(func(r *http.Request) { r.Header.Del("Authorization") }) // without tokens a viewer: refused
	conn2 := testkit.Must(net.Dial("unix", path))(t)
	defer conn2.Close()
	fmt.Fprintf(conn2, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}", kickPath)
	readUntil("event: operator_action")
	readUntil(`"subject":"bob/x@example.org"`)
}

func FuzzAPI(f *testing.F) {
	f.Add("POST", kickPath, "{}", "application/json", "")
	f.Add("GET", "/api/v1/gateways", "", "", "Bearer "+viewerToken)
	f.Add("DELETE", "/api/../metrics", "", "", "Bearer ")
	s := newAPIServer(f, Settings{Address: "127.0.0.1:9143", TokensFile: writeTokens(f)})
	f.Fuzz(func(t *testing.T, method, path, body, contentType, authorization string) {
		if strings.Contains(authorization, token) {
			return
		}
		r := httptest.NewRequest(http.MethodGet, "http://127.0.0.1:9143/", strings.NewReader(body))
		r.Method, r.URL.Path = method, path
		r.Header.Set("Content-Type", contentType)
		r.Header.Set("Authorization", authorization)
		s.filter.ServeHTTP(httptest.NewRecorder(), r)
		if s.kicks.Load() != 0 {
			t.Errorf("%s %q without an operator's token is carried out", method, path)
		}
	})
}
