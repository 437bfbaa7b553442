package routing

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"imapgate/internal/identity"

	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"
)

// What callers branch on. The errors of this package wrap one of these and the
// cause, which is for the log alone.
var (
	ErrNoUser      = errors.New("no such user")
	ErrBlocked     = errors.New("user is blocked")
	ErrPaused      = errors.New("user is paused")
	ErrUnavailable = errors.New("route is unavailable")
)

// Where routes come from; Config.Source.
const (
	SourceRedis  = "redis"
	SourceStatic = "static"
	SourceHTTP   = "http" // an auth server says it with each login; a Router then knows nobody
)

// Match says whose record decided.
type Match string

// The sources of a decision, most specific first.
const (
	MatchUser    Match = "user"
	MatchDomain  Match = "domain"
	MatchDefault Match = "default"
	MatchNone    Match = "" // no record at all: no such user
)

// Origin says how an answer was obtained.
type Origin string

// How an answer was obtained. These and the outcomes below are the closed set
// of labels Metrics.Lookup is called with.
const (
	OriginCache    Origin = "cache"    // a fresh answer that was remembered
	OriginRedis    Origin = "redis"    // Redis was asked for it now
	OriginStale    Origin = "stale"    // the last good answer, because Redis gave none
	OriginStatic   Origin = "static"   // the configuration
	OriginSnapshot Origin = "snapshot" // the last good answer of an earlier process
	OriginHTTP     Origin = "http"     // what an auth server said with its yes; never a Router's
)

// Outcomes that are not a route.
const (
	OutcomeNoUser      = "no_user"
	OutcomeBlocked     = "blocked"
	OutcomePaused      = "paused"
	OutcomeUnavailable = "unavailable"
)

// errRouteAtLogin keeps a session where it is: nobody knows better.
var errRouteAtLogin = fmt.Errorf("%w: where users live is said with their login", ErrUnavailable)

// Static are the routes of the configuration. Values name backends.
type Static struct {
	Users   map[string]string
	Domains map[string]string
	Default string
}

// Config says where routes come from and how long they live.
type Config struct {
	Source   string         // SourceRedis or SourceStatic
	Static   Static         // with SourceStatic
	Backends []string       // the only names a route may have
	Names    identity.Names // how user names are read: in Static, and in what comes from Redis and the snapshot

	Prefix   string        // of every key; default "imapgate:"
	TTL      time.Duration // how long an answer is fresh; default 60 s
	Stale    time.Duration // how long it serves while Redis gives none; default 24 h
	Negative time.Duration // how long "no such user" is fresh; default 5 s
	Snapshot string        // file for the routes of the next process; "" for none
}

// Metrics is called on every lookup. A nil func is not called.
type Metrics struct {
	// Lookup is told how the route was obtained (a From) or why there is none
	// (an Outcome).
	Lookup func(result string)
	// Invalidation is told whether changes are seen as they happen, when that changes.
	Invalidation func(up bool)
	// Store is told when Redis has lost the records it held (StoreEmptied), and when
	// it has them again or the loss was accepted.
	Store func(StoreStatus)
}

// Route is where a user goes.
type Route struct {
	User    identity.User // whom the route is for; it is good for nobody else
	Backend string
	Login   string // the name to use there
	Mode    string // relay mode; "" for the backend's own
	Match   Match
	Key     string // the record that decided, or the configuration key
	Age     time.Duration
	Origin  Origin
}

// Router answers where users live. Its methods may be called from any goroutine.
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

// New makes a Router; rdb is nil when nothing is asked of Redis. Nothing is
// dialed before the first Lookup or Run.
func New(cfg Config, rdb redis.UniversalClient, m Metrics, log *zap.Logger) (*Router, error) {
	cfg.setDefaults()
	if strings.ContainsFunc(cfg.Prefix, isUnprintable) {
		return nil, errors.New("the prefix of Redis keys must be printable ASCII")
	}
	r := &Router{cfg: cfg, metrics: m, log: log, keys: keys{cfg.Prefix}, rules: newRules(cfg)}
	switch cfg.Source {
	case SourceStatic:
		s, err := newStatic(cfg)
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
	r.cache.hasLookups = cfg.Source == SourceRedis
	r.invalidator = newInvalidator(rdb, r.keys, r.cache, log)
	r.invalidator.onState = m.Invalidation
	r.loadSnapshot()
	return r, nil
}

func (c *Config) setDefaults() {
	if c.Prefix == "" {
		c.Prefix = DefaultPrefix
	}
	for d, v := range map[*time.Duration]time.Duration{
		&c.TTL: time.Minute, &c.Stale: 24 * time.Hour, &c.Negative: 5 * time.Second,
	} {
		if *d <= 0 {
			*d = v
		}
	}
}

// Run follows changes until ctx ends. Without it a Router works, and knows of a
// change when the ttl is over.
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

// Lookup says where u goes: a route, or ErrNoUser, ErrBlocked, ErrPaused or
// ErrUnavailable. It ends with ctx, and within a second when Redis is away.
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

// Password is the hash in the user's own record, which Lookup caches with the
// route; ErrNoUser when there is no such record or it has no password. Whether
// the user is blocked is for Lookup to say, and with static routes for this. Hashes are not in the snapshot:
// after a restart with Redis away this is ErrUnavailable for everybody.
func (r *Router) Password(ctx context.Context, u identity.User) (identity.Secret, error) {
	if u.IsZero() {
		return identity.Secret{}, ErrNoUser
	}
	if r.cache == nil {
		return identity.Secret{}, errNoRedis
	}
	res, err := r.cache.get(ctx, u)
	if err == nil && r.rules.passwordOnly && res.hasRecord {
		_, err = res.toRoute(u) // nobody else asks whether the record says blocked
	}
	switch {
	case err != nil:
		return identity.Secret{}, err
	case res.fromDisk:
		return identity.Secret{}, errHashUnknown
	case res.password.IsZero() && res.origin == OriginStale:
		return identity.Secret{}, errHashUnknown
	case res.password.IsZero():
		return identity.Secret{}, ErrNoUser
	}
	return res.password, nil
}

// Revalidate makes the next Lookup of u ask Redis, after a backend said that the
// user does not live there. The last good answer is kept for when Redis is away.
func (r *Router) Revalidate(u identity.User) {
	if r.cache != nil {
		r.cache.suspectUser(u)
	}
}

// outcome is the label of one lookup.
func outcome(route Route, err error) string {
	switch {
	case err == nil:
		return string(route.Origin)
	case errors.Is(err, ErrUnavailable):
		return OutcomeUnavailable
	case errors.Is(err, ErrBlocked):
		return OutcomeBlocked
	case errors.Is(err, ErrPaused):
		return OutcomePaused
	}
	return OutcomeNoUser
}
