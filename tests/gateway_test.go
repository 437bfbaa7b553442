package tests

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
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
	"imapgate/tlsconf"
)

// gatewayOptions are the settings a test may choose.
type gatewayOptions struct {
	ca         *testbed.CA // issuer of the gateway's certificate for localhost and 127.0.0.1
	backends   map[string]upstream.Config
	methods    []string             // of auth; default passthrough
	passwdFile string               // for the method file
	names      identity.Names       // rules for user names
	sasl       []string             // mechanisms; default: those of auth
	redis      *routing.RedisConfig // nil: static routing, onlyBackend by default
	routing    routing.Config       // bounds and snapshot; startGateway sets the rest
	drain      time.Duration        // default 0: stopping the gateway aborts sessions
	idle       time.Duration        // default 32 minutes
	write      time.Duration        // default 5 minutes
	modes      map[string]proxy.BackendSettings
	limits     limit.Config        // default none
	commands   audit.CommandFilter // commands in the audit log; default none
}

// gateway is a whole gateway in this process, with a listener of each kind.
type gateway struct {
	// Set once.
	t        testing.TB
	server   *proxy.Server
	ca       *testbed.CA
	dir      string // folder of log and audit log
	redis    redis.UniversalClient
	audit    *audit.Log
	metrics  *metrics.Metrics
	limits   *limit.Limiter
	routes   *routing.Router
	file     *os.File
	cancel   context.CancelFunc
	drained  chan struct{} // closed when the server has drained
	wg       sync.WaitGroup
	stopOnce sync.Once
}

// startGateway starts a gateway and stops it when the test ends.
func startGateway(t testing.TB, o gatewayOptions) *gateway {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	g := &gateway{t: t, ca: o.ca, dir: t.TempDir(), cancel: cancel, drained: make(chan struct{})}
	deps, run, err := g.buildDeps(o)
	if err != nil {
		t.Fatalf("open a gateway: %v", err)
	}
	if g.server, err = proxy.New(o.proxyConfig(), deps); err != nil {
		t.Fatalf("make a gateway: %v", err)
	}
	if err := g.server.Listen(); err != nil {
		t.Fatal(err)
	}
	background, stop := context.WithCancel(context.Background())
	for _, f := range run {
		g.wg.Go(func() { _ = f(background) }) // returns nil
	}
	g.wg.Go(func() { deps.Routes.SaveSnapshots(ctx) })
	g.wg.Go(func() {
		defer stop()
		defer close(g.drained)
		_ = g.server.Serve(ctx) // returns nil
	})
	t.Cleanup(g.stop)
	return g
}

// buildDeps creates the dependencies of the server. The caller must run the functions in
// run.
func (g *gateway) buildDeps(o gatewayOptions) (deps proxy.Deps, run []func(context.Context) error, err error) {
	if deps.Log, err = g.openLog(); err != nil {
		return deps, nil, err
	}
	cert, key := o.ca.Issue(g.t, "localhost", "127.0.0.1")
	deps.TLS, err = tlsconf.NewServer(tlsconf.ServerSettings{Certificates: []tlsconf.CertFiles{{Cert: cert, Key: key}}}, deps.Log)
	if err != nil {
		return deps, nil, err
	}
	if o.redis != nil {
		if g.redis, err = routing.Dial(*o.redis); err != nil {
			return deps, nil, err
		}
	}
	g.metrics = metrics.New("test")
	deps.Metrics = g.metrics
	deps.Routes, err = routing.New(testbed.WithDefaults(o.routingConfig()), g.redis, routing.Metrics{Lookup: deps.Metrics.CountRouteLookup}, deps.Log)
	if err != nil {
		return deps, nil, err
	}
	g.routes = deps.Routes
	methods := o.methods
	if methods == nil {
		methods = []string{auth.Passthrough}
	}
	deps.Auth, err = auth.New(testbed.WithDefaults(auth.Config{
		Settings: auth.Settings{Methods: methods, NameRules: o.names, Mechanisms: o.sasl, SCRAMSecret: identity.NewSecret("a secret of all gateways"), File: auth.FileSettings{Path: o.passwdFile}},
	}), auth.Sources{Redis: passwordLookup(deps.Routes)}, deps.Log)
	if err != nil {
		return deps, nil, err
	}
	deps.Backends = map[string]*upstream.Backend{}
	for name, c := range o.backends {
		c.Name = name
		c.WrapConn = func(tcp *net.TCPConn) net.Conn { return parking.NewBufferedConn(tcp) }
		deps.Backends[name] = upstream.New(testbed.WithDefaults(c), upstream.Hooks{OnConnect: deps.Metrics.Backend(name).CountConnect}, deps.Log)
	}
	o.limits.Prefix, o.limits.Names = "imapgate:", o.names
	if deps.Limits, err = limit.New(testbed.WithDefaults(o.limits, testbed.NoLimit...), g.redis, limit.Hooks{}, deps.Log); err != nil {
		return deps, nil, err
	}
	g.limits = deps.Limits
	g.audit, err = audit.Open(testbed.WithDefaults(audit.Config{Settings: audit.Settings{Path: filepath.Join(g.dir, "audit"), Commands: o.commands}}, "path", "first_per_minute"), deps.Log)
	deps.Audit = g.audit
	return deps, []func(context.Context) error{deps.Routes.Run, deps.Auth.Run, deps.Limits.Run}, err
}

// openLog logs to a file, which is shown if the test fails.
func (g *gateway) openLog() (*zap.Logger, error) {
	file, err := os.Create(filepath.Join(g.dir, "log"))
	if err != nil {
		return nil, err
	}
	g.file = file
	encoder := zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig())
	return zap.New(zapcore.NewCore(encoder, zapcore.Lock(file), zapcore.DebugLevel)), nil
}

// proxyConfig returns settings with a listener of each kind and the default time-outs.
// Handshakes is larger than any test needs, so that the proxy refuses no client because
// the machine is busy.
func (o gatewayOptions) proxyConfig() proxy.Config {
	c := proxy.Config{
		LimitSettings: proxy.LimitSettings{PreauthTimeout: time.Minute, TLSHandshakeTimeout: Timeout, TLSHandshakes: 1000, IdleTimeout: 32 * time.Minute, WriteTimeout: 5 * time.Minute, DrainTimeout: o.drain, MaxAuthAttempts: 3, MaxBadCommands: 3}, Instance: proxy.NewInstance(),
	}
	c.Modes = make(map[string]proxy.BackendSettings)
	for name := range o.backends {
		c.Modes[name] = testbed.WithDefaults(o.modes[name], "pool_idle_timeout", "max_per_user", "silence_timeout", "read_after_write")
	}
	if o.idle != 0 {
		c.IdleTimeout = o.idle
	}
	if o.write != 0 {
		c.WriteTimeout = o.write
	}
	for _, kind := range listeners {
		c.Listeners = append(c.Listeners, proxy.ListenerSettings{Name: string(kind), Address: "127.0.0.1:0", TLS: kind})
	}
	return c
}

// listeners are all kinds of listeners, which are also their names in these tests.
var listeners = []proxy.TLSMode{proxy.ImplicitTLS, proxy.StartTLS, proxy.NoTLS}

func (o gatewayOptions) routingConfig() routing.Config {
	c := o.routing
	c.Names = o.names
	c.Source, c.Backends = routing.SourceStatic, slices.Sorted(maps.Keys(o.backends))
	if _, ok := o.backends[onlyBackend]; ok {
		c.Static.Default = onlyBackend
	}
	if o.redis != nil {
		c.Source = routing.SourceRedis
	}
	return c
}

// onlyBackend is the name of the default backend of a gateway without Redis.
const onlyBackend = "only"

// passwordLookup returns a lookup of passwords in route records.
func passwordLookup(routes *routing.Router) auth.PasswordLookup {
	return func(ctx context.Context, u identity.User) (identity.Secret, error) {
		hash, err := routes.Password(ctx, u)
		if errors.Is(err, routing.ErrNoUser) {
			return hash, fmt.Errorf("%w: %w", auth.ErrUnknown, err)
		}
		return hash, err
	}
}

// endpoint returns the endpoint of a listener.
func (g *gateway) endpoint(kind proxy.TLSMode) endpoint {
	e := endpoint{address: g.server.Addrs()[string(kind)].String(), caFile: g.ca.File, starttls: kind == proxy.StartTLS}
	if kind != proxy.NoTLS {
		e.tls = g.ca.ClientTLS("localhost")
	}
	return e
}

// terminate starts a drain, as SIGTERM does. drained is closed when it is over.
func (g *gateway) terminate() { g.cancel() }

// stop stops the gateway and waits for its goroutines. It may be called again.
func (g *gateway) stop() {
	g.stopOnce.Do(func() {
		g.cancel()
		g.server.Close()
		g.wg.Wait()
		if n := g.limits.CountersInUse(); n != 0 {
			g.t.Errorf("%d slots are still taken after the last session", n)
		}
		errs := []error{g.audit.Close()}
		if g.redis != nil {
			errs = append(errs, g.redis.Close())
		}
		if err := errors.Join(errs...); err != nil {
			g.t.Errorf("close the gateway: %v", err)
		}
		if g.t.Failed() {
			g.t.Logf("the gateway's log ends so:\n%s", logTail(g.readFile("log")))
		}
		_ = g.file.Close() // already read
	})
}

// readFile returns the text so far of one of the gateway's files.
func (g *gateway) readFile(name string) string {
	text, err := os.ReadFile(filepath.Join(g.dir, name))
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// logTail returns the last 8 KB of a text.
func logTail(s string) string { return s[max(0, len(s)-8<<10):] }

// upstreamConfig returns the settings of a backend with a TLS mode.
func upstreamConfig(backend mailServer, mode upstream.TLSMode) upstream.Config {
	endpoints := backend.Endpoints()
	c := upstream.Config{Settings: upstream.Settings{Address: endpoints.Plain, TLS: mode}}
	if mode == upstream.ImplicitTLS {
		c.Address = endpoints.TLS
	}
	if mode != upstream.NoTLS {
		c.TLSConfig = endpoints.CA.ClientTLSFunc(testbed.DovecotName)
	}
	return c
}

// directEndpoint connects to the backend itself, over implicit TLS.
func directEndpoint(backend mailServer) endpointFunc {
	endpoints := backend.Endpoints()
	return func(testing.TB, string) endpoint {
		return endpoint{address: endpoints.TLS, tls: endpoints.CA.ClientTLS(testbed.DovecotName), caFile: endpoints.CA.File}
	}
}

// gatewayEndpoint starts a gateway in front of the backend, with TLS on both sides.
func gatewayEndpoint(t testing.TB, backend mailServer) endpointFunc {
	g := startGateway(t, gatewayOptions{
		ca: backend.Endpoints().CA, backends: map[string]upstream.Config{onlyBackend: upstreamConfig(backend, upstream.ImplicitTLS)},
	})
	return func(testing.TB, string) endpoint { return g.endpoint(proxy.ImplicitTLS) }
}

// plainGatewayEndpoint starts a gateway without TLS on either side, so that the kernel
// copies the bytes.
func plainGatewayEndpoint(t testing.TB, backend mailServer) endpointFunc {
	g := startGateway(t, gatewayOptions{
		ca: backend.Endpoints().CA, backends: map[string]upstream.Config{onlyBackend: upstreamConfig(backend, upstream.NoTLS)},
	})
	return func(testing.TB, string) endpoint { return g.endpoint(proxy.NoTLS) }
}

// muxGatewayEndpoint starts a gateway in a mux mode, with TLS on both sides.
func muxGatewayEndpoint(t testing.TB, backend mailServer, mode event.Mode) endpointFunc {
	settings := muxSettings()
	settings.UIDPrefetch = mux.PrefetchAuto // fetching UIDs and mod-sequences changes the backend's responses
	g := startGateway(t, gatewayOptions{
		ca: backend.Endpoints().CA, backends: map[string]upstream.Config{onlyBackend: upstreamConfig(backend, upstream.ImplicitTLS)},
		modes: map[string]proxy.BackendSettings{onlyBackend: {Mode: mode, Mux: settings}},
	})
	return func(testing.TB, string) endpoint { return g.endpoint(proxy.ImplicitTLS) }
}

// startMuxGateway starts a gateway with one mode for all backends.
func startMuxGateway(t testing.TB, mode event.Mode, o gatewayOptions) *gateway {
	t.Helper()
	o.modes = map[string]proxy.BackendSettings{}
	for name := range o.backends {
		o.modes[name] = proxy.BackendSettings{Mode: mode, Mux: muxSettings()}
	}
	return startGateway(t, o)
}

// muxSettings returns the default settings, but with eager UID prefetch.
func muxSettings() mux.Settings {
	return mux.Settings{Settings: pool.Settings{PoolIdleTimeout: time.Minute, MaxPerUser: 64, CredentialCache: true}, ReadAfterWrite: true, UIDPrefetch: mux.PrefetchEager}
}
