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
	"imapgate/internal/identity"
	"imapgate/internal/limit"
	"imapgate/internal/metrics"
	"imapgate/internal/parking"
	"imapgate/internal/testbed"
	"imapgate/proxy"
	"imapgate/proxy/mux"
	"imapgate/proxy/upstream"
	"imapgate/routing"
	"imapgate/tlsconf"
)

// gatewayOptions is what a test decides about its gateway.
type gatewayOptions struct {
	ca         *testbed.CA // issues the gateway's certificate, for localhost and 127.0.0.1
	backends   map[string]upstream.Config
	methods    []string             // of auth; default passthrough
	passwdFile string               // the passwd-file, when methods has file
	names      identity.Names       // how user names are read
	sasl       []string             // mechanisms; default those that auth names
	redis      *routing.RedisConfig // nil: the backend of everybody not in routing is only
	routing    routing.Config       // its bounds and its snapshot; the rest is filled in
	drain      time.Duration        // default none: sessions are cut when the gateway stops
	idle       time.Duration        // default 32 minutes
	write      time.Duration        // default 5 minutes
	modes      map[string]proxy.Mode
	limits     limit.Config        // default none
	commands   audit.CommandFilter // on record; default none
}

// gateway is a whole gateway in this process, with a listener of each kind.
type gateway struct {
	// Set once.
	t        testing.TB
	server   *proxy.Server
	ca       *testbed.CA
	dir      string // has log and audit
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

// startGateway starts a gateway and stops it with the test.
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
		g.wg.Go(func() { _ = f(background) }) // these return nil
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

// buildDeps makes the rooms and gives what has to run beside them.
func (g *gateway) buildDeps(o gatewayOptions) (deps proxy.Deps, run []func(context.Context) error, err error) {
	if deps.Log, err = g.openLog(); err != nil {
		return deps, nil, err
	}
	cert, key := o.ca.Issue(g.t, "localhost", "127.0.0.1")
	deps.TLS, err = tlsconf.NewServer(tlsconf.ServerConfig{Certificates: []tlsconf.CertFiles{{Cert: cert, Key: key}}}, deps.Log)
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
	deps.Routes, err = routing.New(o.routingConfig(), g.redis, routing.Metrics{Lookup: deps.Metrics.CountRouteLookup}, deps.Log)
	if err != nil {
		return deps, nil, err
	}
	g.routes = deps.Routes
	methods := o.methods
	if methods == nil {
		methods = []string{auth.Passthrough}
	}
	deps.Auth, err = auth.New(auth.Config{
		Methods: methods, PasswdFile: o.passwdFile, Names: o.names,
		Mechanisms: o.sasl, SCRAMSecret: identity.NewSecret("a secret of all gateways"),
	}, auth.Sources{Redis: passwordLookup(deps.Routes)}, deps.Log)
	if err != nil {
		return deps, nil, err
	}
	deps.Backends = map[string]*upstream.Backend{}
	for name, c := range o.backends {
		c.Name = name
		c.WrapConn = func(tcp *net.TCPConn) net.Conn { return parking.NewBufferedConn(tcp) }
		deps.Backends[name] = upstream.New(c, upstream.Hooks{OnConnect: deps.Metrics.Backend(name).CountConnect}, deps.Log)
	}
	o.limits.Prefix, o.limits.Names = "imapgate:", o.names
	if deps.Limits, err = limit.New(o.limits, g.redis, limit.Hooks{}, deps.Log); err != nil {
		return deps, nil, err
	}
	g.limits = deps.Limits
	g.audit, err = audit.Open(audit.Config{Path: filepath.Join(g.dir, "audit"), Commands: o.commands}, deps.Log)
	deps.Audit = g.audit
	return deps, []func(context.Context) error{deps.Routes.Run, deps.Auth.Run, deps.Limits.Run}, err
}

// openLog writes the log to a file, which is shown when the test fails.
func (g *gateway) openLog() (*zap.Logger, error) {
	file, err := os.Create(filepath.Join(g.dir, "log"))
	if err != nil {
		return nil, err
	}
	g.file = file
	encoder := zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig())
	return zap.New(zapcore.NewCore(encoder, zapcore.Lock(file), zapcore.DebugLevel)), nil
}

// proxyConfig is the front door: a listener of each kind, and the default time-outs.
// proxy turns no client away because the machine is busy: Handshakes is beyond what a
// test has at a time.
func (o gatewayOptions) proxyConfig() proxy.Config {
	c := proxy.Config{
		PreauthTimeout: time.Minute, HandshakeTimeout: Timeout, MaxHandshakes: 1000, IdleTimeout: 32 * time.Minute, WriteTimeout: 5 * time.Minute,
		DrainTimeout: o.drain, MaxAuthAttempts: 3, MaxBadCommands: 3, Instance: proxy.NewInstance(),
	}
	c.Modes = o.modes
	if o.idle != 0 {
		c.IdleTimeout = o.idle
	}
	if o.write != 0 {
		c.WriteTimeout = o.write
	}
	for _, kind := range listeners {
		c.Listeners = append(c.Listeners, proxy.Listener{Name: string(kind), Address: "127.0.0.1:0", TLS: kind})
	}
	return c
}

// listeners are all kinds, and the names of the listeners in these tests.
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

// onlyBackend is the one backend of a gateway without Redis.
const onlyBackend = "only"

// passwordLookup finds passwords in the routes' records.
func passwordLookup(routes *routing.Router) auth.PasswordLookup {
	return func(ctx context.Context, u identity.User) (identity.Secret, error) {
		hash, err := routes.Password(ctx, u)
		if errors.Is(err, routing.ErrNoUser) {
			return hash, fmt.Errorf("%w: %w", auth.ErrUnknown, err)
		}
		return hash, err
	}
}

// endpoint is how clients reach the listener of a kind.
func (g *gateway) endpoint(kind proxy.TLSMode) endpoint {
	e := endpoint{address: g.server.Addrs()[string(kind)].String(), caFile: g.ca.File, starttls: kind == proxy.StartTLS}
	if kind != proxy.NoTLS {
		e.tls = g.ca.ClientTLS("localhost")
	}
	return e
}

// terminate is what SIGTERM does; served is closed when the drain is over.
func (g *gateway) terminate() { g.cancel() }

// stop ends the gateway and waits for all of it. It may be called again.
func (g *gateway) stop() {
	g.stopOnce.Do(func() {
		g.cancel()
		g.server.Close()
		g.wg.Wait()
		if n := g.limits.CountersInUse(); n != 0 {
			g.t.Errorf("%d places are still taken behind the last session", n)
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
		_ = g.file.Close() // what it says was read
	})
}

// readFile is one of the gateway's files so far.
func (g *gateway) readFile(name string) string {
	text, err := os.ReadFile(filepath.Join(g.dir, name))
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// logTail is the end of a text that may be long.
func logTail(s string) string { return s[max(0, len(s)-8<<10):] }

// upstreamConfig is the way to a backend in one of the ways of TLS.
func upstreamConfig(backend mailServer, mode upstream.TLSMode) upstream.Config {
	endpoints := backend.Endpoints()
	c := upstream.Config{Address: endpoints.Plain, TLSMode: mode}
	if mode == upstream.ImplicitTLS {
		c.Address = endpoints.TLS
	}
	if mode != upstream.NoTLS {
		c.TLS = endpoints.CA.ClientTLSFunc(testbed.DovecotName)
	}
	return c
}

// directEndpoint leads to the backend itself, over implicit TLS.
func directEndpoint(backend mailServer) endpointFunc {
	endpoints := backend.Endpoints()
	return func(testing.TB, string) endpoint {
		return endpoint{address: endpoints.TLS, tls: endpoints.CA.ClientTLS(testbed.DovecotName), caFile: endpoints.CA.File}
	}
}

// gatewayEndpoint leads to a gateway in front of the backend, with TLS on both sides.
func gatewayEndpoint(t testing.TB, backend mailServer) endpointFunc {
	g := startGateway(t, gatewayOptions{
		ca: backend.Endpoints().CA, backends: map[string]upstream.Config{onlyBackend: upstreamConfig(backend, upstream.ImplicitTLS)},
	})
	return func(testing.TB, string) endpoint { return g.endpoint(proxy.ImplicitTLS) }
}

// plainGatewayEndpoint leads to a gateway with TLS on neither side, where the kernel
// moves the bytes.
func plainGatewayEndpoint(t testing.TB, backend mailServer) endpointFunc {
	g := startGateway(t, gatewayOptions{
		ca: backend.Endpoints().CA, backends: map[string]upstream.Config{onlyBackend: upstreamConfig(backend, upstream.NoTLS)},
	})
	return func(testing.TB, string) endpoint { return g.endpoint(proxy.NoTLS) }
}

// muxGatewayEndpoint leads to a gateway with TLS on both sides, where sessions are framed.
func muxGatewayEndpoint(t testing.TB, backend mailServer, mode mux.Mode) endpointFunc {
	settings := muxSettings()
	settings.UIDPrefetch = mux.PrefetchAuto // what is asked for UIDs and mod-sequences shows in what the backend says
	g := startGateway(t, gatewayOptions{
		ca: backend.Endpoints().CA, backends: map[string]upstream.Config{onlyBackend: upstreamConfig(backend, upstream.ImplicitTLS)},
		modes: map[string]proxy.Mode{onlyBackend: {Name: string(mode), Mux: settings}},
	})
	return func(testing.TB, string) endpoint { return g.endpoint(proxy.ImplicitTLS) }
}

// startMuxGateway starts a gateway where all backends have one mode.
func startMuxGateway(t testing.TB, mode mux.Mode, o gatewayOptions) *gateway {
	t.Helper()
	o.modes = map[string]proxy.Mode{}
	for name := range o.backends {
		o.modes[name] = proxy.Mode{Name: string(mode), Mux: muxSettings()}
	}
	return startGateway(t, o)
}

// muxSettings are those of a configuration that says nothing, and the UIDs
// learned at once.
func muxSettings() mux.Settings {
	return mux.Settings{PoolIdleTimeout: time.Minute, MaxPerUser: 64, ReadAfterWrite: true, CredentialCache: true, UIDPrefetch: mux.PrefetchEager}
}
