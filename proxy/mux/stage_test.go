package mux

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"io"
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
	"imapgate/internal/identity"
	"imapgate/internal/metrics"
	"imapgate/internal/quiet"
	"imapgate/internal/testbed"
	"imapgate/proxy/mux/pool"
	"imapgate/proxy/upstream"
	"imapgate/tlsconf"
)

// setup is what a test may want of a stage.
type setup struct {
	mode     Mode
	settings Settings
	caps     string
	quiet    time.Duration
	idle     time.Duration
	write    time.Duration
	kind     string // of connection, client's and backend's: "tls" or not
	cut      string
	password string
	budget   Budget
	line     int            // bytes of a line of the client's
	commands audit.Commands // on record; all

	id         string // name by which the client introduced itself before the login
	unrouted   bool   // the login name is no route's
	tokenEnded bool   // the client has come with one, which has ended since
}

// certificates are a backend's and a gateway's, shared by the stages of a test.
type certificates struct {
	backend, client *tls.Config // of the backend's side
	gateway         tls.Certificate
}

func newCertificates(t testing.TB) *certificates {
	t.Helper()
	ca := testbed.NewCA(t)
	cert, key := ca.Issue(t, "localhost")
	pair, err := tls.LoadX509KeyPair(cert, key)
	must(t, err)
	own, err := tlsconf.SelfSigned("localhost")
	must(t, err)
	return &certificates{
		backend: &tls.Config{Certificates: []tls.Certificate{pair}}, client: ca.ClientTLS("localhost"), gateway: own,
	}
}

// stage is a Hub with one backend, a stub.
type stage struct {
	// Set once.
	t       testing.TB
	setup   setup
	certs   *certificates
	stub    *stub
	hub     *Hub
	rooms   Rooms
	logs    *testbed.Log
	trail   string // the audit log's file
	splices sync.WaitGroup

	mu     sync.Mutex
	pinned int  // Guarded by mu.
	moved  Home // Guarded by mu. Where the user's mailbox is now, as far as that has changed.
}

const user = "alice"

func newStage(t testing.TB, s setup, certs *certificates) *stage {
	t.Helper()
	s.settings.HoldMax = cmp.Or(s.settings.HoldMax, 5*time.Second)
	s.settings.Learn = cmp.Or(s.settings.Learn, Lazy)
	y := &stage{t: t, setup: s, certs: certs, logs: new(testbed.Log)}
	up := upstream.Config{Name: "stub", TLSMode: upstream.NoTLS, ConnectTimeout: patience,
		Socket: func(c *net.TCPConn) net.Conn { return quiet.NewSocket(c) }}
	var secure *tls.Config
	if s.kind == "tls" {
		secure, up.TLS, up.TLSMode = certs.backend, testbed.Fixed(certs.client), upstream.ImplicitTLS
	}
	var err error
	y.stub, err = newStub(secure, cuts[cmp.Or(s.cut, "whole")])
	must(t, err)
	if s.caps != "" {
		y.stub.caps = s.caps
	}
	up.Address = y.stub.l.Addr().String()
	log := zap.New(zapcore.NewCore(zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig()), y.logs, zapcore.DebugLevel))
	y.rooms = Rooms{Metrics: metrics.New("test"), Log: log, Backends: map[string]Backend{
		"stub": {Upstream: upstream.New(up, upstream.Hooks{}, zap.NewNop()), Settings: s.settings},
	}}
	y.trail = filepath.Join(t.TempDir(), "audit")
	y.rooms.Audit, err = audit.Open(audit.Config{Path: y.trail, Commands: cmp.Or(s.commands, audit.AllCommands)}, log)
	must(t, err)
	y.hub, err = NewHub(Config{
		Quiet: cmp.Or(s.quiet, tick), Idle: cmp.Or(s.idle, time.Hour), Write: cmp.Or(s.write, time.Hour),
		MaxLine: s.line, Home: y.home, Splice: y.splice,
	}, y.rooms)
	must(t, err)
	return y
}

// actor is a client of a stage, with its session.
type actor struct {
	*party
	session *session
	ended   chan Result
	result  Result // of leave
}

// join logs a client in, whose upstream is the stub's next one.
func (y *stage) join() *actor {
	y.t.Helper()
	who, err := identity.Canon(user, "")
	must(y.t, err)
	login := upstream.Request{User: who, Login: user, Password: identity.NewSecret(cmp.Or(y.setup.password, "right"))}
	if y.setup.id != "" {
		login.Client.ID = [][2]string{{"name", y.setup.id}}
	}
	account, err := y.hub.Login(context.Background(), Home{Backend: "stub", Login: user}, login, pool.Vouched)
	must(y.t, err)
	if y.setup.tokenEnded {
		account.TokenEnds(time.Now())
	}
	near, far := y.connect()
	a := &actor{party: newParty(far, cuts[cmp.Or(y.setup.cut, "whole")]), ended: make(chan Result, 2)}
	before := map[*session]bool{}
	for _, s := range y.hub.all() {
		before[s] = true
	}
	caps := y.hub.Offered("stub", account.Caps())
	y.hub.Start(Client{
		Conn: near, Who: &audit.Client{Session: "s-1"}, Mode: cmp.Or(y.setup.mode, Resume), Caps: caps, Budget: y.setup.budget,
		Routed: !y.setup.unrouted,
	}, "stub", account, func(r Result) { a.ended <- r })
	for _, s := range y.hub.all() {
		if !before[s] {
			a.session = s
		}
	}
	return a
}

// connect makes a client's connection: the gateway's end and the client's.
func (y *stage) connect() (near, far net.Conn) {
	y.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(y.t, err)
	defer func() { _ = l.Close() }()
	far, err = net.Dial("tcp", l.Addr().String())
	must(y.t, err)
	near, err = l.Accept()
	must(y.t, err)
	if y.setup.kind != "tls" {
		return near, far
	}
	server := tls.Server(quiet.NewSocket(near.(*net.TCPConn)), &tls.Config{Certificates: []tls.Certificate{y.certs.gateway}})
	client := tls.Client(far, &tls.Config{InsecureSkipVerify: true}) // a certificate of the test's own
	shook := make(chan error, 1)
	go func() { shook <- server.Handshake() }()
	must(y.t, errors.Join(client.Handshake(), <-shook))
	return server, client
}

// splice relays what is left of a session that was handed on, until either side
// hangs up.
func (y *stage) splice(client, backend End, _ time.Time, ended func(Result)) {
	y.mu.Lock()
	y.pinned++
	y.mu.Unlock()
	one := func(from, to End) {
		defer y.splices.Done()
		_, err := to.Conn.Write(to.First)
		if err == nil {
			_, _ = io.Copy(to.Conn, from.Conn)
		}
		_ = to.Conn.Close()
	}
	y.splices.Add(2)
	go one(client, backend)
	go func() {
		one(backend, client)
		_ = backend.Conn.Close()
		ended(Result{Reason: audit.BackendClosed})
	}()
}

// home is where everybody's mailbox is.
func (y *stage) home(context.Context, identity.User) (Home, error) {
	y.mu.Lock()
	defer y.mu.Unlock()
	return Home{Backend: cmp.Or(y.moved.Backend, "stub"), Login: cmp.Or(y.moved.Login, user)}, nil
}

func (y *stage) handedOn() bool {
	y.mu.Lock()
	defer y.mu.Unlock()
	return y.pinned > 0
}

// metric is the value of a series as it is scraped, "" if there is none.
func (y *stage) metric(series string) string { return y.metrics()["imapgate_mux_"+series] }

func (y *stage) metrics() map[string]string {
	w := httptest.NewRecorder()
	y.rooms.Metrics.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	all := map[string]string{}
	for line := range strings.Lines(w.Body.String()) {
		if i := strings.LastIndexByte(line, ' '); i > 0 {
			all[line[:i]] = strings.TrimSpace(line[i:])
		}
	}
	return all
}

// leave waits for the end of a's session, which has exactly one.
func (y *stage) leave(a *actor) Result {
	y.t.Helper()
	select {
	case a.result = <-a.ended:
		return a.result
	case <-time.After(patience):
		y.t.Fatalf("the session does not end\n%s", stacks())
	}
	return Result{}
}

// close stops everything. Behind it nothing may be left.
func (y *stage) close(actors ...*actor) {
	y.t.Helper()
	closed := make(chan struct{})
	go func() { y.hub.Close(); close(closed) }()
	select {
	case <-closed:
	case <-time.After(2 * patience):
		y.t.Fatalf("the hub does not close\n%s", stacks())
	}
	for _, a := range actors {
		a.close()
		if len(a.ended) > 0 {
			y.t.Error("a session ended twice")
		}
	}
	y.splices.Wait()
	m := y.metrics()
	for _, state := range []string{metrics.Unselected, metrics.Attached, metrics.Detached, metrics.Idle, metrics.Pinned} {
		if n := m[`imapgate_mux_sessions{state="`+state+`"}`]; n != "0" {
			y.t.Errorf("%s sessions are still %s", n, state)
		}
	}
	if n := m["imapgate_mux_pool_connections"]; n != "0" || y.hub.Len() != 0 {
		y.t.Errorf("%s connections and %d sessions are left", n, y.hub.Len())
	}
	must(y.t, y.rooms.Audit.Close())
	if text := y.logs.String(); strings.Contains(text, `"msg":"fault"`) {
		y.t.Errorf("something broke down:\n%s", text)
	}
}

// rest waits until the session of a has no goroutine; not for long, because it
// may be waiting for an answer.
func (a *actor) rest() {
	for end := time.Now().Add(15 * time.Millisecond); time.Now().Before(end); <-time.After(time.Millisecond) {
		a.session.client.Interrupt()
		if up := a.session.upstream.Load(); up != nil {
			up.Interrupt()
		}
		a.session.mu.Lock()
		running := a.session.running
		a.session.mu.Unlock()
		if !running {
			return
		}
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func stacks() []byte {
	buf := make([]byte, 1<<20)
	return buf[:runtime.Stack(buf, true)]
}

// leavesNothing wants as many goroutines behind the test as before it.
func leavesNothing(t testing.TB) {
	t.Helper()
	before := runtime.NumGoroutine()
	t.Cleanup(func() {
		for end := time.Now().Add(patience); runtime.NumGoroutine() > before; <-time.After(5 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%d goroutines are left of %d\n%s", runtime.NumGoroutine(), before, stacks())
			}
		}
	})
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); <-time.After(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}
