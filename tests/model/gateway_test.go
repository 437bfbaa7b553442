package model

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"imapgate/auth"
	"imapgate/internal/audit"
	"imapgate/internal/event"
	"imapgate/internal/identity"
	"imapgate/internal/limit"
	"imapgate/internal/metrics"
	"imapgate/internal/parking"
	"imapgate/internal/testbed"
	"imapgate/proxy"
	"imapgate/proxy/mux"
	"imapgate/proxy/mux/pool"
	"imapgate/proxy/upstream"
	"imapgate/routing"
)

// onlyBackend is the name of the only backend.
const onlyBackend = "only"

// backend is the mail server of a test.
type backend struct {
	address  string
	addUsers func(users ...string) error
	quirks   Quirks
}

// startBackend starts the mail server for all runs of a test: Cyrus if there is one, else
// Dovecot. A Dovecot process serves many logins, because starting one for each attach
// would take most of the time of a run.
func startBackend(t testing.TB) *backend {
	t.Helper()
	if testbed.HasCyrus() {
		d := testbed.StartCyrus(t, testbed.CyrusConfig{})
		addUsers := func(users ...string) error { return d.AddUsers(password, users...) }
		return &backend{d.Plain, addUsers, Quirks{CopiesExpunged: true, SilentHidesChanges: strings.HasPrefix(d.Version(), "3.1")}}
	}
	d := testbed.StartDovecot(t, testbed.DovecotConfig{Password: password, LoginsPerProcess: 1000, Processes: 4})
	return &backend{d.Plain, func(...string) error { return nil }, Quirks{}} // any user name is valid
}

// startFaultProxy starts a fault proxy in front of the backend.
func startFaultProxy(t testing.TB, target string) *FaultProxy {
	t.Helper()
	b, err := StartFaultProxy(target)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	return b
}

// gateway is a gateway in the test's process.
type gateway struct {
	// Set once.
	server  *proxy.Server
	dir     string // folder of its log
	cancel  context.CancelFunc
	wg      sync.WaitGroup // its goroutines
	closers []func() error
}

// startGateway starts a gateway whose only backend is at address. Neither side uses TLS,
// so that the fault proxy can read the dialogue.
func startGateway(c Config, address, dir string) (*gateway, error) {
	g := &gateway{dir: dir}
	deps, err := g.buildDeps(address)
	if err != nil {
		return nil, err
	}
	g.server, err = proxy.New(proxy.Config{
		LimitSettings: proxy.LimitSettings{PreauthTimeout: time.Minute, TLSHandshakeTimeout: 10 * time.Second, IdleTimeout: 32 * time.Minute, WriteTimeout: 5 * time.Minute, MaxAuthAttempts: 3, MaxBadCommands: 3},
		Modes: map[string]proxy.BackendSettings{onlyBackend: {Mode: event.Mode(c.Mode), Mux: testbed.WithDefaults(mux.Settings{
			Settings: pool.Settings{PoolIdleTimeout: time.Minute, MaxPerUser: 50}, ReadAfterWrite: true, UIDPrefetch: cmp.Or(c.UIDPrefetch, mux.PrefetchEager), ConsistencyCheck: c.Verify, AlwaysDetach: c.Detach,
		}, "silence_timeout")}}, Instance: proxy.NewInstance(),
		Listeners: []proxy.ListenerSettings{{Name: "clients", Address: "127.0.0.1:0", TLS: proxy.NoTLS}},
	}, deps)
	if err == nil {
		err = g.server.Listen()
	}
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	g.cancel = cancel
	for _, run := range []func(context.Context) error{deps.Routes.Run, deps.Auth.Run, g.server.Serve} {
		g.wg.Go(func() { _ = run(ctx) }) // returns nil
	}
	return g, nil
}

// buildDeps creates the dependencies of the server.
func (g *gateway) buildDeps(address string) (proxy.Deps, error) {
	file, err := os.Create(filepath.Join(g.dir, "log"))
	if err != nil {
		return proxy.Deps{}, err
	}
	log := zap.New(zapcore.NewCore(zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig()), zapcore.Lock(file), zapcore.InfoLevel))
	deps := proxy.Deps{Log: log, Metrics: metrics.New("test")}
	deps.Routes, err = routing.New(testbed.WithDefaults(routing.Config{
		Settings: routing.Settings{Source: routing.SourceStatic, Static: routing.Static{Default: onlyBackend}}, Backends: []string{onlyBackend},
	}), nil, routing.Metrics{Lookup: deps.Metrics.CountRouteLookup}, log)
	if err != nil {
		return deps, err
	}
	noPassword := func(context.Context, identity.User) (identity.Secret, error) {
		return identity.Secret{}, auth.ErrUnknown
	}
	if deps.Auth, err = auth.New(testbed.WithDefaults(auth.Config{Settings: auth.Settings{Methods: []string{auth.Passthrough}}}), auth.Sources{Redis: noPassword}, log); err != nil {
		return deps, err
	}
	deps.Backends = map[string]*upstream.Backend{onlyBackend: upstream.New(testbed.WithDefaults(upstream.Config{
		Name: onlyBackend, Settings: upstream.Settings{Address: address, TLS: upstream.NoTLS},
		WrapConn: func(tcp *net.TCPConn) net.Conn { return parking.NewBufferedConn(tcp) },
	}), upstream.Hooks{OnConnect: deps.Metrics.Backend(onlyBackend).CountConnect}, log)}
	if deps.Limits, err = limit.New(testbed.WithDefaults(limit.Config{}, testbed.NoLimit...), nil, limit.Hooks{}, log); err != nil {
		return deps, err
	}
	deps.Audit, err = audit.Open(testbed.WithDefaults(audit.Config{Settings: audit.Settings{Path: filepath.Join(g.dir, "audit"), Commands: audit.AllCommands}}, "path", "first_per_minute"), log)
	if err == nil {
		g.closers = []func() error{deps.Audit.Close, file.Close}
	}
	return deps, err
}

// address returns the address for clients.
func (g *gateway) address() string { return g.server.Addrs()["clients"].String() }

// close stops the gateway, waits for its goroutines and returns the end of its log.
func (g *gateway) close() (log string, err error) {
	g.cancel()
	g.server.Close()
	g.wg.Wait()
	for _, c := range g.closers {
		err = errors.Join(err, c())
	}
	text, readErr := os.ReadFile(filepath.Join(g.dir, "log"))
	if bytes.Contains(text, []byte("backend violated IMAP")) {
		err = errors.Join(err, newViolation("the gateway blames a backend that has kept its promises"))
	}
	return string(text[max(0, len(text)-8<<10):]), errors.Join(err, readErr)
}
