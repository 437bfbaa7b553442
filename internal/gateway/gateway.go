// Package gateway builds and runs a gateway from one configuration. It is the only
// package that knows all others: it passes each its settings, and connects those that do
// not import each other.
//
// It is the same for the program, the demo and the tests. It also checks a configuration,
// and opens single parts for commands that need no running gateway.
package gateway

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"imapgate/auth"
	"imapgate/internal/admin"
	"imapgate/internal/audit"
	"imapgate/internal/config"
	"imapgate/internal/descriptors"
	"imapgate/internal/event"
	"imapgate/internal/fleet"
	"imapgate/internal/limit"
	"imapgate/internal/listen"
	"imapgate/internal/metrics"
	"imapgate/proxy"
	"imapgate/proxy/relay"
	"imapgate/proxy/upstream"
	"imapgate/routing"
)

var errStarting = errors.New("starting or draining")

// Options are what a gateway gets from its process.
type Options struct {
	Log     *zap.Logger
	Version string // of the program, for the metrics and the audit log
}

// Gateway has all parts of one gateway, built from one configuration.
type Gateway struct {
	// Set once, by Open.
	cfg         *config.Config
	version     string
	log         *zap.Logger
	audit       *audit.Log
	metrics     *metrics.Metrics
	files       *watchedFiles
	redis       redis.UniversalClient // nil without Redis
	routes      *routing.Router
	auth        *auth.Authenticator
	authSources authSources
	backends    map[string]*upstream.Backend
	limits      *limit.Limiter
	fleet       *fleet.Fleet
	descriptors *descriptors.Counter
	proxy       *proxy.Server
	admin       *admin.Server // nil if disabled

	instance    string // random; the id of this process
	hostName    string
	startedAt   time.Time
	drain       chan struct{} // closed by BeginDrain
	stopping    chan struct{} // closed when Run ends
	evacuations sync.WaitGroup
	drainOnce   sync.Once

	configMu sync.Mutex
	config   configState // Guarded by configMu.
	draining drainState  // Guarded by configMu.

	hasRun      atomic.Bool                     // Run was called
	drainBegins atomic.Pointer[<-chan struct{}] // set by Run: closed when the drain begins
	isAccepting atomic.Bool                     // true from Run until the drain begins
}

// Open creates a gateway that listens; Run accepts the clients. The configuration must
// not change afterwards. If Open fails, it closes everything that it has opened, and the
// error has the positions of its keys in the configuration.
func Open(cfg *config.Config, o Options) (*Gateway, error) {
	g := &Gateway{
		cfg: cfg, version: o.Version, log: o.Log, metrics: metrics.New(o.Version), descriptors: descriptors.New(descriptors.Limit()),
		instance: proxy.NewInstance(), startedAt: time.Now(), drain: make(chan struct{}), stopping: make(chan struct{}),
		config: configState{loadedAt: time.Now()},
	}
	if name, err := os.Hostname(); err == nil {
		g.hostName = name
	}
	if err := g.open(); err != nil {
		g.Close()
		return nil, cfg.Locate(err)
	}
	g.logAddresses()
	return g, nil
}

// open creates all parts and makes them listen. What reads files comes first, then the
// audit log, which creates one; nothing connects yet.
func (g *Gateway) open() error {
	var err error
	if g.files, err = openFiles(g.cfg, g.log); err != nil {
		return err
	}
	g.metrics.ObserveCertificates(g.reportExpiry)
	if err := errors.Join(g.openRoutes(), g.openAuth()); err != nil {
		return err
	}
	g.openFleet()
	g.openBackends(g.instance)
	if err := errors.Join(g.openAudit(), g.openLimits()); err != nil {
		return err
	}
	g.proxy, err = proxy.New(g.proxyConfig(g.instance), proxy.Deps{
		TLS: g.files.server, Auth: g.auth, Routes: g.routes, Backends: g.backends, Limits: g.limits,
		Sockets: g.descriptors, Audit: g.audit, Metrics: g.metrics, Log: g.log,
	})
	if err != nil {
		return err
	}
	g.openAdmin()
	return g.listen()
}

// Close closes what Open opened. If Run was called, it must have returned, unless the
// process exits at once.
func (g *Gateway) Close() {
	var errs []error
	if !g.hasRun.Load() {
		if g.admin != nil {
			errs = append(errs, g.admin.Close())
		}
		if g.proxy != nil {
			g.proxy.Close()
		}
	}
	if g.audit != nil {
		errs = append(errs, g.audit.Close()) // before Redis, which a sink may use
	}
	if g.redis != nil {
		errs = append(errs, g.redis.Close())
	}
	g.authSources.close()
	if err := errors.Join(errs...); err != nil {
		g.log.Warn("shutdown: close failed", zap.Error(err))
	}
}

// Addrs returns the addresses on which clients can connect, by the listeners' names.
func (g *Gateway) Addrs() map[string]net.Addr { return g.proxy.Addrs() }

// Registry returns the live sessions.
func (g *Gateway) Registry() *relay.Registry { return g.proxy.Registry() }

// AdminAddr returns the address for operators, which must be enabled.
func (g *Gateway) AdminAddr() net.Addr { return g.admin.Addr() }

// name returns the gateway's name.
func (g *Gateway) name() string { return g.fleet.Name }

// Draining is closed when an operator asks the gateway to drain.
func (g *Gateway) Draining() <-chan struct{} { return g.drain }

// logAddresses logs the addresses that the gateway listens on.
func (g *Gateway) logAddresses() {
	for name, addr := range g.Addrs() {
		g.log.Info("listening", zap.String("listener", name), zap.Stringer("address", addr))
		if others, err := listen.IsShared(addr); err == nil && others {
			g.log.Warn("another process listens there too, and gets some of the clients until it ends",
				zap.String("listener", name), zap.Stringer("address", addr))
		}
	}
	if g.admin != nil && g.admin.Addr() != nil {
		g.log.Info("listening", zap.String("listener", "admin"), zap.Stringer("address", g.AdminAddr()))
	}
	if g.admin != nil && g.admin.SocketPath() != "" {
		g.log.Info("listening", zap.String("listener", "admin"), zap.String("socket", g.admin.SocketPath()))
	}
}

// openRoutes creates the Redis client, which connects on first use, and the router
// on top of it.
func (g *Gateway) openRoutes() error {
	var err error
	if g.redis, err = dialRedis(g.cfg.Redis, g.files.clientTLS(redisKey), 0); err != nil {
		return err
	}
	g.routes, err = routing.New(routingConfig(g.cfg), g.redis, routing.Metrics{
		Lookup: g.metrics.CountRouteLookup, Invalidation: setter(g.metrics.RouteInvalidationConnected), Store: g.recordStoreState,
	}, g.log)
	return config.WithKey("routing", err)
}

// setter returns a hook that sets a gauge to 1 or 0.
func setter(gauge prometheus.Gauge) func(bool) {
	return func(isOn bool) {
		gauge.Set(0)
		if isOn {
			gauge.Set(1)
		}
	}
}

// recordStoreState records whether Redis has lost route records, in the metrics and
// the audit log.
func (g *Gateway) recordStoreState(s routing.StoreStatus) {
	record := audit.RouteStore{Node: s.Node, Present: s.Present, Missing: s.Missing, Operator: s.AcceptedBy}
	if s.State == routing.StoreEmptied {
		g.metrics.RoutesEmptied.Set(1)
		g.logLostRecord(event.RoutesEmptied, g.audit.RoutesEmptied(&record))
		return
	}
	g.metrics.RoutesEmptied.Set(0)
	g.logLostRecord(event.RoutesRestored, g.audit.RoutesRestored(&record))
}

// lookupPassword looks up a hash for auth's method redis. The two packages do not
// import each other, so it translates their errors. Otherwise a user without a
// password in Redis would not reach the next method, and SCRAM would reveal a
// blocked user before the proof.
func (g *Gateway) lookupPassword(ctx context.Context, u user) (secret, error) {
	hash, err := g.routes.Password(ctx, u)
	if errors.Is(err, routing.ErrNoUser) {
		return secret{}, fmt.Errorf("%w: %w", auth.ErrUnknown, err)
	}
	if errors.Is(err, routing.ErrBlocked) {
		return secret{}, fmt.Errorf("%w: %w", auth.ErrDenied, err)
	}
	return hash, err
}

func (g *Gateway) openBackends(instance string) {
	g.backends = make(map[string]*upstream.Backend, len(g.cfg.Backends))
	for name, b := range g.cfg.Backends {
		hooks := upstream.Hooks{
			OnConnect: g.metrics.Backend(name).CountConnect, OnWait: g.recordLoginWait(name),
			OnState: g.recordAddressState(name),
		}
		g.backends[name] = upstream.New(g.upstreamConfig(b, instance), hooks, g.log)
	}
	g.metrics.ObserveAddresses(func(report func(metrics.AddressStatus)) {
		for name, b := range g.backends {
			for _, a := range b.Addresses() {
				report(metrics.AddressStatus{Backend: name, Address: a.Address, State: a.State, Connections: a.Connections, CheckLatency: a.CheckLatency})
			}
		}
	})
}

// recordLoginWait returns the hook that records a login delayed or refused by a
// limit of the backend. The audit log is open before the first login.
func (g *Gateway) recordLoginWait(backend string) func(upstream.Wait) {
	return func(w upstream.Wait) {
		result := event.ResultDelayed
		if w.TimedOut {
			result = event.ResultRefused
			g.metrics.Limits.CountRefusal(w.Limit)
		} else {
			g.metrics.Limits.CountThrottle(w.Limit)
		}
		_ = g.audit.LimitHit(&audit.Client{}, &audit.LimitHit{Limit: w.Limit, Subject: backend, Result: result})
	}
}

// listen opens every address, so that a port in use is an error at start.
func (g *Gateway) listen() error {
	if err := g.proxy.Listen(); err != nil {
		return withListenerKey(g.cfg, err)
	}
	if g.admin != nil {
		err := g.admin.Listen()
		if errors.As(err, new(*admin.SocketError)) {
			return config.WithKey("admin.socket", err)
		}
		return config.WithKey("admin.address", err)
	}
	return nil
}

func withListenerKey(cfg *config.Config, err error) error {
	var listenErr *proxy.ListenError
	key := "listeners"
	if errors.As(err, &listenErr) {
		if i := slices.IndexFunc(cfg.Listeners, func(l config.Listener) bool { return l.Name == listenErr.Listener }); i >= 0 {
			key = config.MemberKey(config.ItemKey(key, i), "address")
		}
	}
	return config.WithKey(key, err)
}

// Run serves until ctx is done and the sessions have drained. It is called once. The
// admin address and the watchers run until the end: operators need them during a drain,
// and sessions still use certificates and routes.
func (g *Gateway) Run(ctx context.Context) error {
	g.hasRun.Store(true)
	watchCtx, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	var watchers errgroup.Group
	watch := func(f func(context.Context) error) { watchers.Go(func() error { return f(watchCtx) }) }
	watchers.Go(func() error {
		<-ctx.Done()
		g.beginDrain(watchCtx)
		return nil
	})
	watch(g.routes.Run)
	watchers.Go(func() error { g.routes.SaveSnapshots(ctx); return nil }) // until the drain; then the next process writes them
	watch(g.auth.Run)
	watch(g.limits.Run)
	watch(g.fleet.Run)
	for _, b := range g.backends {
		watch(b.Run)
	}
	watch(g.files.Run)
	if g.admin != nil {
		watch(g.admin.Serve)
	}

	done := ctx.Done()
	g.drainBegins.Store(&done)
	g.isAccepting.Store(true)
	g.fleet.Announce()
	g.metrics.CountReload(nil) // the configuration was just loaded
	g.logLostRecord(event.Started, g.audit.GatewayStarted(g.version))
	serveErr := g.proxy.Serve(ctx)
	g.logLostRecord(event.Stopped, g.audit.GatewayStopped(event.Shutdown))
	stop()
	close(g.stopping)
	err := errors.Join(serveErr, watchers.Wait())
	g.evacuations.Wait()
	if n := g.limits.CountersInUse(); n > 0 {
		g.log.Error("slots of the limits are still taken after the last session", zap.Int("slots", n))
	}
	return err
}

// beginDrain lets another gateway take over the admin address.
func (g *Gateway) beginDrain(ctx context.Context) {
	g.isAccepting.Store(false)
	g.noteDrain()
	g.fleet.Announce()
	if g.admin != nil {
		g.admin.ReleaseAddress(ctx)
	}
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// checkReady returns nil while new clients are accepted.
func (g *Gateway) checkReady() error {
	if done := g.drainBegins.Load(); !g.isAccepting.Load() || done == nil || isClosed(*done) {
		return errStarting
	}
	return g.audit.Ready()
}
