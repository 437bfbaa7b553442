package routing

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"

	"imapgate/internal/event"
	"imapgate/internal/identity"
)

// Errors of a lookup. The errors of this package wrap one of these and the cause, which is for
// the log only.
var (
	ErrNoUser      = errors.New("no such user")
	ErrBlocked     = errors.New("user is blocked")
	ErrPaused      = errors.New("user is paused")
	ErrUnavailable = errors.New("route is unavailable")
	ErrMoved       = errors.New("route has changed") // since a Lookup
)

// Sources of routes, for Config.Source.
const (
	SourceRedis  = "redis"
	SourceStatic = "static"
	SourceHTTP   = "http" // an auth server supplies routes with each login; a Router has none
)

// Match is the kind of record that decided.
type Match string

// The kinds of records, most specific first.
const (
	MatchUser    Match = "user"
	MatchDomain  Match = "domain"
	MatchDefault Match = "default"
	MatchNone    Match = "" // no record at all: no such user
)

// errRouteAtLogin is returned with SourceHTTP. As an ErrUnavailable it keeps sessions where
// they are.
var errRouteAtLogin = fmt.Errorf("%w: the auth server supplies routes with logins", ErrUnavailable)

// Config is the configuration of a Router.
type Config struct {
	Settings
	Backends []string       // the only backend names a route may have
	Names    identity.Names // how user names are read: in Static, in Redis and in the snapshot
	Prefix   string         // of every key; "" is DefaultPrefix
}

// Metrics holds callbacks for lookups and state changes. A nil func is not called.
type Metrics struct {
	// Lookup receives, for every lookup, the Origin of the route or the Outcome if there is
	// none.
	Lookup func(event.Origin)
	// Invalidation receives whether changes are received as they happen, when that changes.
	Invalidation func(up bool)
	// Store receives StoreEmptied when Redis has lost its records, and another state when they
	// are back or the loss was accepted.
	Store func(StoreStatus)
}

// Route is the result of a lookup: the backend of a user.
type Route struct {
	User    identity.User `json:"-"` // user the route is for, and no other
	Backend string        `json:"backend,omitempty"`
	Login   string        `json:"login,omitempty"` // login name at the backend
	Mode    event.Mode    `json:"mode,omitempty"`  // relay mode; "" for the backend's default
	Match   Match         `json:"source,omitempty"`
	Key     string        `json:"key,omitempty"` // key of the record that decided, or the configuration key
	Origin  event.Origin  `json:"from,omitempty"`
	Age     time.Duration `json:"age_ns"`
}

// Router looks up the backends of users. It is safe for concurrent use.
type Router struct {
	// Set once.
	cfg         Config
	metrics     Metrics
	log         *zap.Logger
	keys        keys
	rules       rules
	static      *static // nil unless the source is static
	store       *store  // nil without Redis
	cache       *cache  // nil without Redis
	invalidator *invalidator
}

// New returns a Router; rdb is nil if Redis is not used. Nothing is dialed before the first
// Lookup or Run.
func New(cfg Config, rdb redis.UniversalClient, m Metrics, log *zap.Logger) (*Router, error) {
	cfg.Prefix = cmp.Or(cfg.Prefix, DefaultPrefix)
	if strings.ContainsFunc(cfg.Prefix, isUnprintable) {
		return nil, errors.New("the prefix of Redis keys must be printable ASCII")
	}
	r := &Router{cfg: cfg, metrics: m, log: log, keys: keys{cfg.Prefix}, rules: newRules(cfg)}
	switch cfg.Source {
	case SourceStatic:
		s, err := newStatic(cfg, r.rules.backends)
		if err != nil {
			return nil, err
		}
		r.static = s
	case SourceHTTP:
	case SourceRedis:
		if rdb == nil {
			return nil, errors.New("routes come from Redis, and no Redis is configured")
		}
	default:
		return nil, errors.New("routing source must be redis, static or http, not " + cfg.Source)
	}
	if rdb == nil {
		return r, nil
	}
	r.store = &store{rdb: rdb, keys: r.keys, rules: r.rules}
	r.cache = newCache(cfg, recordReader{read: r.store.readUser, inspect: r.store.inspect, nodeOf: r.store.nodeOf}, log)
	r.cache.store.hasLookups = cfg.Source == SourceRedis
	r.invalidator = &invalidator{rdb: rdb, cache: r.cache, onState: m.Invalidation, log: log}
	r.loadSnapshot()
	return r, nil
}

// Run receives changes until ctx ends. Without Run, a Router notices a change when the ttl of
// the route has passed.
func (r *Router) Run(ctx context.Context) error {
	if r.store == nil {
		<-ctx.Done()
		return nil
	}
	done := make(chan struct{})
	go r.invalidator.run(ctx, done)
	r.cache.runInspections(ctx, r.metrics.Store)
	<-done
	r.cache.awaitQueries()
	return nil
}

// Lookup returns the route of u, or ErrNoUser, ErrBlocked, ErrPaused or ErrUnavailable. It
// ends with ctx, and within a second if Redis is down.
func (r *Router) Lookup(ctx context.Context, u identity.User) (Route, error) {
	route, err := r.lookup(ctx, u)
	if r.metrics.Lookup != nil {
		r.metrics.Lookup(outcome(route, err))
	}
	return route, err
}

func (r *Router) lookup(ctx context.Context, u identity.User) (Route, error) {
	if u.IsZero() {
		return Route{}, ErrNoUser
	}
	if r.static != nil {
		return r.static.lookup(u)
	}
	if r.cfg.Source == SourceHTTP {
		return Route{}, errRouteAtLogin
	}
	res, err := r.cache.get(ctx, u)
	if err != nil {
		return Route{}, err
	}
	return res.toRoute(u)
}

// Confirm looks up a route again and returns nil if old is still valid. It returns ErrMoved if
// the backend or the login name there has changed, and the errors of Lookup except
// ErrUnavailable: while the current route is unknown, old stays valid.
func (r *Router) Confirm(ctx context.Context, u identity.User, old Route) error {
	current, err := r.lookup(ctx, u)
	switch {
	case errors.Is(err, ErrUnavailable):
		return nil
	case err != nil:
		return err
	case current.Backend != old.Backend || current.Login != old.Login:
		return fmt.Errorf("%w: from %s to %s by %s", ErrMoved, old.Backend, current.Backend, current.Key)
	}
	return nil
}

// Password returns the hash in the user's own record, which the cache keeps with the route. It
// returns ErrNoUser if there is no such record or it has no password. If
// routes do not come from Redis, it also returns ErrBlocked and ErrPaused; otherwise Lookup
// does. Hashes are not in the snapshot: after a restart while Redis is down, Password returns
// ErrUnavailable for all users.
func (r *Router) Password(ctx context.Context, u identity.User) (identity.Secret, error) {
	if u.IsZero() {
		return identity.Secret{}, ErrNoUser
	}
	if r.cache == nil {
		return identity.Secret{}, errNoRedis
	}
	res, err := r.cache.get(ctx, u)
	if err == nil && r.rules.passwordOnly && res.match == MatchUser {
		_, err = res.toRoute(u) // Lookup does not read the record, so its state is checked here
	}
	switch {
	case err != nil:
		return identity.Secret{}, err
	case res.fromDisk:
		return identity.Secret{}, errHashUnknown
	case res.password.IsZero() && res.origin == event.OriginStale:
		return identity.Secret{}, errHashUnknown
	case res.password.IsZero():
		return identity.Secret{}, ErrNoUser
	}
	return res.password, nil
}

// outcome returns the metrics label of one lookup.
func outcome(route Route, err error) event.Origin {
	switch {
	case err == nil:
		return route.Origin
	case errors.Is(err, ErrUnavailable):
		return event.LookupUnavailable
	case errors.Is(err, ErrBlocked):
		return event.LookupBlocked
	case errors.Is(err, ErrPaused):
		return event.LookupPaused
	}
	return event.LookupNoUser
}
