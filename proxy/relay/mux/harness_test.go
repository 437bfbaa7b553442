package mux

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http/httptest"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"imapgate/internal/audit"
	"imapgate/internal/event"
	"imapgate/internal/identity"
	"imapgate/internal/metrics"
	"imapgate/internal/parking"
	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
	"imapgate/proxy/relay"
	"imapgate/proxy/relay/mux/pool"
	"imapgate/proxy/relay/splice"
	"imapgate/proxy/upstream"
	"imapgate/tlsconf"
)

// setup describes the harness that a test needs.
type setup struct {
	mode          event.Mode
	settings      Settings
	caps          string
	parkAfter     time.Duration
	idleTimeout   time.Duration
	stallTimeout  time.Duration
	transport     string // of the client's and the backend's connections: "tls" or anything else
	split         string
	password      string
	quota         Quota
	maxLine       int                 // bytes of a client's line
	auditCommands audit.CommandFilter // recorded commands; default: all

	id                string // name in the client's ID before the login
	loginNotFromRoute bool   // no route sets the login name
	tokenExpired      bool   // the client logged in with a token that has expired since
}

// certificates are a backend's and a gateway's, shared by the harnesses of a test.
type certificates struct {
	backend, client *tls.Config // for the backend's side, and for its client
	gateway         tls.Certificate
}

func newCertificates(t testing.TB) *certificates {
	t.Helper()
	ca := testbed.NewCA(t)
	cert, key := ca.Issue(t, "localhost")
	pair, err := tls.LoadX509KeyPair(cert, key)
	testkit.NoError(t, err)
	own, err := tlsconf.SelfSigned("localhost")
	testkit.NoError(t, err)
	return &certificates{
		backend: &tls.Config{Certificates: []tls.Certificate{pair}}, client: ca.ClientTLS("localhost"), gateway: own,
	}
}

// harness is a Hub with one backend, a stub, under two names.
type harness struct {
	// Set once.
	t         testing.TB
	setup     setup
	certs     *certificates
	stub      *stub
	hub       *Hub
	deps      Deps
	logs      *testbed.Log
	auditPath string // path of the audit log

	mu       sync.Mutex
	location Location // Guarded by mu. Current location of the mailbox; zero fields: unchanged.
}

const user = "alice"

// zeroSettings are the keys whose zero means something in tests.
var zeroSettings = []string{"pool_idle_timeout", "max_per_user", "silence_timeout", "read_after_write"}

func newHarness(t testing.TB, s setup, certs *certificates) *harness {
	t.Helper()
	s.settings.CommandHoldTimeout = cmp.Or(s.settings.CommandHoldTimeout, 5*time.Second)
	s.settings.UIDPrefetch = cmp.Or(s.settings.UIDPrefetch, PrefetchLazy)
	h := &harness{t: t, setup: s, certs: certs, logs: new(testbed.Log)}
	up := upstream.Config{Name: "stub", Settings: upstream.Settings{TLS: event.NoTLS}, LoginSettings: upstream.LoginSettings{UpstreamConnectTimeout: testTimeout},
		WrapConn: func(c *net.TCPConn) net.Conn { return parking.NewBufferedConn(c) }}
	var secure *tls.Config
	if s.transport == "tls" {
		secure, up.TLSConfig, up.TLS = certs.backend, testbed.StaticTLS(certs.client), event.ImplicitTLS
	}
	var err error
	h.stub, err = newStub(secure, splitters[cmp.Or(s.split, "whole")])
	testkit.NoError(t, err)
	if s.caps != "" {
		h.stub.caps = s.caps
	}
	up.Address = h.stub.l.Addr().String()
	log := zap.New(zapcore.NewCore(zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig()), h.logs, zapcore.DebugLevel))
	h.deps = Deps{Metrics: metrics.New("test"), Log: log, Backends: map[string]Backend{}}
	for _, name := range []string{"stub", "west"} {
		up.Name = name
		h.deps.Backends[name] = Backend{Upstream: upstream.New(testbed.WithDefaults(up), upstream.Hooks{}, zap.NewNop()), Settings: testbed.WithDefaults(s.settings, zeroSettings...)}
	}
	h.auditPath = filepath.Join(t.TempDir(), "audit")
	h.deps.Audit, err = audit.Open(testbed.WithDefaults(audit.Config{Settings: audit.Settings{Path: h.auditPath, Commands: cmp.Or(s.auditCommands, audit.AllCommands)}}, "path", "first_per_minute"), log)
	testkit.NoError(t, err)
	h.deps.Sessions = relay.NewRegistry(relay.Config{IdleTimeout: cmp.Or(s.idleTimeout, time.Hour)})
	h.deps.Splices, err = splice.NewSet(splice.Config{ParkAfter: time.Second, HalfClosedTimeout: 100 * time.Millisecond, WriteTimeout: time.Hour}, h.deps.Sessions)
	testkit.NoError(t, err)
	h.hub, err = NewHub(Config{
		ParkAfter: cmp.Or(s.parkAfter, relay.Tick), StallTimeout: cmp.Or(s.stallTimeout, time.Hour), MaxLine: s.maxLine, Locate: h.locate,
	}, h.deps)
	testkit.NoError(t, err)
	return h
}

// testClient is a client of a harness, with its session.
type testClient struct {
	*scriptedConn
	session *session
	results chan relay.Result
	result  relay.Result // set by awaitEnd
}

// logIn logs a client in. Its upstream is the stub's next connection.
func (h *harness) logIn() *testClient {
	h.t.Helper()
	name, err := identity.Canonicalize(user, "")
	testkit.NoError(h.t, err)
	login := upstream.Request{User: name, Login: user, Password: identity.NewSecret(cmp.Or(h.setup.password, "right"))}
	if h.setup.id != "" {
		login.Client.ID = [][2]string{{"name", h.setup.id}}
	}
	account, err := h.hub.Login(context.Background(), Location{Backend: "stub", Login: user}, login, pool.VerifiedHere)
	testkit.NoError(h.t, err)
	if h.setup.tokenExpired {
		account.SetTokenEnd(time.Now())
	}
	gatewayEnd, clientEnd := h.socketPair()
	c := &testClient{scriptedConn: newScriptedConn(clientEnd, splitters[cmp.Or(h.setup.split, "whole")]), results: make(chan relay.Result, 2)}
	live := h.deps.Sessions.Add(relay.Info{Backend: "stub", Mode: cmp.Or(h.setup.mode, event.ModeResume)}, relay.OwnerFunc(func(r relay.Result) { c.results <- r }))
	c.session = h.hub.newSession(live, Client{
		Conn: gatewayEnd, AuditClient: &audit.Client{Session: "s-1"}, Caps: h.hub.OfferedCaps("stub", account.Caps()), Quota: h.setup.quota,
		LoginFromRoute: !h.setup.loginNotFromRoute,
	}, account)
	c.session.start()
	return c
}

// socketPair returns both ends of a client's connection.
func (h *harness) socketPair() (gatewayEnd, clientEnd net.Conn) {
	h.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	testkit.NoError(h.t, err)
	defer func() { _ = l.Close() }()
	clientEnd, err = net.Dial("tcp", l.Addr().String())
	testkit.NoError(h.t, err)
	gatewayEnd, err = l.Accept()
	testkit.NoError(h.t, err)
	if h.setup.transport != "tls" {
		return gatewayEnd, clientEnd
	}
	server := tls.Server(parking.NewBufferedConn(gatewayEnd.(*net.TCPConn)), &tls.Config{Certificates: []tls.Certificate{h.certs.gateway}})
	client := tls.Client(clientEnd, &tls.Config{InsecureSkipVerify: true}) // the certificate is self-signed
	handshakeErr := make(chan error, 1)
	go func() { handshakeErr <- server.Handshake() }()
	testkit.NoError(h.t, errors.Join(client.Handshake(), <-handshakeErr))
	return server, client
}

// locate returns the location of every mailbox.
func (h *harness) locate(context.Context, identity.User) (Location, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return Location{Backend: cmp.Or(h.location.Backend, "stub"), Login: cmp.Or(h.location.Login, user), Mode: cmp.Or(h.location.Mode, event.ModeResume)}, nil
}

func (h *harness) wasHandedOver() bool {
	for series, n := range h.scrapeMetrics() {
		if strings.HasPrefix(series, "imapgate_mux_pins_total") && n != "0" {
			return true
		}
	}
	return false
}

// metric returns the value of a series as it is scraped, "" without one.
func (h *harness) metric(series string) string { return h.scrapeMetrics()["imapgate_"+series] }

func (h *harness) scrapeMetrics() map[string]string {
	w := httptest.NewRecorder()
	h.deps.Metrics.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	all := map[string]string{}
	for line := range strings.Lines(w.Body.String()) {
		if i := strings.LastIndexByte(line, ' '); i > 0 {
			all[line[:i]] = strings.TrimSpace(line[i:])
		}
	}
	return all
}

// awaitEnd waits for the end of c's session, which must occur once.
func (h *harness) awaitEnd(c *testClient) relay.Result {
	h.t.Helper()
	select {
	case c.result = <-c.results:
		return c.result
	case <-time.After(testTimeout):
		h.t.Fatalf("the session does not end\n%s", stacks())
	}
	return relay.Result{}
}

// close stops everything and requires that nothing is left.
func (h *harness) close(clients ...*testClient) {
	h.t.Helper()
	closed := make(chan struct{})
	go func() { h.hub.Close(); h.deps.Splices.Close(); h.deps.Sessions.Close(); close(closed) }()
	select {
	case <-closed:
	case <-time.After(2 * testTimeout):
		h.t.Fatalf("the hub does not close\n%s", stacks())
	}
	for _, c := range clients {
		c.close()
		if len(c.results) > 0 {
			h.t.Error("a session ended twice")
		}
	}
	m := h.scrapeMetrics()
	for _, state := range event.Values("State") {
		if n := m[`imapgate_mux_sessions{state="`+state+`"}`]; n != "0" {
			h.t.Errorf("%s sessions are still %s", n, state)
		}
	}
	if n := m["imapgate_mux_pool_connections"]; n != "0" || h.deps.Sessions.Len() != 0 {
		h.t.Errorf("%s connections and %d sessions are left", n, h.deps.Sessions.Len())
	}
	testkit.NoError(h.t, h.deps.Audit.Close())
	if text := h.logs.String(); strings.Contains(text, `"msg":"panic recovered"`) {
		h.t.Errorf("a panic was recovered:\n%s", text)
	}
}

// awaitParked waits until the session of c is parked. It does not wait long, because the
// session may be waiting for an answer.
func (c *testClient) awaitParked() {
	for end := time.Now().Add(15 * time.Millisecond); time.Now().Before(end); <-time.After(time.Millisecond) {
		c.session.client.InterruptWait()
		if up := c.session.upstream.wire.Load(); up != nil {
			up.InterruptWait()
		}
		c.session.mu.Lock()
		running := c.session.running
		c.session.mu.Unlock()
		if !running {
			return
		}
	}
}

func stacks() []byte {
	buf := make([]byte, 1<<20)
	return buf[:runtime.Stack(buf, true)]
}

// checkGoroutineLeaks requires as many goroutines after the test as before it.
func checkGoroutineLeaks(t testing.TB) {
	t.Helper()
	before := runtime.NumGoroutine()
	t.Cleanup(func() {
		testkit.Eventually(t, "the test's goroutines to end", func() bool { return runtime.NumGoroutine() <= before })
	})
}
