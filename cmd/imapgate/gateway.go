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
	cfg      *config.Config
	file     string // that cfg is of; by serve
	log      *zap.Logger
	audit    *audit.Log
	metrics  *metrics.Metrics
	files    *files
	redis    redis.UniversalClient // nil without Redis
	routes   *routing.Router
	auth     *auth.Authenticator
	judges   judges
	backends map[string]*upstream.Backend
	limits   *limit.Gate
	sockets  *descriptors.Counter
	proxy    *proxy.Server
	admin    *admin.Server // nil when it is switched off

	accepting atomic.Bool // from listening to the beginning of the drain
}

// open makes every room. Files are read and the audit log is opened; nothing
// listens and nothing is dialed yet.
func open(cfg *config.Config, log *zap.Logger) (*gateway, error) {
	g := &gateway{cfg: cfg, log: log, metrics: metrics.New(thisBuild().Version), sockets: descriptors.New(descriptors.Limit())}
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
	door := proxyConfig(cfg, instance)
	door.TokenRefusal, door.TokenGrace = g.judges.refusal(), cfg.Auth.OAuth.SessionGrace
	g.proxy, err = proxy.New(door, proxy.Rooms{
		TLS: g.files.server, Auth: g.auth, Routes: g.routes, Backends: g.backends, Limits: g.limits,
		Sockets: g.sockets, Audit: g.audit, Metrics: g.metrics, Log: log,
	})
	if err != nil {
		g.close()
		return nil, err
	}
	if cfg.Admin.Address != "" {
		g.admin = admin.New(admin.Config{Address: cfg.Admin.Address, Token: cfg.Admin.Token}, admin.Shows{
			Metrics: g.metrics.Handler(), Ready: g.ready, Explain: g.explain, Sessions: g.sessions, Backends: g.backendStates,
			Limits: g.adminLimits(),
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
	g.judges.close()
	if err := errors.Join(errs...); err != nil {
		g.log.Warn("shutdown: close failed", zap.Error(err))
	}
}

// openRoutes makes the Redis client, which connects when it is first used, and
// the router on top of it.
func (g *gateway) openRoutes() error {
	var err error
	if g.redis, err = dialRedis(g.cfg.Redis, g.files.client(redisKey)); err != nil {
		return err
	}
	g.routes, err = routing.New(routingConfig(g.cfg), g.redis, routing.Metrics{
		Lookup: g.metrics.RouteLookup, Channel: g.channel, Store: g.store,
	}, g.log)
	return config.At("routing", err)
}

// channel shows whether changes of routes are seen as they happen.
func (g *gateway) channel(up bool) {
	g.metrics.RouteChannelUp.Set(0)
	if up {
		g.metrics.RouteChannelUp.Set(1)
	}
}

// store shows whether Redis has the route records it held, and puts it on record.
func (g *gateway) store(s routing.Store) {
	made := audit.Store{Node: s.Node, Present: s.Present, Missing: s.Missing, By: s.By}
	if s.State == routing.StoreEmptied {
		g.metrics.RoutesEmptied.Set(1)
		g.unrecorded(g.audit.RoutesEmptied(&made))
		return
	}
	g.metrics.RoutesEmptied.Set(0)
	g.unrecorded(g.audit.RoutesRestored(&made))
}

// password is where auth's method redis finds a hash. The two rooms do not know
// each other, so the words that both need are translated here: without them a
// user who has no password in Redis could not be asked of the next method, and one
// who is blocked would be told so by SCRAM before a proof.
func (g *gateway) password(ctx context.Context, u user) (secret, error) {
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
		made := upstreamConfig(name, b, g.cfg.Limits, g.files.client(backendKey(name)))
		made.Instance, made.Sockets = instance, g.sockets
		hooks := upstream.Hooks{OnConnect: g.metrics.Backend(name).ConnectDone, OnWait: g.heldUp(name)}
		g.backends[name] = upstream.New(made, hooks, g.log)
	}
}

// heldUp puts on record that a limit of the backend made a login wait, or refused
// it. Not before the audit log is open are there logins.
func (g *gateway) heldUp(backend string) func(upstream.Wait) {
	return func(w upstream.Wait) {
		did := audit.Delayed
		if w.InVain {
			did = audit.Refused
			g.metrics.Limits.Refused(w.Limit)
		} else {
			g.metrics.Limits.HeldUp(w.Limit)
		}
		_ = g.audit.LimitHit(&audit.Client{}, &audit.Hit{Limit: audit.Limit(w.Limit), Subject: backend, Measure: did})
	}
}

// listen opens every address, so that a port in use is an error of the start.
func (g *gateway) listen() error {
	if err := g.proxy.Listen(); err != nil {
		return atListener(g.cfg, err)
	}
	if g.admin != nil {
		return config.At("admin.address", g.admin.Listen())
	}
	return nil
}

// atListener gives an error of the front door the key of its listener.
func atListener(cfg *config.Config, err error) error {
	var of *proxy.ListenError
	key := "listeners"
	if errors.As(err, &of) {
		if i := slices.IndexFunc(cfg.Listeners, func(l config.Listener) bool { return l.Name == of.Listener }); i >= 0 {
			key = config.Below(config.Indexed(key, i), "address")
		}
	}
	return config.At(key, err)
}

// run serves until ctx is done and the sessions have drained. The admin address
// and the watchers stay to the end: a drain is when an operator looks, and
// sessions still lean on the certificates and routes.
func (g *gateway) run(ctx context.Context) error {
	watching, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	var watchers errgroup.Group
	watch := func(f func(context.Context) error) { watchers.Go(func() error { return f(watching) }) }
	watchers.Go(func() error {
		<-ctx.Done()
		g.beginDrain(watching)
		return nil
	})
	watch(g.routes.Run)
	watchers.Go(func() error { g.routes.KeepSnapshot(ctx); return nil }) // to the drain: then it is the next process's
	watch(g.auth.Run)
	watch(g.limits.Run)
	watch(g.files.Run)
	if g.admin != nil {
		watch(g.admin.Serve)
	}

	g.accepting.Store(true)
	g.metrics.ConfigReloaded(nil) // the configuration in use was loaded now
	if err := g.audit.Started(thisBuild().Version); err != nil {
		g.log.Warn("the start is not in the audit log", zap.Error(err))
	}
	served := g.proxy.Serve(ctx)
	if err := g.audit.Stopped(audit.GatewayStopping); err != nil {
		g.log.Warn("the end is not in the audit log", zap.Error(err))
	}
	stop()
	return errors.Join(served, watchers.Wait())
}

// beginDrain makes room for a gateway that takes our place.
func (g *gateway) beginDrain(watching context.Context) {
	g.accepting.Store(false)
	if g.admin != nil {
		g.admin.GiveWay(watching)
	}
}

// ready is nil while new clients can be let in.
func (g *gateway) ready() error {
	if !g.accepting.Load() {
		return errStarting
	}
	return g.audit.Ready()
}

// explain is the admin address's view of one user's route.
func (g *gateway) explain(ctx context.Context, name string) (any, error) {
	u, err := g.auth.Canon(name)
	if err != nil {
		return nil, err
	}
	return g.routes.Explain(ctx, u), nil
}

// sessions is the admin address's view of one user's live sessions.
func (g *gateway) sessions(_ context.Context, name string) (any, error) {
	u, err := g.auth.Canon(name)
	if err != nil {
		return nil, err
	}
	return userSessions{User: u.String(), Sessions: g.proxy.SessionsOf(u)}, nil
}
