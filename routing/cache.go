package routing

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"imapgate/internal/breaker"
	"imapgate/internal/event"
	"imapgate/internal/identity"

	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"
	"golang.org/x/time/rate"
)

const (
	maxUserEntries   = 100_000 // users with a record of their own
	maxSharedEntries = 50_000  // users with the domain's record, the default or none
	maxDomains       = 10_000
	maxQueries       = 1_024 // concurrent queries, each for one user

	// queryTimeout bounds one query, so that a client with an unknown route gets its answer
	// within a second.
	queryTimeout = 800 * time.Millisecond
	// staleGrace is how long a lookup with a last good route that is probably right waits for
	// a newer one.
	staleGrace = 40 * time.Millisecond
	// confirmDelay is the least time between the two reads that confirm a record's
	// disappearance without an invalidation.
	confirmDelay = 5 * time.Second
	// revalidationRate bounds the queries per second that only confirm entries before they
	// expire, so that they do not overload a Redis that comes back.
	revalidationRate = 200
)

// errBusy is returned beyond maxQueries.
var errBusy = errors.New("too many concurrent queries to Redis")

// errBreakerOpen is returned while the breaker is open.
var errBreakerOpen = errors.New("not queried, because Redis has not answered recently")

// cache keeps the decisions for users, and queries Redis for those that are missing or not
// fresh.
type cache struct {
	// Set once.
	cfg              Config
	keys             keys
	reader           recordReader
	log              *zap.Logger
	inspectNow       chan struct{} // wakes runInspections
	revalidations    *rate.Limiter
	maxUserEntries   int
	maxSharedEntries int

	// Guarded by mu.
	mu             sync.Mutex
	entries        map[identity.User]*entry
	userEntries    list.List // at most maxUserEntries
	sharedEntries  list.List // at most maxSharedEntries
	queries        map[identity.User]*query
	domains        map[string]*changeCounter // at most maxDomains
	defaultChanges changeCounter
	epoch          uint64
	breaker        breaker.Breaker
	trial          *query    // the query let through while the breaker is open; nil without one
	waiting        int       // lookups waiting for trial; at most breaker.MaxWaiting
	snapshotDirty  bool      // there are changes since the last snapshot
	lastWarning    time.Time // when an invalid record was last logged
	store          storeState
}

// query is one query of Redis for one user. All concurrent lookups of that user share it.
type query struct {
	// Set once.
	user              identity.User
	versions          versions
	invalidatedBefore bool // the deciding record was invalidated before the query
	done              chan struct{}

	// Guarded by the cache's mu.
	invalidatedDuring bool // the user's key was invalidated during the query

	// Owned by runQuery until done is closed.
	resolution resolution
	err        error
}

func newCache(cfg Config, reader recordReader, log *zap.Logger) *cache {
	return &cache{
		cfg: cfg, keys: keys{cfg.Prefix}, reader: reader, log: log, inspectNow: make(chan struct{}, 1), store: storeState{sample: newSample()},
		revalidations:    rate.NewLimiter(revalidationRate, revalidationRate),
		maxUserEntries:   maxUserEntries,
		maxSharedEntries: maxSharedEntries,
		entries:          make(map[identity.User]*entry),
		queries:          make(map[identity.User]*query),
		domains:          make(map[string]*changeCounter),
	}
}

// get returns the resolution for u: a fresh entry, else the reply of Redis, else the last good
// entry, else ErrUnavailable. While the breaker is open and there is no entry, it waits up to
// queryTimeout for the trial query.
func (c *cache) get(ctx context.Context, u identity.User) (resolution, error) {
	trial, res, err := c.tryGet(ctx, u)
	if trial == nil {
		return res, err
	}
	waitCtx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	for trial != nil {
		select {
		case <-trial.done:
			err = nil
		case <-waitCtx.Done():
			err = unavailable(errBreakerOpen)
		}
		c.mu.Lock()
		c.waiting--
		c.mu.Unlock()
		if err != nil {
			return resolution{}, err
		}
		trial, res, err = c.tryGet(ctx, u)
	}
	return res, err
}

// tryGet is get without the wait: it returns the trial query to wait for, if there is one.
func (c *cache) tryGet(ctx context.Context, u identity.User) (trial *query, res resolution, err error) {
	now := time.Now()
	c.mu.Lock()
	e := c.entries[u]
	level := c.freshnessOf(e, now)
	if level == entryFresh {
		e.list.MoveToFront(e.elem)
		res := e.toResolution(event.OriginCache, now)
		c.mu.Unlock()
		return nil, res, nil
	}
	q, err := c.joinQuery(u, e, level)
	last, ok := c.lastGood(e, now)
	if !ok && errors.Is(err, errBreakerOpen) && c.trial != nil && c.waiting < breaker.MaxWaiting {
		c.waiting++
		trial = c.trial
	}
	c.mu.Unlock()
	switch {
	case trial != nil:
	case err != nil && ok:
		return nil, last, nil
	case err != nil:
		err = unavailable(err)
	default:
		var grace <-chan time.Time // nil: never
		if ok && level != entryInvalidated {
			grace = time.After(staleGrace)
		}
		select {
		case <-q.done: // q continues after ctx ends
			res, err = q.resolution, q.err
		case <-grace:
			res = last
		case <-ctx.Done():
			err = unavailable(ctx.Err())
		}
	}
	return trial, res, err
}

// joinQuery returns the running query for u or starts one. An error is the reason why it does
// neither.
func (c *cache) joinQuery(u identity.User, e *entry, level freshness) (*query, error) {
	if q := c.queries[u]; q != nil {
		return q, nil
	}
	now := time.Now()
	if level == entrySuspect && !c.revalidations.AllowN(now, 1) || len(c.queries) >= maxQueries {
		return nil, errBusy
	}
	wasOpen := c.breaker.IsOpen()
	if !c.breaker.Allow(now) {
		return nil, errBreakerOpen
	}
	q := &query{user: u, versions: c.currentVersions(u), done: make(chan struct{})}
	q.invalidatedBefore = e != nil && c.recordInvalidated(e)
	c.queries[u] = q
	if wasOpen {
		c.trial = q
	}
	go c.runQuery(q)
	return q, nil
}

// runQuery runs q within queryTimeout. It does not end with a caller's ctx: other lookups may
// wait for the same reply, and an aborted command costs its connection.
func (c *cache) runQuery(q *query) {
	ctx, cancel := context.WithTimeout(context.Background(), queryTimeout)
	plan := c.planRead(ctx, q.user)
	r, err := c.reader.read(ctx, q.user, plan.samples)
	if err == nil {
		for _, node := range c.claimInspections(plan, r) {
			c.inspectNode(ctx, node)
		}
	}
	cancel()
	c.mu.Lock()
	q.resolution, q.err = c.recordReply(q, plan, r, err)
	delete(c.queries, q.user)
	if c.trial == q {
		c.trial = nil
	}
	c.mu.Unlock()
	close(q.done)
}

// recordReply updates the cache with the reply to q and returns the result for the waiting
// lookups. mu is held.
func (c *cache) recordReply(q *query, plan readPlan, r userRecords, err error) (resolution, error) {
	now := time.Now()
	e, d := c.entries[q.user], r.decision
	if err != nil {
		return c.recordError(q, e, err)
	}
	c.breaker.RecordSuccess()
	c.sampleRecords(plan, r)
	if !c.trustsAbsence(plan, r) {
		return c.recordUntrustedAbsence(q, e)
	}
	if c.canServe(e, now) && d.rank() < e.decision.rank() && !q.invalidatedBefore && !e.learnedAt.Before(c.store.absenceTrustedAt) && !c.confirmAbsence(e, now) {
		c.retain(q, e, e.missingSince.Add(confirmDelay))
		c.warn("route record is missing without an invalidation from Redis; the last good route is kept until its absence is confirmed",
			zap.Stringer("user", q.user), zap.String("key", e.decision.key))
		return e.toResolution(event.OriginStale, now), nil
	}
	if e == nil {
		e = &entry{user: q.user}
	}
	if e.decision != d || e.fromDisk || now.Sub(e.learnedAt) > c.cfg.Cache.Stale/100 {
		c.snapshotDirty = true
	}
	*e = entry{
		user: q.user, decision: d, list: e.list, elem: e.elem,
		learnedAt: now, expiresAt: now.Add(c.freshFor(d)), invalidated: q.invalidatedDuring, versions: q.versions,
	}
	c.insert(e)
	return e.toResolution(event.OriginRedis, now), nil
}

// retain keeps e although Redis disagrees, and schedules the next query.
func (c *cache) retain(q *query, e *entry, until time.Time) {
	e.retained, e.versions, e.invalidated, e.expiresAt = true, q.versions, q.invalidatedDuring, until
}

// confirmAbsence records that e's deciding record is missing. It reports whether the record
// has been missing for confirmDelay.
func (c *cache) confirmAbsence(e *entry, now time.Time) bool {
	if e.missingSince.IsZero() {
		e.missingSince = now
	}
	return now.Sub(e.missingSince) >= confirmDelay
}

// recordError records a failed query and returns the last good resolution, or an error without
// one.
func (c *cache) recordError(q *query, e *entry, err error) (resolution, error) {
	now := time.Now()
	last, ok := c.lastGood(e, now)
	var reply redis.Error // a client can provoke one with the key it looks up
	switch {
	case !errors.Is(err, errInvalidRecord) && errors.As(err, &reply):
		c.breaker.RecordSuccess()
	case !errors.Is(err, errInvalidRecord):
		c.breaker.RecordFailure(now)
	default:
		c.breaker.RecordSuccess()
		c.warn("invalid route record", zap.Stringer("user", q.user), zap.Error(err))
		if ok {
			c.retain(q, e, now.Add(c.cfg.Cache.Negative))
		}
	}
	if ok {
		return last, nil
	}
	return resolution{}, unavailable(err)
}

// warn logs a warning about a record, at most once a second: clients can cause any number of
// lookups.
func (c *cache) warn(msg string, fields ...zap.Field) {
	if now := time.Now(); now.Sub(c.lastWarning) >= time.Second {
		c.lastWarning = now
		c.log.Warn(msg, fields...)
	}
}

// lastGood returns the resolution to serve while Redis gives none.
func (c *cache) lastGood(e *entry, now time.Time) (resolution, bool) {
	if !c.canServe(e, now) {
		return resolution{}, false
	}
	return e.toResolution(event.OriginStale, now), true
}

// toResolution copies e for a caller.
func (e *entry) toResolution(origin event.Origin, now time.Time) resolution {
	switch {
	case e.fromDisk:
		origin = event.OriginSnapshot
	case e.retained:
		origin = event.OriginStale
	}
	return resolution{decision: e.decision, origin: origin, age: now.Sub(e.learnedAt), fromDisk: e.fromDisk}
}

// invalidateKeys applies an invalidation: names are the keys of records that have changed.
func (c *cache) invalidateKeys(names []string) {
	userPrefix, domainPrefix := c.keys.prefixes()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, name := range names {
		if c.store.sample.markInvalidated(name) {
			c.requestInspection()
		}
		if user, ok := strings.CutPrefix(name, userPrefix); ok {
			c.invalidateUser(user)
		} else if domain, ok := strings.CutPrefix(name, domainPrefix); ok {
			// A domain without a counter has no entries that depend on it.
			if counter := c.domains[domain]; counter != nil {
				counter.n++
			}
		} else if name == c.keys.deflt() {
			c.defaultChanges.n++
		}
	}
}

func (c *cache) invalidateUser(name string) {
	u, err := c.cfg.Names.Canonicalize(name)
	if err != nil || u.String() != name {
		return // no lookup uses this key
	}
	if e := c.entries[u]; e != nil {
		e.invalidated = true
	}
	// Redis may have replied to a running query before the change.
	if q := c.queries[u]; q != nil {
		q.invalidatedDuring = true
	}
}

// suspectAll marks all entries suspect, because a change may have been missed or all keys were
// flushed. No entry is removed.
func (c *cache) suspectAll() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.epoch++
	c.store.sample.clearInvalidated()
	for _, n := range c.store.sample.nodes {
		n.inspectedAt = time.Time{}
	}
	c.requestInspection()
}

// awaitQueries returns when no query is running.
func (c *cache) awaitQueries() {
	for {
		var open *query
		c.mu.Lock()
		for _, open = range c.queries {
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
