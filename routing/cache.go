package routing

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"imapgate/internal/breaker"
	"imapgate/internal/identity"

	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"
	"golang.org/x/time/rate"
)

const (
	maxOwned   = 100_000 // users with a record of their own
	maxDerived = 50_000  // users known by their domain, the default or not at all
	maxScopes  = 10_000  // domains
	maxFlights = 1_024   // questions to Redis at a time, each for one user

	// askTime bounds one question, so that a client whose route is unknown hears
	// so within a second.
	askTime = 800 * time.Millisecond
	// graceTime is how long a client whose last good answer may well be right
	// waits for a newer one.
	graceTime = 40 * time.Millisecond
	// confirmTime lies between the two looks that make a record's disappearance
	// believed when Redis did not name the record.
	confirmTime = 5 * time.Second
	// doubtRate bounds the questions per second that only confirm an answer whose
	// time is not over, so that Redis is not overrun when it comes back.
	doubtRate = 200
)

// errBusy is the answer beyond maxFlights.
var errBusy = errors.New("too many questions to Redis at a time")

// errBroken is the answer while the breaker is open.
var errBroken = errors.New("no answer from Redis lately, so it is left alone")

// cache remembers answers, and asks for them when it must.
type cache struct {
	// Set once.
	cfg        Config
	keys       keys
	source     source
	log        *zap.Logger
	alerted    chan struct{} // watch has to look
	confirm    *rate.Limiter
	maxOwned   int
	maxDerived int

	// Guarded by mu.
	mu      sync.Mutex
	entries map[identity.User]*entry
	owned   list.List // at most maxOwned
	derived list.List // at most maxDerived
	flights map[identity.User]*flight
	scopes  map[string]*scope // at most maxScopes
	deflt   scope
	doubt   uint64
	breaker breaker.Breaker
	probe   *flight   // the question that is tried while Redis is left alone, until it is decided
	beside  int       // lookups that wait for that; at most breaker.MaxBeside
	unsaved bool      // something the snapshot should have
	warned  time.Time // when a record was last complained about

	// Guarded by mu: whether Redis has the records it had.
	sample   sample
	inUse    bool       // somebody has asked for a record
	accepted acceptance // the operator's last word
	heard    time.Time  // when it came; zero: it is older than this process
	listened bool       // Redis has been asked for it
	believed time.Time  // of what was learned before, the absence is believed
	ended    string     // whose word ended the last loss
}

// flight is one question to Redis, shared by all who ask about one user
// meanwhile, and by nobody who asks about another.
type flight struct {
	// Set once.
	user  identity.User
	sight sight
	named bool // Redis had named the deciding record before the question
	done  chan struct{}

	// Guarded by the cache's mu.
	changed bool // Redis named the user's key while the question was open

	// Owned by fetch until done is closed.
	got got
	err error
}

func newCache(cfg Config, source source, log *zap.Logger) *cache {
	return &cache{
		cfg: cfg, keys: keys{cfg.Prefix}, source: source, log: log, alerted: make(chan struct{}, 1), sample: newSample(),
		confirm:    rate.NewLimiter(doubtRate, doubtRate),
		maxOwned:   maxOwned,
		maxDerived: maxDerived,
		entries:    make(map[identity.User]*entry),
		flights:    make(map[identity.User]*flight),
		scopes:     make(map[string]*scope),
	}
}

// get gives the answer for u: the one remembered while it is fresh, else what
// Redis says, else the last good one, else ErrUnavailable. Without any it waits
// beside the question by which Redis is tried, within the time of one.
func (c *cache) get(ctx context.Context, u identity.User) (got, error) {
	probe, g, err := c.find(ctx, u)
	if probe == nil {
		return g, err
	}
	soon, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	for probe != nil {
		select {
		case <-probe.done:
			err = nil
		case <-soon.Done():
			err = unavailable(errBroken)
		}
		c.mu.Lock()
		c.beside--
		c.mu.Unlock()
		if err != nil {
			return got{}, err
		}
		probe, g, err = c.find(ctx, u)
	}
	return g, err
}

// find is get, but for the wait beside a probe: one to wait for is returned.
func (c *cache) find(ctx context.Context, u identity.User) (probe *flight, g got, err error) {
	now := time.Now()
	c.mu.Lock()
	e := c.entries[u]
	is := c.standing(e, now)
	if is == fresh {
		e.within.MoveToFront(e.place)
		g := e.got(FromCache, now)
		c.mu.Unlock()
		return nil, g, nil
	}
	f, err := c.join(u, e, is)
	last, ok := c.lastGood(e, now)
	if !ok && errors.Is(err, errBroken) && c.probe != nil && c.beside < breaker.MaxBeside {
		c.beside++
		probe = c.probe
	}
	c.mu.Unlock()
	switch {
	case probe != nil:
	case err != nil && ok:
		return nil, last, nil
	case err != nil:
		err = unavailable(err)
	case ok && is != changed:
		g, err = f.waitBriefly(ctx, last)
	default:
		g, err = f.wait(ctx)
	}
	return probe, g, err
}

// join finds the open question about u or opens one; an error says why not.
func (c *cache) join(u identity.User, e *entry, is standing) (*flight, error) {
	if f := c.flights[u]; f != nil {
		return f, nil
	}
	now := time.Now()
	if is == doubtful && !c.confirm.AllowN(now, 1) || len(c.flights) >= maxFlights {
		return nil, errBusy
	}
	left := c.breaker.Open()
	if !c.breaker.Allow(now) {
		return nil, errBroken
	}
	f := &flight{user: u, sight: c.look(u), done: make(chan struct{})}
	f.named = e != nil && c.named(e)
	c.flights[u] = f
	if left {
		c.probe = f
	}
	go c.fetch(f)
	return f, nil
}

// fetch asks Redis one question. It ends within askTime. It does not end with a
// caller's ctx: others may wait for the same answer, and a command cut short
// costs its connection.
func (c *cache) fetch(f *flight) {
	ctx, cancel := context.WithTimeout(context.Background(), askTime)
	q := c.prepare(ctx, f.user)
	r, err := c.source.ask(ctx, f.user, q.probes)
	if err == nil {
		for _, node := range c.due(q, r) {
			c.inspect(ctx, node)
		}
	}
	cancel()
	c.mu.Lock()
	f.got, f.err = c.learn(f, q, r, err)
	delete(c.flights, f.user)
	if c.probe == f {
		c.probe = nil
	}
	c.mu.Unlock()
	close(f.done)
}

// wait waits for the answer; when ctx ends first, the others go on waiting.
func (f *flight) wait(ctx context.Context) (got, error) {
	select {
	case <-f.done:
		return f.got, f.err
	case <-ctx.Done():
		return got{}, unavailable(ctx.Err())
	}
}

// waitBriefly prefers a new answer to last, but not for long.
func (f *flight) waitBriefly(ctx context.Context, last got) (got, error) {
	grace := time.NewTimer(graceTime)
	defer grace.Stop()
	select {
	case <-f.done:
		return f.got, f.err
	case <-grace.C:
		return last, nil
	case <-ctx.Done():
		return got{}, unavailable(ctx.Err())
	}
}

// learn takes in what Redis said and gives what the waiting lookups hear.
func (c *cache) learn(f *flight, q question, r reading, err error) (got, error) {
	now := time.Now()
	e, a := c.entries[f.user], r.answer
	if err != nil {
		return c.learnTrouble(f, e, err)
	}
	c.breaker.Answered()
	c.remember(q, r)
	if !c.believes(q, r) {
		return c.learnLoss(f, e)
	}
	if c.servable(e, now) && a.rank() < e.answer.rank() && !f.named && !e.learned.Before(c.believed) && !c.confirmed(e, now) {
		c.hold(f, e, e.missing.Add(confirmTime))
		c.warn("route record is gone and Redis did not name it; kept until that is confirmed",
			zap.Stringer("user", f.user), zap.String("key", e.answer.key))
		return e.got(FromStale, now), nil
	}
	if e == nil {
		e = &entry{user: f.user}
	}
	if e.answer != a || e.fromDisk || now.Sub(e.learned) > c.cfg.Stale/100 {
		c.unsaved = true
	}
	*e = entry{
		user: f.user, answer: a, within: e.within, place: e.place,
		learned: now, expires: now.Add(c.lifetime(a)), changed: f.changed, seen: f.sight,
	}
	c.keep(e)
	return e.got(FromRedis, now), nil
}

// hold keeps e against what Redis says, until it is time to ask again.
func (c *cache) hold(f *flight, e *entry, until time.Time) {
	e.held, e.seen, e.changed, e.expires = true, f.sight, f.changed, until
}

// confirmed notes that e's record was seen missing and says whether that was
// twice now, confirmTime apart.
func (c *cache) confirmed(e *entry, now time.Time) bool {
	if e.missing.IsZero() {
		e.missing = now
	}
	return now.Sub(e.missing) >= confirmTime
}

// learnTrouble falls back to the last good answer.
func (c *cache) learnTrouble(f *flight, e *entry, err error) (got, error) {
	now := time.Now()
	last, ok := c.lastGood(e, now)
	var reply redis.Error // anybody can ask for the key that gets one
	switch {
	case !errors.Is(err, errRefused) && errors.As(err, &reply):
		c.breaker.Answered()
	case !errors.Is(err, errRefused):
		c.breaker.Failed(now)
	default:
		c.breaker.Answered()
		c.warn("route record refused", zap.Stringer("user", f.user), zap.Error(err))
		if ok {
			c.hold(f, e, now.Add(c.cfg.Negative))
		}
	}
	if ok {
		return last, nil
	}
	return got{}, unavailable(err)
}

// warn tells the operator about a record, at most once a second: a client can ask
// as often as it likes.
func (c *cache) warn(what string, fields ...zap.Field) {
	if now := time.Now(); now.Sub(c.warned) >= time.Second {
		c.warned = now
		c.log.Warn(what, fields...)
	}
}

// lastGood is the answer that stands in while Redis gives none.
func (c *cache) lastGood(e *entry, now time.Time) (got, bool) {
	if !c.servable(e, now) {
		return got{}, false
	}
	return e.got(FromStale, now), true
}

// got copies the answer of e for a caller.
func (e *entry) got(from From, now time.Time) got {
	switch {
	case e.fromDisk:
		from = FromSnapshot
	case e.held:
		from = FromStale
	}
	return got{answer: e.answer, from: from, age: now.Sub(e.learned), fromDisk: e.fromDisk}
}

// wait returns when no question is open.
func (c *cache) wait() {
	for {
		var open *flight
		c.mu.Lock()
		for _, open = range c.flights {
			break
		}
		c.mu.Unlock()
		if open == nil {
			return
		}
		<-open.done
	}
}

func unavailable(err error) error { return fmt.Errorf("%w: %w", ErrUnavailable, err) }
