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
	maxUserEntries   = 100_000 // users with a record of their own
	maxSharedEntries = 50_000  // users known by their domain, the default or not at all
	maxDomains       = 10_000  // domains
	maxQueries       = 1_024   // questions to Redis at a time, each for one user

	// queryTimeout bounds one question, so that a client whose route is unknown hears
	// so within a second.
	queryTimeout = 800 * time.Millisecond
	// staleGrace is how long a client whose last good answer may well be right
	// waits for a newer one.
	staleGrace = 40 * time.Millisecond
	// confirmDelay lies between the two looks that make a record's disappearance
	// believed when Redis did not name the record.
	confirmDelay = 5 * time.Second
	// revalidationRate bounds the questions per second that only confirm an answer whose
	// time is not over, so that Redis is not overrun when it comes back.
	revalidationRate = 200
)

// errBusy is the answer beyond maxQueries.
var errBusy = errors.New("too many questions to Redis at a time")

// errBreakerOpen is the answer while the breaker is open.
var errBreakerOpen = errors.New("no answer from Redis lately, so it is left alone")

// cache remembers answers, and asks for them when it must.
type cache struct {
	// Set once.
	cfg              Config
	keys             keys
	reader           recordReader
	log              *zap.Logger
	inspectNow       chan struct{} // watch has to look
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
	trial          *query    // the question that is tried while Redis is left alone, until it is decided
	waiting        int       // lookups that wait for that; at most breaker.MaxWaiting
	snapshotDirty  bool      // something the snapshot should have
	lastWarning    time.Time // when a record was last complained about

	// Guarded by mu: whether Redis has the records it had.
	sample           sample
	hasLookups       bool       // somebody has asked for a record
	acceptance       acceptance // the operator's last word
	acceptedAt       time.Time  // when it came; zero: it is older than this process
	acceptanceRead   bool       // Redis has been asked for it
	absenceTrustedAt time.Time  // of what was learned before, the absence is believed
	lossAcceptedBy   string     // whose word ended the last loss
}

// query is one question to Redis, shared by all who ask about one user
// meanwhile, and by nobody who asks about another.
type query struct {
	// Set once.
	user              identity.User
	versions          versions
	invalidatedBefore bool // Redis had named the deciding record before the question
	done              chan struct{}

	// Guarded by the cache's mu.
	invalidatedDuring bool // Redis named the user's key while the question was open

	// Owned by fetch until done is closed.
	resolution resolution
	err        error
}

func newCache(cfg Config, reader recordReader, log *zap.Logger) *cache {
	return &cache{
		cfg: cfg, keys: keys{cfg.Prefix}, reader: reader, log: log, inspectNow: make(chan struct{}, 1), sample: newSample(),
		revalidations:    rate.NewLimiter(revalidationRate, revalidationRate),
		maxUserEntries:   maxUserEntries,
		maxSharedEntries: maxSharedEntries,
		entries:          make(map[identity.User]*entry),
		queries:          make(map[identity.User]*query),
		domains:          make(map[string]*changeCounter),
	}
}

// get gives the answer for u: the one remembered while it is fresh, else what
// Redis says, else the last good one, else ErrUnavailable. Without any it waits
// beside the question by which Redis is tried, within the time of one.
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

// tryGet is get, but for the wait beside a probe: one to wait for is returned.
func (c *cache) tryGet(ctx context.Context, u identity.User) (trial *query, res resolution, err error) {
	now := time.Now()
	c.mu.Lock()
	e := c.entries[u]
	level := c.freshnessOf(e, now)
	if level == entryFresh {
		e.list.MoveToFront(e.elem)
		res := e.toResolution(OriginCache, now)
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
	case ok && level != entryInvalidated:
		res, err = q.awaitOrStale(ctx, last)
	default:
		res, err = q.await(ctx)
	}
	return trial, res, err
}

// joinQuery finds the open question about u or opens one; an error says why not.
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

// runQuery asks Redis one question. It ends within queryTimeout. It does not end with a
// caller's ctx: others may wait for the same answer, and a command cut short
// costs its connection.
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

// await waits for the answer; when ctx ends first, the others go on waiting.
func (q *query) await(ctx context.Context) (resolution, error) {
	select {
	case <-q.done:
		return q.resolution, q.err
	case <-ctx.Done():
		return resolution{}, unavailable(ctx.Err())
	}
}

// awaitOrStale prefers a new answer to last, but not for long.
func (q *query) awaitOrStale(ctx context.Context, last resolution) (resolution, error) {
	grace := time.NewTimer(staleGrace)
	defer grace.Stop()
	select {
	case <-q.done:
		return q.resolution, q.err
	case <-grace.C:
		return last, nil
	case <-ctx.Done():
		return resolution{}, unavailable(ctx.Err())
	}
}

// recordReply takes in what Redis said and gives what the waiting lookups hear.
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
	if c.canServe(e, now) && d.rank() < e.decision.rank() && !q.invalidatedBefore && !e.learnedAt.Before(c.absenceTrustedAt) && !c.confirmAbsence(e, now) {
		c.retain(q, e, e.missingSince.Add(confirmDelay))
		c.warn("route record is gone and Redis did not name it; kept until that is confirmed",
			zap.Stringer("user", q.user), zap.String("key", e.decision.key))
		return e.toResolution(OriginStale, now), nil
	}
	if e == nil {
		e = &entry{user: q.user}
	}
	if e.decision != d || e.fromDisk || now.Sub(e.learnedAt) > c.cfg.Stale/100 {
		c.snapshotDirty = true
	}
	*e = entry{
		user: q.user, decision: d, list: e.list, elem: e.elem,
		learnedAt: now, expiresAt: now.Add(c.freshFor(d)), invalidated: q.invalidatedDuring, versions: q.versions,
	}
	c.insert(e)
	return e.toResolution(OriginRedis, now), nil
}

// retain keeps e against what Redis says, until it is time to ask again.
func (c *cache) retain(q *query, e *entry, until time.Time) {
	e.retained, e.versions, e.invalidated, e.expiresAt = true, q.versions, q.invalidatedDuring, until
}

// confirmAbsence notes that e's record was seen missing and says whether that was
// twice now, confirmDelay apart.
func (c *cache) confirmAbsence(e *entry, now time.Time) bool {
	if e.missingSince.IsZero() {
		e.missingSince = now
	}
	return now.Sub(e.missingSince) >= confirmDelay
}

// recordError falls back to the last good answer.
func (c *cache) recordError(q *query, e *entry, err error) (resolution, error) {
	now := time.Now()
	last, ok := c.lastGood(e, now)
	var reply redis.Error // anybody can ask for the key that gets one
	switch {
	case !errors.Is(err, errInvalidRecord) && errors.As(err, &reply):
		c.breaker.RecordSuccess()
	case !errors.Is(err, errInvalidRecord):
		c.breaker.RecordFailure(now)
	default:
		c.breaker.RecordSuccess()
		c.warn("route record refused", zap.Stringer("user", q.user), zap.Error(err))
		if ok {
			c.retain(q, e, now.Add(c.cfg.Negative))
		}
	}
	if ok {
		return last, nil
	}
	return resolution{}, unavailable(err)
}

// warn tells the operator about a record, at most once a second: a client can ask
// as often as it likes.
func (c *cache) warn(msg string, fields ...zap.Field) {
	if now := time.Now(); now.Sub(c.lastWarning) >= time.Second {
		c.lastWarning = now
		c.log.Warn(msg, fields...)
	}
}

// lastGood is the answer that stands in while Redis gives none.
func (c *cache) lastGood(e *entry, now time.Time) (resolution, bool) {
	if !c.canServe(e, now) {
		return resolution{}, false
	}
	return e.toResolution(OriginStale, now), true
}

// toResolution copies the answer of e for a caller.
func (e *entry) toResolution(origin Origin, now time.Time) resolution {
	switch {
	case e.fromDisk:
		origin = OriginSnapshot
	case e.retained:
		origin = OriginStale
	}
	return resolution{decision: e.decision, origin: origin, age: now.Sub(e.learnedAt), fromDisk: e.fromDisk}
}

// awaitQueries returns when no question is open.
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
