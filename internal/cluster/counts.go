package cluster

import (
	"context"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"imapgate/internal/limit/counter"
	"imapgate/internal/sleep"
)

// Each count is a hash with a number for each gateway. A session adds one to its gateway's
// number if the sum of all allows it, in one script, so that a fleet admits exactly the limit.
// A gateway has one exchange of counts at a time with Redis, so that its writes arrive in
// order: a session that finds none in progress sends what all sessions wait for. Whatever Redis may
// have wrong, after a session has ended or an answer was lost, is dirty, and the whole number
// is written with the next exchange.
const (
	// believedLeases is the age, in TTLs, at which a number no longer counts although its
	// gateway is alive; renewLeases the age at which it is written again, for what a failover
	// may have lost.
	believedLeases = 25
	renewLeases    = 10
	// countBatch is how many numbers one script writes: Redis does nothing else meanwhile.
	// exchangeBatch is how many numbers, and how many sessions, one exchange has.
	countBatch    = 64
	exchangeBatch = 512
	// maxDirty bounds the counts without sessions that Redis is yet to get. The others are
	// left to their age.
	maxDirty = 64 << 10
	// gather lets sessions that end together be written in one exchange, and a client that
	// reconnects at once find its place free.
	gather = 50 * time.Millisecond
	// heartbeatsPerTTL is how often a gateway reports that it is alive.
	heartbeatsPerTTL = 4
	// signOffTime is how long a gateway that stops waits for the end of its sessions.
	// signOffPause is how often it looks.
	signOffTime  = time.Second
	signOffPause = 10 * time.Millisecond
)

// Rate is a token bucket of logins. PerMinute 0 is no limit.
type Rate struct {
	Net              netip.Prefix
	PerMinute, Burst int
}

// count is one count of sessions at this gateway.
type count struct {
	n       int32     // sessions, those that enter included
	pending int32     // of those, sessions whose exchange has not ended
	isLost  bool      // an answer was lost: write it twice, the lost request may still be executed
	written time.Time // when the whole number was
}

// counts are the counts that have sessions or are dirty.
type counts struct {
	// Set once.
	exchanging chan struct{} // has room for the one exchange in progress
	work       chan struct{} // there are dirty counts

	// Guarded by mu.
	mu    sync.Mutex
	all   map[counter.Key]*count
	dirty map[counter.Key]bool // those of which Redis may have another number than n - pending
	queue []*entry
}

// entry is a session that enters, or dirty counts.
type entry struct {
	// Set once.
	bounds  []counter.Bound
	add     int32  // 1 for a session, 0 for dirty counts
	isRated bool   // the first of calls takes a token
	calls   []Call // sent along
	done    chan struct{}

	// Guarded by counts.mu.
	full       *counter.Bound
	retryAfter time.Duration
	abandoned  bool // the login no longer waits, and has been admitted
}

func newCounts() counts {
	return counts{exchanging: make(chan struct{}, 1), work: make(chan struct{}, 1), all: make(map[counter.Key]*count), dirty: make(map[counter.Key]bool)}
}

// Enter counts a session at all gateways, takes a token of r, and sends calls, in one round
// trip. If a limit is reached it returns that Bound, and if r has no token the time until
// there is one. Otherwise Leave ends the session. Without an answer the session is counted
// here, and Redis gets it later.
func (c *Cluster) Enter(ctx context.Context, bounds []counter.Bound, r Rate, calls ...Call) (full *counter.Bound, retryAfter time.Duration) {
	if r.PerMinute > 0 {
		interval := strconv.FormatFloat(60/float64(r.PerMinute), 'f', -1, 64)
		calls = append([]Call{{"rate", []string{c.keys.rate(r.Net)}, []any{max(1, r.Burst), interval}}}, calls...)
	}
	e := &entry{bounds: bounds, add: 1, isRated: r.PerMinute > 0, calls: calls, done: make(chan struct{})}
	s := &c.counts
	s.mu.Lock()
	for _, b := range bounds {
		if s.all[b.Key] == nil {
			s.all[b.Key] = &count{written: time.Now()}
		}
		s.all[b.Key].n++
		s.all[b.Key].pending++
	}
	s.queue = append(s.queue, e)
	s.mu.Unlock()
	for isUp := c.allowed(true); isUp && !isClosed(e.done) && ctx.Err() == nil; {
		c.exchange(ctx, e.done)
	}
	return c.result(e)
}

func isClosed(done <-chan struct{}) bool {
	select {
	case <-done:
		return true
	default:
		return false
	}
}

// result returns the answer to a session. One without an answer is admitted, and leaves the
// queue if it was not sent yet.
func (c *Cluster) result(e *entry) (full *counter.Bound, retryAfter time.Duration) {
	s := &c.counts
	s.mu.Lock()
	defer s.mu.Unlock()
	if e.abandoned = !isClosed(e.done); !e.abandoned {
		return e.full, e.retryAfter
	}
	if i := slices.Index(s.queue, e); i >= 0 {
		s.queue = slices.Delete(s.queue, i, i+1)
		c.settle(e, nil)
	}
	return e.full, e.retryAfter
}

// exchange sends the sessions that wait, and dirty counts, in one round trip, after the
// exchange in progress. It does nothing if done is closed by that one.
func (c *Cluster) exchange(ctx context.Context, done <-chan struct{}) {
	s := &c.counts
	select {
	case s.exchanging <- struct{}{}:
		defer func() { <-s.exchanging }()
	case <-done:
		return
	case <-ctx.Done():
		return
	}
	if isClosed(done) {
		return
	}
	entries, calls := c.takeWork()
	if len(calls) == 0 {
		return
	}
	all := context.WithoutCancel(ctx)
	if end, ok := ctx.Deadline(); ok { // that of the session which sends; others may wait longer
		var cancel func()
		all, cancel = context.WithDeadlineCause(all, end, ErrBudgetSpent)
		defer cancel()
	}
	replies, _ := c.ask(all, calls...) // each has its own error
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range entries {
		n := c.batches(e.bounds) + len(e.calls)
		c.settle(e, replies[:n])
		replies = replies[n:]
	}
}

// takeWork returns the next sessions that wait, an entry of dirty counts, and the calls of all.
func (c *Cluster) takeWork() (entries []*entry, calls []Call) {
	c.mu.Lock()
	head := append([]any{c.self, c.TTL.Milliseconds(), (believedLeases * c.TTL).Milliseconds(), len(c.alive)}, c.alive...)
	c.mu.Unlock()
	s := &c.counts
	s.mu.Lock()
	defer s.mu.Unlock()
	n := min(len(s.queue), exchangeBatch)
	entries = slices.Clone(s.queue[:n])
	s.queue = slices.Delete(s.queue, 0, n)
	for _, e := range entries {
		calls = append(c.appendCounts(calls, head, e), e.calls...)
	}
	rest := &entry{done: make(chan struct{})} // no session waits for it
	for key := range s.dirty {
		if len(rest.bounds) < exchangeBatch {
			rest.bounds = append(rest.bounds, counter.Bound{Key: key})
		}
	}
	return append(entries, rest), c.appendCounts(calls, head, rest)
}

// batches returns how many calls there are for bounds.
func (c *Cluster) batches(bounds []counter.Bound) int {
	return (len(bounds) + c.batchSize - 1) / c.batchSize
}

// appendCounts appends the calls that set dirty counts, and add to them. It is called with
// counts.mu held, and marks them clean. A count whose answer was lost is renewed with the next
// heartbeat.
func (c *Cluster) appendCounts(calls []Call, head []any, e *entry) []Call {
	s := &c.counts
	for some := range slices.Chunk(e.bounds, c.batchSize) {
		call := Call{script: "count", args: slices.Clone(head)}
		for _, b := range some {
			value, n := int32(-1), s.all[b.Key]
			if s.dirty[b.Key] {
				value, n.written = n.n-n.pending, time.Now()
				if n.isLost {
					n.isLost, n.written = false, time.Time{}
				}
				delete(s.dirty, b.Key)
			}
			call.keys = append(call.keys, c.keys.sessions(b.Key))
			call.args = append(call.args, value, e.add, b.Limit)
		}
		calls = append(calls, call)
	}
	return calls
}

// results of the count script, for each count. There are others: another limit is reached, or
// the key holds something else.
const (
	counted  = 0
	isFull   = 1 // its limit is reached
	noAnswer = -1
)

// settle ends the exchange of an entry, with mu held. What Redis has added for a session that is
// refused, or has not for one that was admitted without an answer, is dirty.
func (c *Cluster) settle(e *entry, replies []*redis.Cmd) {
	defer close(e.done)
	s, results, batches := &c.counts, slices.Repeat([]int64{noAnswer}, len(e.bounds)), c.batches(e.bounds)
	for i, r := range replies[:min(batches, len(replies))] {
		words, _ := r.Int64Slice() // none with an error
		copy(results[i*c.batchSize:], words)
	}
	if i := slices.Index(results, isFull); i >= 0 && !e.abandoned {
		e.full = &e.bounds[i]
	}
	if e.isRated && !e.abandoned {
		wait, _ := replies[batches].Int64() // 0 without an answer
		e.retryAfter = clamp(wait)
	}
	refused := e.full != nil || e.retryAfter > 0
	for i, b := range e.bounds {
		n := s.all[b.Key]
		if n == nil {
			continue // there was no room for it among the dirty ones
		}
		n.pending -= e.add
		if refused {
			n.n -= e.add
		}
		n.isLost = n.isLost || results[i] == noAnswer
		if results[i] == noAnswer || e.add > 0 && (e.abandoned || refused == (results[i] == counted)) {
			s.mark(b.Key)
		}
		s.sweep(b.Key)
	}
}

// Leave ends a session.
func (c *Cluster) Leave(bounds []counter.Bound) {
	s := &c.counts
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, b := range bounds {
		n := s.all[b.Key]
		if n == nil || n.n == 0 {
			panic("cluster: a session has left twice")
		}
		n.n--
		s.mark(b.Key)
		s.sweep(b.Key)
	}
}

// mark marks a count as dirty, with mu held.
func (s *counts) mark(key counter.Key) {
	if len(s.dirty) < maxDirty || s.all[key].n > 0 {
		s.dirty[key] = true
	}
	s.wake()
}

// wake has dirty counts written.
func (s *counts) wake() {
	select {
	case s.work <- struct{}{}:
	default: // it is known
	}
}

// sweep forgets a count without sessions that Redis has, with mu held.
func (s *counts) sweep(key counter.Key) {
	if n := s.all[key]; n.n == 0 && n.pending == 0 && !s.dirty[key] {
		delete(s.all, key)
	}
}

// renew marks the counts that were not written for an age, 0 for all. Those of one age are
// spread over half of it.
func (s *counts) renew(age time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, n := range s.all {
		if n.n > 0 && time.Since(n.written) >= age/2+rand.N(age/2+1) {
			s.mark(key)
		}
	}
}

// Idle reports whether there is no session here, and nothing to write.
func (c *Cluster) Idle() bool {
	c.counts.mu.Lock()
	defer c.counts.mu.Unlock()
	return len(c.counts.all) == 0
}

// writeCounts writes dirty counts as soon as there are any, and those that could not be
// written with the next heartbeat. It ends with ctx.
func (c *Cluster) writeCounts(ctx context.Context) {
	for ctx.Err() == nil {
		select {
		case <-c.counts.work:
		case <-ctx.Done():
			return
		}
		if pause(ctx, gather) {
			c.flush(ctx)
		}
	}
}

// flush writes all dirty counts, and reports whether Redis has them.
func (c *Cluster) flush(ctx context.Context) bool {
	s := &c.counts
	for ctx.Err() == nil && c.allowed(true) {
		s.mu.Lock()
		left := len(s.dirty)
		s.mu.Unlock()
		if left == 0 {
			return true
		}
		c.exchange(ctx, nil)
	}
	return false
}

// Run sends heartbeats, writes counts, follows the bans of other gateways and operators, and
// probes a Redis that has failed, until ctx ends.
func (c *Cluster) Run(ctx context.Context) {
	var all sync.WaitGroup
	all.Go(func() { repeat(ctx, c.TTL/heartbeatsPerTTL, c.heartbeat) })
	all.Go(func() { repeat(ctx, probeInterval, c.heal) })
	all.Go(func() { c.writeCounts(ctx) })
	all.Go(func() { c.followBans(ctx) })
	all.Wait()
}

// repeat runs f every interval until ctx ends.
func repeat(ctx context.Context, interval time.Duration, f func(context.Context)) {
	for ok := ctx.Err() == nil; ok; ok = pause(ctx, interval) {
		f(ctx)
	}
}

// pause waits for d, a fifth more or less, so that gateways do not act together. It reports
// whether ctx has not ended.
func pause(ctx context.Context, d time.Duration) bool {
	return sleep.For(ctx, d*4/5+rand.N(d*2/5+1)) == nil
}

// heartbeat reports that this gateway is alive, and learns which others are. If Redis had
// forgotten this one, all counts are written.
func (c *Cluster) heartbeat(ctx context.Context) {
	words, err := c.run(ctx, Call{"heartbeat", []string{c.keys.gateways()}, []any{c.self, c.TTL.Milliseconds()}}).Slice()
	if err != nil || len(words) == 0 {
		return
	}
	c.mu.Lock()
	c.alive, c.fleet = words[1:], len(words)
	c.mu.Unlock()
	age := renewLeases * c.TTL
	if words[0] == int64(0) {
		age = 0
	}
	c.counts.renew(age)
	c.counts.wake() // also for what could not be written before
}

// Sessions returns a count over all gateways.
func (c *Cluster) Sessions(ctx context.Context, of counter.Key) (int, error) {
	alive, err := c.run(ctx, Call{"alive", []string{c.keys.gateways()}, []any{c.TTL.Milliseconds()}}).Slice()
	if err != nil {
		return 0, err
	}
	args := append([]any{c.TTL.Milliseconds(), (believedLeases * c.TTL).Milliseconds()}, alive...)
	return c.run(ctx, Call{"sessions", []string{c.keys.sessions(of)}, args}).Int()
}

// SignOff follows Run when the gateway stops. It waits for the last sessions to leave, for at
// most signOffTime, and removes this gateway: otherwise they would count at the others for a
// TTL, to which all of its clients connect at once.
func (c *Cluster) SignOff() {
	ctx, cancel := context.WithTimeout(context.Background(), signOffTime)
	defer cancel()
	for c.flush(ctx) && !c.Idle() && pause(ctx, signOffPause) {
		continue
	}
	c.run(context.Background(), Call{"signoff", []string{c.keys.gateways()}, []any{c.self}}) // otherwise after a TTL
}
