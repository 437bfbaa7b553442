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
	"imapgate/internal/quiet"
	"imapgate/internal/testbed"
	"imapgate/proxy"
	"imapgate/proxy/mux"
	"imapgate/proxy/upstream"
	"imapgate/routing"
	"imapgate/tlsconf"
)

// options is what a test decides about its gateway.
type options struct {
	ca       *testbed.CA // issues the gateway's certificate, for localhost and 127.0.0.1
	backends map[string]upstream.Config
	methods  []string             // of auth; default passthrough
	people   string               // the passwd-file, when methods has file
	names    identity.Names       // how user names are read
	sasl     []string             // mechanisms; default those that auth names
	redis    *routing.RedisConfig // nil: the backend of everybody not in routing is only
	routing  routing.Config       // its bounds and its snapshot; the rest is filled in
	drain    time.Duration        // default none: sessions are cut when the gateway stops
	idle     time.Duration        // default 32 minutes
	write    time.Duration        // default 5 minutes
	modes    map[string]proxy.Mode
	limits   limit.Config   // default none
	commands audit.Commands // on record; default none
}

// running is a whole gateway in this process, with a listener of each kind.
type running struct {
	// Set once.
	t       testing.TB
	server  *proxy.Server
	ca      *testbed.CA
	dir     string // has log and audit
	redis   redis.UniversalClient
	audit   *audit.Log
	metrics *metrics.Metrics
	limits  *limit.Gate
	routes  *routing.Router
	file    *os.File
	cancel  context.CancelFunc
	served  chan struct{} // closed when the server has drained
	wg      sync.WaitGroup
	once    sync.Once
}

// startGateway starts a gateway and stops it with the test.
func startGateway(t testing.TB, o options) *running {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	g := &running{t: t, ca: o.ca, dir: t.TempDir(), cancel: cancel, served: make(chan struct{})}
	rooms, run, err := g.open(o)
	if err != nil {
		t.Fatalf("open a gateway: %v", err)
	}
	if g.server, err = proxy.New(o.proxy(), rooms); err != nil {
		t.Fatalf("make a gateway: %v", err)
	}
	if err := g.server.Listen(); err != nil {
		t.Fatal(err)
	}
	watching, stop := context.WithCancel(context.Background())
	for _, f := range run {
		g.wg.Go(func() { _ = f(watching) }) // these return nil
	}
	g.wg.Go(func() { rooms.Routes.KeepSnapshot(ctx) })
	g.wg.Go(func() {
		defer stop()
		defer close(g.served)
		_ = g.server.Serve(ctx) // returns nil
	})
	t.Cleanup(g.stop)
	return g
}

// open makes the rooms and gives what has to run beside them.
func (g *running) open(o options) (rooms proxy.Rooms, run []func(context.Context) error, err error) {
	if rooms.Log, err = g.openLog(); err != nil {
		return rooms, nil, err
	}
	cert, key := o.ca.Issue(g.t, "localhost", "127.0.0.1")
	rooms.TLS, err = tlsconf.NewServer(tlsconf.ServerConfig{Certificates: []tlsconf.KeyPair{{Cert: cert, Key: key}}}, rooms.Log)
	if err != nil {
		return rooms, nil, err
	}
	if o.redis != nil {
		if g.redis, err = routing.Dial(*o.redis); err != nil {
			return rooms, nil, err
		}
	}
	g.metrics = metrics.New("test")
	rooms.Metrics = g.metrics
	rooms.Routes, err = routing.New(o.routes(), g.redis, routing.Metrics{Lookup: rooms.Metrics.RouteLookup}, rooms.Log)
	if err != nil {
		return rooms, nil, err
	}
	g.routes = rooms.Routes
	methods := o.methods
	if methods == nil {
		methods = []string{auth.Passthrough}
	}
	rooms.Auth, err = auth.New(auth.Config{
		Methods: methods, File: o.people, Names: o.names,
		Mechanisms: o.sasl, SCRAMSecret: identity.NewSecret("a secret of all gateways"),
	}, auth.Sources{Redis: passwordsOf(rooms.Routes)}, rooms.Log)
	if err != nil {
		return rooms, nil, err
	}
	rooms.Backends = map[string]*upstream.Backend{}
	for name, c := range o.backends {
		c.Name = name
		c.Socket = func(tcp *net.TCPConn) net.Conn { return quiet.NewSocket(tcp) }
		rooms.Backends[name] = upstream.New(c, upstream.Hooks{OnConnect: rooms.Metrics.Backend(name).ConnectDone}, rooms.Log)
	}
	o.limits.Prefix, o.limits.Names = "imapgate:", o.names
	if rooms.Limits, err = limit.New(o.limits, g.redis, limit.Hooks{}, rooms.Log); err != nil {
		return rooms, nil, err
	}
	g.limits = rooms.Limits
	g.audit, err = audit.Open(audit.Config{Path: filepath.Join(g.dir, "audit"), Commands: o.commands}, rooms.Log)
	rooms.Audit = g.audit
	return rooms, []func(context.Context) error{rooms.Routes.Run, rooms.Auth.Run, rooms.Limits.Run}, err
}

// openLog writes the log to a file, which is shown when the test fails.
func (g *running) openLog() (*zap.Logger, error) {
	file, err := os.Create(filepath.Join(g.dir, "log"))
	if err != nil {
		return nil, err
	}
	g.file = file
	encoder := zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig())
	return zap.New(zapcore.NewCore(encoder, zapcore.Lock(file), zapcore.DebugLevel)), nil
}

// proxy is the front door: a listener of each kind, and the default time-outs.
// proxy turns no client away because the machine is busy: Handshakes is beyond what a
// test has at a time.
func (o options) proxy() proxy.Config {
	c := proxy.Config{
		Preauth: time.Minute, Handshake: Patience, Handshakes: 1000, Idle: 32 * time.Minute, Write: 5 * time.Minute,
		Drain: o.drain, AuthAttempts: 3, BadCommands: 3, Instance: proxy.NewInstance(),
	}
	c.Modes = o.modes
	if o.idle != 0 {
		c.Idle = o.idle
	}
	if o.write != 0 {
		c.Write = o.write
	}
	for _, kind := range listeners {
		c.Listeners = append(c.Listeners, proxy.Listener{Name: string(kind), Address: "127.0.0.1:0", TLS: kind})
	}
	return c
}

// listeners are all kinds, and the names of the listeners in these tests.
var listeners = []proxy.TLSMode{proxy.ImplicitTLS, proxy.StartTLS, proxy.NoTLS}

func (o options) routes() routing.Config {
	c := o.routing
	c.Names = o.names
	c.Source, c.Backends = routing.SourceStatic, slices.Sorted(maps.Keys(o.backends))
	if _, ok := o.backends[only]; ok {
		c.Static.Default = only
	}
	if o.redis != nil {
		c.Source = routing.SourceRedis
	}
	return c
}

// only is the one backend of a gateway without Redis.
const only = "only"

// passwordsOf finds passwords in the routes' records.
func passwordsOf(routes *routing.Router) auth.PasswordLookup {
	return func(ctx context.Context, u identity.User) (identity.Secret, error) {
		hash, err := routes.Password(ctx, u)
		if errors.Is(err, routing.ErrNoUser) {
			return hash, fmt.Errorf("%w: %w", auth.ErrUnknown, err)
		}
		return hash, err
	}
}

// at is how clients reach the listener of a kind.
func (g *running) at(kind proxy.TLSMode) endpoint {
	e := endpoint{address: g.server.Addrs()[string(kind)].String(), caFile: g.ca.File, starttls: kind == proxy.StartTLS}
	if kind != proxy.NoTLS {
		e.tls = g.ca.ClientTLS("localhost")
	}
	return e
}

// terminate is what SIGTERM does; served is closed when the drain is over.
func (g *running) terminate() { g.cancel() }

// stop ends the gateway and waits for all of it. It may be called again.
func (g *running) stop() {
	g.once.Do(func() {
		g.cancel()
		g.server.Close()
		g.wg.Wait()
		if n := g.limits.Taken(); n != 0 {
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
			g.t.Logf("the gateway's log ends so:\n%s", tail(g.read("log")))
		}
		_ = g.file.Close() // what it says was read
	})
}

// read is one of the gateway's files so far.
func (g *running) read(name string) string {
	text, err := os.ReadFile(filepath.Join(g.dir, name))
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// tail is the end of a text that may be long.
func tail(s string) string { return s[max(0, len(s)-8<<10):] }

// to is the way to a backend in one of the ways of TLS.
func to(backend mailServer, mode upstream.TLSMode) upstream.Config {
	at := backend.Where()
	c := upstream.Config{Address: at.Plain, TLSMode: mode}
	if mode == upstream.ImplicitTLS {
		c.Address = at.TLS
	}
	if mode != upstream.NoTLS {
		c.TLS = at.CA.Client(testbed.DovecotName)
	}
	return c
}

// directly leads to the backend itself, over implicit TLS.
func directly(backend mailServer) entrance {
	at := backend.Where()
	return func(testing.TB, string) endpoint {
		return endpoint{address: at.TLS, tls: at.CA.ClientTLS(testbed.DovecotName), caFile: at.CA.File}
	}
}

// gateway leads to a gateway in front of the backend, with TLS on both sides.
func gateway(t testing.TB, backend mailServer) entrance {
	g := startGateway(t, options{
		ca: backend.Where().CA, backends: map[string]upstream.Config{only: to(backend, upstream.ImplicitTLS)},
	})
	return func(testing.TB, string) endpoint { return g.at(proxy.ImplicitTLS) }
}

// plainGateway leads to a gateway with TLS on neither side, where the kernel
// moves the bytes.
func plainGateway(t testing.TB, backend mailServer) entrance {
	g := startGateway(t, options{
		ca: backend.Where().CA, backends: map[string]upstream.Config{only: to(backend, upstream.NoTLS)},
	})
	return func(testing.TB, string) endpoint { return g.at(proxy.NoTLS) }
}

// muxGateway leads to a gateway with TLS on both sides, where sessions are framed.
func muxGateway(t testing.TB, backend mailServer, mode mux.Mode) entrance {
	settings := muxSettings()
	settings.Learn = mux.Auto // what is asked for UIDs and mod-sequences shows in what the backend says
	g := startGateway(t, options{
		ca: backend.Where().CA, backends: map[string]upstream.Config{only: to(backend, upstream.ImplicitTLS)},
		modes: map[string]proxy.Mode{only: {Name: string(mode), Mux: settings}},
	})
	return func(testing.TB, string) endpoint { return g.at(proxy.ImplicitTLS) }
}

// startFramed starts a gateway where all backends have one mode.
func startFramed(t testing.TB, mode mux.Mode, o options) *running {
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
	return mux.Settings{ReuseTTL: time.Minute, MaxPerUser: 64, Consistent: true, CredCache: true, Learn: mux.Eager}
}
