package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"

	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"imapgate/auth"
	"imapgate/internal/admin"
	"imapgate/internal/audit"
	"imapgate/internal/config"
	"imapgate/internal/descriptors"
	"imapgate/internal/event"
	"imapgate/internal/limit"
	"imapgate/internal/metrics"
	"imapgate/proxy"
	"imapgate/proxy/upstream"
	"imapgate/routing"
)

var (
	errStarting = errors.New("starting or draining")
)

// gateway has all parts of one process, built from one configuration.
type gateway struct {
	// Set once, by open.
	cfg         *config.Config
	file        string // path of cfg; set by startGateway
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
	descriptors *descriptors.Counter
	proxy       *proxy.Server
	admin       *admin.Server // nil if disabled

	isAccepting atomic.Bool // true from listening until the drain begins
}

// openGateway creates all parts. It reads files and opens the audit log, but does
// not listen or connect yet.
func openGateway(cfg *config.Config, log *zap.Logger) (*gateway, error) {
	g := &gateway{cfg: cfg, log: log, metrics: metrics.New(readBuildInfo().Version), descriptors: descriptors.New(descriptors.Limit())}
	instance := proxy.NewInstance()
	var err error
	if g.files, err = openFiles(cfg, log); err != nil {
		return nil, err
	}
	g.metrics.ObserveCertificates(g.reportExpiry)
	if err := errors.Join(g.openRoutes(), g.openAuth()); err != nil {
		g.close()
		return nil, err
	}
	g.openBackends(instance)
	if err := errors.Join(g.openAudit(), g.openLimits()); err != nil {
		g.close()
		return nil, err
	}
	g.proxy, err = proxy.New(g.proxyConfig(instance), proxy.Deps{
		TLS: g.files.server, Auth: g.auth, Routes: g.routes, Backends: g.backends, Limits: g.limits,
		Sockets: g.descriptors, Audit: g.audit, Metrics: g.metrics, Log: log,
	})
	if err != nil {
		g.close()
		return nil, err
	}
	if cfg.Admin.Address != "" {
		g.admin = admin.New(cfg.Admin, admin.Deps{
			Metrics: g.metrics.Handler(), Ready: g.checkReady, ExplainRoute: g.explainRoute, ListSessions: g.listSessions, ListBackends: g.listBackends,
			Limits: g.newAdminLimits(),
		}, log)
	}
	return g, nil
}

// close closes what openGateway opened. It may be called on a partly opened gateway.
func (g *gateway) close() {
	var errs []error
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

// openRoutes creates the Redis client, which connects on first use, and the router
// on top of it.
func (g *gateway) openRoutes() error {
	var err error
	if g.redis, err = dialRedis(g.cfg.Redis, g.files.clientTLS(redisKey)); err != nil {
		return err
	}
	g.routes, err = routing.New(routingConfig(g.cfg), g.redis, routing.Metrics{
		Lookup: g.metrics.CountRouteLookup, Invalidation: g.setInvalidationState, Store: g.recordStoreState,
	}, g.log)
	return config.WithKey("routing", err)
}

// setInvalidationState sets the metric for route changes that Redis announces.
func (g *gateway) setInvalidationState(connected bool) {
	g.metrics.RouteInvalidationConnected.Set(0)
	if connected {
		g.metrics.RouteInvalidationConnected.Set(1)
	}
}

// recordStoreState records whether Redis has lost route records, in the metrics and
// the audit log.
func (g *gateway) recordStoreState(s routing.StoreStatus) {
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
func (g *gateway) lookupPassword(ctx context.Context, u user) (secret, error) {
	hash, err := g.routes.Password(ctx, u)
	if errors.Is(err, routing.ErrNoUser) {
		return secret{}, fmt.Errorf("%w: %w", auth.ErrUnknown, err)
	}
	if errors.Is(err, routing.ErrBlocked) {
		return secret{}, fmt.Errorf("%w: %w", auth.ErrDenied, err)
	}
	return hash, err
}

func (g *gateway) openBackends(instance string) {
	g.backends = make(map[string]*upstream.Backend, len(g.cfg.Backends))
	for name, b := range g.cfg.Backends {
		hooks := upstream.Hooks{OnConnect: g.metrics.Backend(name).CountConnect, OnWait: g.recordLoginWait(name)}
		g.backends[name] = upstream.New(g.upstreamConfig(b, instance), hooks, g.log)
	}
}

// recordLoginWait returns the hook that records a login delayed or refused by a
// limit of the backend. The audit log is open before the first login.
func (g *gateway) recordLoginWait(backend string) func(upstream.Wait) {
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
func (g *gateway) listen() error {
	if err := g.proxy.Listen(); err != nil {
		return withListenerKey(g.cfg, err)
	}
	if g.admin != nil {
		return config.WithKey("admin.address", g.admin.Listen())
	}
	return nil
}

// withListenerKey adds the key of its listener to an error of the proxy.
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

// run serves until ctx is done and the sessions have drained. The admin address and
// the watchers run until the end: operators need them during a drain, and sessions
// still use certificates and routes.
func (g *gateway) run(ctx context.Context) error {
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
	watch(g.files.Run)
	if g.admin != nil {
		watch(g.admin.Serve)
	}

	g.isAccepting.Store(true)
	g.metrics.CountReload(nil) // the configuration was just loaded
	g.logLostRecord(event.Started, g.audit.GatewayStarted(readBuildInfo().Version))
	serveErr := g.proxy.Serve(ctx)
	g.logLostRecord(event.Stopped, g.audit.GatewayStopped(event.Shutdown))
	stop()
	return errors.Join(serveErr, watchers.Wait())
}

// beginDrain lets another gateway take over the admin address.
func (g *gateway) beginDrain(ctx context.Context) {
	g.isAccepting.Store(false)
	if g.admin != nil {
		g.admin.ReleaseAddress(ctx)
	}
}

// checkReady returns nil while new clients are accepted.
func (g *gateway) checkReady() error {
	if !g.isAccepting.Load() {
		return errStarting
	}
	return g.audit.Ready()
}

// explainRoute returns the response of the admin address about one user's route.
func (g *gateway) explainRoute(ctx context.Context, name string) (any, error) {
	u, err := g.auth.Canonicalize(name)
	if err != nil {
		return nil, err
	}
	return g.routes.Explain(ctx, u), nil
}

// listSessions returns the response of the admin address about one user's live
// sessions.
func (g *gateway) listSessions(_ context.Context, name string) (any, error) {
	u, err := g.auth.Canonicalize(name)
	if err != nil {
		return nil, err
	}
	return sessionList{User: u.String(), Sessions: g.proxy.SessionsOf(u)}, nil
}
