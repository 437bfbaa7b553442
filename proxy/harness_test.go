package proxy

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"imapgate/auth"
	"imapgate/internal/audit"
	"imapgate/internal/descriptors"
	"imapgate/internal/event"
	"imapgate/internal/identity"
	"imapgate/internal/limit"
	"imapgate/internal/metrics"
	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
	"imapgate/proxy/upstream"
	"imapgate/routing"
	"imapgate/tlsconf"
)

// The users' password, and the users. alice is on east, which verifies her. carol is in the
// passwd-file, on a backend with a master login. dave is on that backend too, but no method
// can verify him. erin's backend is down. frank is in the file, on east. No other user has
// a route.
const password = "right"

var loopback = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}

// harnessConfig holds what a test may change before the gateway starts.
type harnessConfig struct {
	users        string // the passwd-file
	cfg          Config
	auth         auth.Config
	authSources  auth.Sources
	clientCA     string // PEM; clients are asked for certificates
	routes       routing.Config
	redis        redis.UniversalClient
	limits       limit.Config // nothing is limited by default
	hooks        limit.Hooks
	auditFirst   int // records a minute that are not aggregated; 0: no aggregation
	backends     map[string]upstream.Config
	changeDeps   func(*Deps)
	changeServer func(*Server)
}

// harness is a gateway with its real dependencies and sockets.
type harness struct {
	t        testing.TB
	server   *Server
	deps     Deps
	logs     *testbed.Log
	dir      string
	rootCAs  *x509.CertPool
	stop     context.CancelFunc
	serveErr chan error
	stopOnce sync.Once

	limitsRunning sync.WaitGroup
	stopLimits    context.CancelFunc

	wantPanics  int  // panics that the test expects
	auditFailed bool // the test made the audit log unavailable
}

// newHarness is openHarness for a test that runs alone: it also checks for leaks.
func newHarness(t testing.TB, backend string, change ...func(*harnessConfig)) *harness {
	t.Helper()
	checkLeaks(t)
	return openHarness(t, backend, change...)
}

// openHarness starts a gateway whose users are on backend. After the test it checks the
// gateway's invariants.
func openHarness(t testing.TB, backend string, change ...func(*harnessConfig)) *harness {
	t.Helper()
	b := &harness{t: t, logs: new(testbed.Log), dir: t.TempDir(), serveErr: make(chan error, 1)}
	s := b.defaults(backend)
	for _, f := range change {
		f(s)
	}
	b.writeFile("users", s.users)
	b.start(s)
	var ctx context.Context
	ctx, b.stop = context.WithCancel(context.WithValue(context.Background(), servingKey{}, true))
	if err := b.server.Listen(); err != nil {
		t.Fatal(err)
	}
	watching, stop := context.WithCancel(context.Background())
	b.limitsRunning.Go(func() { _ = b.deps.Limits.Run(watching) }) // returns nil
	b.stopLimits = stop
	go b.serve(ctx)
	t.Cleanup(b.checkInvariants)
	return b
}

// Answers to failed logins.
const (
	authFailedReply      = "NO [AUTHENTICATIONFAILED] Authentication failed."
	unavailableReply     = "NO [UNAVAILABLE] Account is temporarily unavailable."
	tooManySessionsReply = "NO [LIMIT] Too many connections."
	minDenialTime        = 200 * time.Millisecond
)

// servingKey marks the contexts of sessions.
type servingKey struct{}

// serve returns when the gateway has stopped.
func (b *harness) serve(ctx context.Context) { b.serveErr <- b.server.Serve(ctx) }

func (b *harness) defaults(backend string) *harnessConfig {
	s := &harnessConfig{
		users: "carol@example.org:{PLAIN}" + password + "\nfrank@example.org:{PLAIN}" + password + "\n",
		cfg: Config{
			LimitSettings: LimitSettings{PreauthTimeout: 60 * time.Second, TLSHandshakeTimeout: 10 * time.Second, IdleTimeout: 32 * time.Minute, WriteTimeout: 5 * time.Minute, MaxAuthAttempts: 3, MaxBadCommands: 3}, Instance: NewInstance(),
		},
		auth: auth.Config{Settings: auth.Settings{Methods: []string{auth.File, auth.Passthrough}, NameRules: identity.NamesInDomain("example.org"), File: auth.FileSettings{Path: b.path("users")}}},
		routes: routing.Config{Settings: routing.Settings{Source: routing.SourceStatic, Static: routing.Static{Users: map[string]string{
			"alice": "east", "frank": "east", "carol": "mastered", "dave": "mastered", "erin": "gone",
		}}}, Names: identity.NamesInDomain("example.org")},
		backends: map[string]upstream.Config{
			"east":     {Settings: upstream.Settings{Address: backend, TLS: event.NoTLS}},
			"mastered": {Settings: upstream.Settings{Address: backend, TLS: event.NoTLS, Login: upstream.MasterLogin, Master: upstream.Master{User: "gateway", Password: identity.NewSecret("master-password")}}},
			"gone":     {Settings: upstream.Settings{Address: refusingAddress, TLS: event.NoTLS}, LoginSettings: upstream.LoginSettings{UpstreamConnectTimeout: time.Second}},
		},
	}
	for _, mode := range []event.TLSMode{event.NoTLS, event.StartTLS, event.ImplicitTLS} {
		s.cfg.Listeners = append(s.cfg.Listeners,
			ListenerSettings{Name: string(mode), Address: "127.0.0.1:0", TLS: mode},
			ListenerSettings{Name: "trusting-" + string(mode), Address: "127.0.0.1:0", TLS: mode, TrustedNetworks: loopback},
			ListenerSettings{Name: "balanced-" + string(mode), Address: "127.0.0.1:0", TLS: mode, ProxyProtocol: &ProxyProtocol{Trusted: loopback}})
	}
	return s
}

func (b *harness) start(s *harnessConfig) {
	b.t.Helper()
	log := zap.New(zapcore.NewCore(zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig()), b.logs, zapcore.DebugLevel))
	cert, key, err := tlsconf.SelfSignedPEM("localhost")
	testkit.NoError(b.t, err)
	b.writeFile("cert.pem", string(cert))
	b.writeFile("key.pem", string(key))
	b.rootCAs = x509.NewCertPool()
	b.rootCAs.AppendCertsFromPEM(cert)
	r := Deps{Sockets: descriptors.New(descriptors.Limit()), Backends: map[string]*upstream.Backend{}, Metrics: metrics.New("test"), Log: log}
	served := tlsconf.ServerSettings{Certificates: []tlsconf.CertFiles{{Cert: b.path("cert.pem"), Key: b.path("key.pem")}}}
	if s.clientCA != "" {
		b.writeFile("clients.pem", s.clientCA)
		served.ClientCA = b.path("clients.pem")
	}
	r.TLS, err = tlsconf.NewServer(served, log)
	testkit.NoError(b.t, err)
	r.Auth, err = auth.New(testbed.WithDefaults(s.auth), s.authSources, log)
	testkit.NoError(b.t, err)
	modes := make(map[string]BackendSettings)
	for name, c := range s.backends {
		c.Name, c.SessionPrefix, c.Sockets = name, s.cfg.Instance, r.Sockets
		if c.AnswerTimeout == 0 { // a short login timeout implies a short answer timeout
			c.AnswerTimeout = c.UpstreamLoginTimeout
		}
		r.Backends[name] = upstream.New(testbed.WithDefaults(c), upstream.Hooks{OnConnect: r.Metrics.Backend(name).CountConnect}, log)
		s.routes.Backends = append(s.routes.Backends, name)
		modes[name] = testbed.WithDefaults(s.cfg.Modes[name], "pool_idle_timeout", "max_per_user", "silence_timeout", "read_after_write")
	}
	s.cfg.Modes = modes
	r.Routes, err = routing.New(testbed.WithDefaults(s.routes), s.redis, routing.Metrics{Lookup: r.Metrics.CountRouteLookup}, log)
	testkit.NoError(b.t, err)
	s.limits.Prefix = "imapgate:"
	r.Limits, err = limit.New(testbed.WithDefaults(s.limits, testbed.NoLimit...), s.redis, s.hooks, log)
	testkit.NoError(b.t, err)
	r.Audit, err = audit.Open(testbed.WithDefaults(audit.Config{Settings: audit.Settings{Path: b.path("audit"), FirstPerMinute: s.auditFirst}}, "path", "first_per_minute"), log)
	testkit.NoError(b.t, err)
	if s.changeDeps != nil {
		s.changeDeps(&r)
	}
	b.deps = r
	b.server, err = New(s.cfg, r)
	testkit.NoError(b.t, err)
	if s.changeServer != nil {
		s.changeServer(b.server)
	}
}

func (b *harness) path(name string) string { return filepath.Join(b.dir, name) }

func (b *harness) writeFile(name, text string) {
	b.t.Helper()
	testkit.NoError(b.t, os.WriteFile(b.path(name), []byte(text), 0o600))
}

// stopServer stops the gateway and waits for it.
func (b *harness) stopServer() {
	b.stopOnce.Do(func() {
		b.stop()
		select {
		case err := <-b.serveErr:
			if err != nil {
				b.t.Errorf("Serve: %v", err)
			}
		case <-time.After(testbed.Timeout):
			b.t.Errorf("the gateway does not stop\n%s", stacks())
		}
		b.stopLimits()
		b.limitsRunning.Wait()
		if err := b.deps.Audit.Close(); err != nil {
			b.t.Error(err)
		}
	})
}

// checkInvariants checks what must hold after any test. Every connection has one recorded
// end, with a reason of the closed set. Every login has one record. No connection or
// session is counted as open. No upstream was another user's, and no goroutine panicked.
func (b *harness) checkInvariants() {
	b.stopServer()
	sessions, ended, logins := 0.0, map[string]int{}, 0.0
	for _, r := range b.records() {
		reason := event.Reason(r.field("reason"))
		if ofMux := (event.Known(event.ReattachReason(reason)) || event.Known(event.LossReason(reason)) || event.Known(event.PinReason(reason))) && r["mailbox"] != nil; reason != "" && !ofMux && (!event.Known(reason) || reason == event.InternalError && b.wantPanics == 0) {
			b.t.Errorf("reason %q: %v", reason, r)
		}
		switch r.field("event") {
		case "connection_refused", "session_ended":
			ended[r.field("session")]++
			sessions += r.count()
		case "login_accepted", "login_refused":
			logins += r.count()
		}
	}
	for session, n := range ended {
		if n != 1 || session == "" {
			b.t.Errorf("session %q has %d recorded ends", session, n)
		}
	}
	m := b.metrics()
	if b.auditFailed {
		sessions, logins = m["imapgate_connections_total"], m["imapgate_logins_total"]
	}
	for name, want := range map[string]float64{
		"imapgate_connections_total": sessions, "imapgate_logins_total": logins, "imapgate_preauth_connections": 0,
		"imapgate_sessions": 0, "imapgate_identity_violations_total": 0,
	} {
		if m[name] != want {
			b.t.Errorf("%s is %v, want %v", name, m[name], want)
		}
	}
	if n := b.server.openConns.Load(); n != 0 {
		b.t.Errorf("%d connections are counted as open", n)
	}
	if n := b.deps.Sockets.Open(); n != 0 {
		b.t.Errorf("%d sockets are counted as open", n)
	}
	if n := b.deps.Limits.CountersInUse(); n != 0 {
		b.t.Errorf("%d counters are still in use", n)
	}
	if n := strings.Count(b.logs.String(), `"msg":"panic recovered"`); n != b.wantPanics {
		b.t.Errorf("%d panics:\n%s", n, b.logs)
	}
}

// metricsText returns the metrics as the admin API serves them.
func (b *harness) metricsText() string {
	w := httptest.NewRecorder()
	b.deps.Metrics.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	return w.Body.String()
}

// metrics returns each metric, summed over its labels.
func (b *harness) metrics() map[string]float64 {
	sums := map[string]float64{}
	for line := range strings.Lines(b.metricsText()) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		if i := strings.LastIndex(value, " "); i >= 0 {
			value = value[i+1:]
		}
		name, _, _ = strings.Cut(name, "{")
		if f, err := strconv.ParseFloat(value, 64); err == nil {
			sums[name] += f
		}
	}
	return sums
}

// auditRecord is one line of the audit log.
type auditRecord map[string]any

func (r auditRecord) field(name string) string {
	if v, ok := r[name]; ok {
		return fmt.Sprint(v)
	}
	return ""
}

// count returns how many events a record stands for.
func (r auditRecord) count() float64 {
	if n, folded := r["count"].(float64); folded {
		return n
	}
	return 1
}

// records returns the audit log so far.
func (b *harness) records() []auditRecord {
	b.t.Helper()
	text, err := os.ReadFile(b.path("audit"))
	testkit.NoError(b.t, err)
	var all []auditRecord
	for line := range bytes.Lines(text) {
		if !bytes.HasSuffix(line, []byte("\n")) {
			break // partly written; a count at the end would be wrong
		}
		var r auditRecord
		if err := json.Unmarshal(line, &r); err != nil {
			b.t.Fatalf("audit line %q: %v", line, err)
		}
		all = append(all, r)
	}
	return all
}

// wantRecord waits for a record of an event with a reason.
func (b *harness) wantRecord(event string, reason event.Reason) auditRecord {
	b.t.Helper()
	var found auditRecord
	testkit.Eventually(b.t, fmt.Sprintf("%s %s in the audit log", event, reason), func() bool {
		for _, r := range b.records() {
			if r.field("event") == event && r.field("reason") == string(reason) {
				found = r
			}
		}
		return found != nil
	})
	return found
}

// lastRecord waits until the last record is one of an event about a client.
func (b *harness) lastRecord(event string, c *client) auditRecord {
	b.t.Helper()
	var found auditRecord
	peer := c.nc.LocalAddr().String()
	testkit.Eventually(b.t, event+" in the audit log", func() bool {
		for _, r := range b.records()[c.firstRecord:] {
			if r.field("event") == event && r.field("peer") == peer {
				found = r
			}
		}
		return found != nil
	})
	return found
}

func (b *harness) addr(listener string) string { return b.server.Addrs()[listener].String() }

// checkLeaks expects the number of goroutines and descriptors to be as before the test.
func checkLeaks(t testing.TB) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	testkit.NoError(t, err)
	_ = l.Close() // the runtime's own descriptors come with the first socket
	goroutines, files := runtime.NumGoroutine(), openFiles(t)
	t.Cleanup(func() {
		testkit.Eventually(t, "goroutines and descriptors to go", func() bool {
			runtime.GC() // closes the pipes that net keeps for splice(2)
			return runtime.NumGoroutine() <= goroutines && len(openFiles(t)) <= len(files)
		})
	})
}

func openFiles(t testing.TB) []string {
	if runtime.GOOS != "linux" {
		return nil
	}
	numbers, err := os.ReadDir("/proc/self/fd")
	testkit.NoError(t, err)
	var files []string
	for _, n := range numbers {
		if name, err := os.Readlink("/proc/self/fd/" + n.Name()); err == nil {
			files = append(files, name)
		}
	}
	return files
}

func stacks() []byte {
	buf := make([]byte, 1<<20)
	return buf[:runtime.Stack(buf, true)]
}

// refusingAddress refuses connections. A port that was released could be reused at any
// moment.
const refusingAddress = "127.0.0.1:1"
