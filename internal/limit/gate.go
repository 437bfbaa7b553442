package limit

import (
	"context"
	"errors"
	"hash/maphash"
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"
)

const (
	// maxRates bounds the addresses whose rate of new connections is known. One
	// that falls out starts with a full bucket again.
	maxRates = 16 << 10
	// maxDirty bounds the places that Redis has yet to be told of.
	maxDirty = 64 << 10
)

// Limiter is where everybody comes in.
type Limiter struct {
	// Set once.
	cfg       Config
	usual     *Settings            // of listeners that have none of their own
	listeners map[string]*Settings // of those that have
	uploads   bool                 // some listener bounds them, so they are counted at all
	hooks     Hooks
	log       *zap.Logger
	began     time.Time
	places    *places
	rates     *rates
	past      *failures
	good      *goodList
	bans      *banTable
	spray     *sprayWatch
	budgets   *budgets
	shared    *shared // nil without Redis
	lines     rate.Sometimes
}

// New makes a gate. Without a client of Redis it counts for itself.
func New(cfg Config, client redis.UniversalClient, hooks Hooks, log *zap.Logger) (*Limiter, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	hooks.complete()
	g := &Limiter{cfg: cfg, hooks: hooks, log: log, began: time.Now(), lines: rate.Sometimes{First: 20, Interval: 10 * time.Second}}
	g.usual, g.listeners = &g.cfg.Settings, make(map[string]*Settings, len(cfg.Listeners))
	g.uploads = cfg.UserQuota.AppendBytesPerDay > 0
	for name, l := range cfg.Listeners {
		g.listeners[name] = &l
		g.uploads = g.uploads || l.UserQuota.AppendBytesPerDay > 0
	}
	g.places = &places{held: make(map[place]*held), dirty: make(map[place]*held)}
	g.rates = newRates()
	g.past = newFailures(&cfg)
	g.good = newGoodList(cfg.Failures.KnownFor)
	g.bans = newBanTable()
	g.spray = &sprayWatch{baseline: sprayLeast}
	g.budgets = newBudgets()
	if client != nil {
		g.shared = newShared(&g.cfg, client, g.redisIs)
	}
	return g, nil
}

// Run renews the leases of this gateway and follows the bans of the others,
// until ctx is done, and all visits have left or farewellTime is over; then it
// returns nil. Without Redis it only waits for ctx.
func (g *Limiter) Run(ctx context.Context) error {
	err := g.keepUp(ctx)
	if g.shared != nil {
		g.farewell()
	}
	return err
}

// keepUp is Run as long as it is not to end.
func (g *Limiter) keepUp(ctx context.Context) error {
	if g.shared == nil {
		<-ctx.Done()
		return nil
	}
	all, ctx := errgroup.WithContext(ctx)
	all.Go(func() error { g.beat(ctx); return nil })
	all.Go(func() error { g.flush(ctx); return nil })
	all.Go(func() error { g.heal(ctx); return nil })
	all.Go(func() error { g.follow(ctx); return nil })
	return all.Wait()
}

// redisIs says that limits are shared, or no longer and why. Of a Redis that comes and
// goes it is not said every time.
func (g *Limiter) redisIs(up bool, why error) {
	g.hooks.OnRedis(up)
	g.lines.Do(func() {
		var t *trouble
		switch {
		case up:
			g.log.Info("limits are shared: Redis answers, and takes what is written")
		case errors.As(why, &t) && t.refused:
			g.log.Warn("limits are local: Redis refuses to work", zap.Error(why))
		default:
			g.log.Warn("limits are local: Redis does not answer", zap.Error(why))
		}
	})
}

// limits are those of a listener.
func (g *Limiter) limits(listener string) *Settings {
	if l := g.listeners[listener]; l != nil {
		return l
	}
	return g.usual
}

// now is the time of the gate. Monotonic: no step of the clock lifts a ban or
// forgets a failure.
func (g *Limiter) now() time.Duration { return time.Since(g.began) }

// sprayed passes on what there is to tell of spraying.
func (g *Limiter) sprayed(n news) {
	if n.fresh {
		g.hooks.OnSpray(n.Spray)
	}
}

// refused counts a refusal and gives it on.
func (g *Limiter) refused(r *Refusal) error {
	g.hooks.OnRefused(r.Reason)
	return r
}

// rates are the token buckets of new connections.
type rates struct {
	// Set once.
	seed maphash.Seed

	// Guarded by mu.
	mu   sync.Mutex
	seen *simplelru.LRU[uint64, *rate.Limiter]
}

func newRates() *rates {
	return &rates{seed: maphash.MakeSeed(), seen: newTable[*rate.Limiter](maxRates)}
}

// allow says whether the network may have one more connection now.
func (r *rates) allow(net netip.Prefix, s *Settings) bool {
	if s.NewPerMinute == 0 {
		return true
	}
	limit := rate.Limit(float64(s.NewPerMinute) / time.Minute.Seconds())
	key, burst := maphash.Comparable(r.seed, net), max(1, s.NewBurst) // with none nobody would ever come in
	r.mu.Lock()
	defer r.mu.Unlock()
	l, ok := r.seen.Get(key)
	if !ok {
		l = rate.NewLimiter(limit, burst)
		r.seen.Add(key, l)
	}
	if l.Limit() != limit || l.Burst() != burst { // by another listener
		l.SetLimit(limit)
		l.SetBurst(burst)
	}
	return l.Allow()
}
