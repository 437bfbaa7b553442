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
	"imapgate/internal/limit"
	"imapgate/internal/metrics"
	"imapgate/proxy"
	"imapgate/proxy/upstream"
	"imapgate/routing"
)

var (
	errStarting = errors.New("starting or draining")
)

// gateway is every room of one process, wired by one configuration.
type gateway struct {
	// Set once, by open.
	cfg         *config.Config
	file        string // that cfg is of; by serve
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
	admin       *admin.Server // nil when it is switched off

	isAccepting atomic.Bool // from listening to the beginning of the drain
}

// openGateway makes every room. Files are read and the audit log is opened; nothing
// listens and nothing is dialed yet.
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
	proxyCfg := proxyConfig(cfg, instance)
	proxyCfg.TokenRefusal, proxyCfg.TokenGrace = g.authSources.tokenRefusal(), cfg.Auth.OAuth.SessionGrace
	g.proxy, err = proxy.New(proxyCfg, proxy.Deps{
		TLS: g.files.server, Auth: g.auth, Routes: g.routes, Backends: g.backends, Limits: g.limits,
		Sockets: g.descriptors, Audit: g.audit, Metrics: g.metrics, Log: log,
	})
	if err != nil {
		g.close()
		return nil, err
	}
	if cfg.Admin.Address != "" {
		g.admin = admin.New(admin.Config{Address: cfg.Admin.Address, Token: cfg.Admin.Token}, admin.Deps{
			Metrics: g.metrics.Handler(), Ready: g.checkReady, ExplainRoute: g.explainRoute, ListSessions: g.listSessions, ListBackends: g.listBackends,
			Limits: g.newAdminLimits(),
		}, log)
	}
	return g, nil
}

// close gives back what open took. It may be called on a half-made gateway.
func (g *gateway) close() {
	var errs []error
	if g.audit != nil {
		errs = append(errs, g.audit.Close()) // before Redis, where it may have a sink
	}
	if g.redis != nil {
		errs = append(errs, g.redis.Close())
	}
	g.authSources.close()
	if err := errors.Join(errs...); err != nil {
		g.log.Warn("shutdown: close failed", zap.Error(err))
	}
}

// openRoutes makes the Redis client, which connects when it is first used, and
// the router on top of it.
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

// setInvalidationState shows whether changes of routes are seen as they happen.
func (g *gateway) setInvalidationState(connected bool) {
	g.metrics.RouteInvalidationConnected.Set(0)
	if connected {
		g.metrics.RouteInvalidationConnected.Set(1)
	}
}

// recordStoreState shows whether Redis has the route records it held, and puts it on record.
func (g *gateway) recordStoreState(s routing.StoreStatus) {
	record := audit.RouteStore{Node: s.Node, Present: s.Present, Missing: s.Missing, Operator: s.AcceptedBy}
	if s.State == routing.StoreEmptied {
		g.metrics.RoutesEmptied.Set(1)
		g.logLostRecord(g.audit.RoutesEmptied(&record))
		return
	}
	g.metrics.RoutesEmptied.Set(0)
	g.logLostRecord(g.audit.RoutesRestored(&record))
}

// lookupPassword is where auth's method redis finds a hash. The two rooms do not know
// each other, so the words that both need are translated here: without them a
// user who has no password in Redis could not be asked of the next method, and one
// who is blocked would be told so by SCRAM before a proof.
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
		backendCfg := upstreamConfig(name, b, g.cfg.Limits, g.files.clientTLS(backendKey(name)))
		backendCfg.SessionPrefix, backendCfg.Sockets = instance, g.descriptors
		hooks := upstream.Hooks{OnConnect: g.metrics.Backend(name).CountConnect, OnWait: g.recordLoginWait(name)}
		g.backends[name] = upstream.New(backendCfg, hooks, g.log)
	}
}

// recordLoginWait puts on record that a limit of the backend made a login wait, or refused
// it. Not before the audit log is open are there logins.
func (g *gateway) recordLoginWait(backend string) func(upstream.Wait) {
	return func(w upstream.Wait) {
		result := audit.Delayed
		if w.TimedOut {
			result = audit.Refused
			g.metrics.Limits.CountRefusal(w.Limit)
		} else {
			g.metrics.Limits.CountThrottle(w.Limit)
		}
		_ = g.audit.LimitHit(&audit.Client{}, &audit.LimitHit{Limit: audit.Limit(w.Limit), Subject: backend, Result: result})
	}
}

// listen opens every address, so that a port in use is an error of the start.
func (g *gateway) listen() error {
	if err := g.proxy.Listen(); err != nil {
		return withListenerKey(g.cfg, err)
	}
	if g.admin != nil {
		return config.WithKey("admin.address", g.admin.Listen())
	}
	return nil
}

// withListenerKey gives an error of the front door the key of its listener.
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

// run serves until ctx is done and the sessions have drained. The admin address
// and the watchers stay to the end: a drain is when an operator looks, and
// sessions still lean on the certificates and routes.
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
	watchers.Go(func() error { g.routes.SaveSnapshots(ctx); return nil }) // to the drain: then it is the next process's
	watch(g.auth.Run)
	watch(g.limits.Run)
	watch(g.files.Run)
	if g.admin != nil {
		watch(g.admin.Serve)
	}

	g.isAccepting.Store(true)
	g.metrics.CountReload(nil) // the configuration in use was loaded now
	if err := g.audit.GatewayStarted(readBuildInfo().Version); err != nil {
		g.log.Warn("the start is not in the audit log", zap.Error(err))
	}
	serveErr := g.proxy.Serve(ctx)
	if err := g.audit.GatewayStopped(audit.GatewayStopping); err != nil {
		g.log.Warn("the end is not in the audit log", zap.Error(err))
	}
	stop()
	return errors.Join(serveErr, watchers.Wait())
}

// beginDrain makes room for a gateway that takes our place.
func (g *gateway) beginDrain(ctx context.Context) {
	g.isAccepting.Store(false)
	if g.admin != nil {
		g.admin.ReleaseAddress(ctx)
	}
}

// checkReady is nil while new clients can be let in.
func (g *gateway) checkReady() error {
	if !g.isAccepting.Load() {
		return errStarting
	}
	return g.audit.Ready()
}

// explainRoute is the admin address's view of one user's route.
func (g *gateway) explainRoute(ctx context.Context, name string) (any, error) {
	u, err := g.auth.Canonicalize(name)
	if err != nil {
		return nil, err
	}
	return g.routes.Explain(ctx, u), nil
}

// listSessions is the admin address's view of one user's live sessions.
func (g *gateway) listSessions(_ context.Context, name string) (any, error) {
	u, err := g.auth.Canonicalize(name)
	if err != nil {
		return nil, err
	}
	return sessionList{User: u.String(), Sessions: g.proxy.SessionsOf(u)}, nil
}
