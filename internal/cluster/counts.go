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
)

// Bound is the limit of a count, 0 for none.
type Bound struct {
	Count string
	Limit int
}

// Rate is a token bucket of logins. PerMinute 0 is no limit.
type Rate struct {
	Net              netip.Prefix
	PerMinute, Burst int
}

// Admission is the answer to Enter.
type Admission struct {
	Full       int           // the index of the Bound whose limit is reached; -1: none
	RetryAfter time.Duration // above 0: Rate has no token for so long
}

// count is one count of sessions at this gateway.
type count struct {
	n       int32     // sessions, those that enter included
	pending int32     // of those, sessions whose exchange has not ended
	dirty   bool      // Redis may have another number than n - pending
	retry   bool      // an answer was lost: write it twice, the lost request may still be executed
	written time.Time // when the whole number was
}

// counts are the counts that have sessions or are dirty.
type counts struct {
	// Set once.
	exchanging chan struct{} // has room for the one exchange in progress
	work       chan struct{} // there are dirty counts

	// Guarded by mu.
	mu    sync.Mutex
	all   map[string]*count
	dirty map[string]*count
	queue []*entry
}

// entry is a session that enters, or dirty counts.
type entry struct {
	// Set once.
	bounds []Bound
	add    int32  // 1 for a session, 0 for dirty counts
	rated  bool   // the first of calls takes a token
	calls  []Call // sent along
	done   chan struct{}

	// Guarded by counts.mu.
	admission Admission
	abandoned bool // the login no longer waits, and has been admitted
}

func newCounts() counts {
	return counts{exchanging: make(chan struct{}, 1), work: make(chan struct{}, 1), all: make(map[string]*count), dirty: make(map[string]*count)}
}

// Enter counts a session at all gateways, if no limit is reached, takes a token of r, and
// sends calls, in one round trip. Without an answer the session is counted here, and Redis
// gets it later. Unless Full or RetryAfter are set, Leave ends it.
func (c *Cluster) Enter(ctx context.Context, bounds []Bound, r Rate, calls ...Call) Admission {
	if r.PerMinute > 0 {
		interval := strconv.FormatFloat(60/float64(r.PerMinute), 'f', -1, 64)
		calls = append([]Call{{"rate", []string{c.keys.rate(r.Net)}, []any{max(1, r.Burst), interval}}}, calls...)
	}
	e := &entry{bounds: bounds, add: 1, rated: r.PerMinute > 0, calls: calls, done: make(chan struct{}), admission: Admission{Full: -1}}
	s, isUp := &c.counts, c.allowed(true)
	s.mu.Lock()
	for _, b := range bounds {
		n := s.get(b.Count)
		n.n++
		n.pending++
	}
	s.queue = append(s.queue, e)
	s.mu.Unlock()
	for isUp && !e.isDone() && ctx.Err() == nil {
		select {
		case <-e.done:
		case s.exchanging <- struct{}{}:
			if !e.isDone() {
				c.exchange(ctx)
			}
			<-s.exchanging
		case <-ctx.Done():
		}
	}
	c.abandon(e)
	s.mu.Lock()
	defer s.mu.Unlock()
	return e.admission
}

func (e *entry) isDone() bool {
	select {
	case <-e.done:
		return true
	default:
		return false
	}
}

// get returns a count. It is called with mu held.
func (s *counts) get(name string) *count {
	n := s.all[name]
	if n == nil {
		n = &count{written: time.Now()}
		s.all[name] = n
	}
	return n
}

// exchange sends the sessions that wait, and dirty counts, in one round trip. It is called by
// the goroutine that has put a value into exchanging.
func (c *Cluster) exchange(ctx context.Context) {
	s, head := &c.counts, c.countHead()
	s.mu.Lock()
	entries := s.queue[:min(len(s.queue), exchangeBatch)]
	s.queue = slices.Clone(s.queue[len(entries):])
	var calls []Call
	for _, e := range entries {
		calls = append(c.appendCounts(calls, head, e), e.calls...)
	}
	others := &entry{done: make(chan struct{})} // no one waits for it
	for name := range s.dirty {
		if len(others.bounds) < exchangeBatch {
			others.bounds = append(others.bounds, Bound{name, 0})
		}
	}
	calls, entries = c.appendCounts(calls, head, others), append(entries, others)
	s.mu.Unlock()
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
	if replies == nil {
		replies = make([]*redis.Cmd, len(calls))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range entries {
		n := c.calls(e.bounds) + len(e.calls)
		c.settle(e, replies[:n])
		replies = replies[n:]
		close(e.done)
	}
}

// countHead returns the first arguments of the count script.
func (c *Cluster) countHead() []any {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]any{c.self, c.TTL.Milliseconds(), (believedLeases * c.TTL).Milliseconds(), len(c.alive)}, c.alive...)
}

// calls returns how many calls there are for counts.
func (c *Cluster) calls(bounds []Bound) int { return (len(bounds) + c.batchSize - 1) / c.batchSize }

// appendCounts appends the calls that set dirty counts, and add to them. It is called with
// counts.mu held, and marks them clean.
func (c *Cluster) appendCounts(calls []Call, head []any, e *entry) []Call {
	s := &c.counts
	for some := range slices.Chunk(e.bounds, c.batchSize) {
		call := Call{script: "count", args: slices.Clone(head)}
		for _, b := range some {
			value, n := int32(-1), s.all[b.Count]
			if n.dirty {
				value = n.n - n.pending
				n.dirty, n.written = false, time.Now()
				delete(s.dirty, b.Count)
			}
			call.keys = append(call.keys, c.keys.sessions(b.Count))
			call.args = append(call.args, value, e.add, b.Limit)
		}
		calls = append(calls, call)
	}
	return calls
}

// results of the count script, for each count.
const (
	counted  = iota
	isFull   // its limit is reached
	notAdded // another limit is reached
	notOurs  // the key holds something else
	noAnswer
)

// results returns what Redis did to so many counts. The first replies are about them.
func (c *Cluster) results(n int, replies []*redis.Cmd) []int64 {
	all := slices.Repeat([]int64{noAnswer}, n)
	for i := 0; i*c.batchSize < n; i++ {
		if replies[i] != nil {
			words, _ := replies[i].Int64Slice() // none with an error
			copy(all[i*c.batchSize:], words[:min(len(words), c.batchSize)])
		}
	}
	return all
}

// settle ends the exchange of an entry, with mu held. What Redis has added for a session that is
// refused, or has not for one that was admitted without an answer, is dirty.
func (c *Cluster) settle(e *entry, replies []*redis.Cmd) {
	results := c.results(len(e.bounds), replies)
	if !e.abandoned {
		e.admission.Full = slices.Index(results, isFull)
		if n := c.calls(e.bounds); e.rated && replies[n] != nil {
			wait, _ := replies[n].Int64() // 0 without an answer
			e.admission.RetryAfter = clamp(wait)
		}
	}
	refused := e.admission.Full >= 0 || e.admission.RetryAfter > 0
	for i, b := range e.bounds {
		n := c.counts.all[b.Count]
		if n == nil {
			continue // there was no room for it among the dirty ones
		}
		n.pending -= e.add
		if refused {
			n.n -= e.add
		}
		switch {
		case results[i] == noAnswer:
			n.retry = true
			c.counts.mark(b.Count)
		case e.add > 0 && (e.abandoned || refused == (results[i] == counted)):
			c.counts.mark(b.Count)
		case e.add == 0 && n.retry: // the request without an answer may be executed after this one
			n.retry, n.written = false, time.Time{}
		}
		c.counts.sweep(b.Count)
	}
}

// abandon admits a session that has no answer. One that was not sent yet leaves the queue.
func (c *Cluster) abandon(e *entry) {
	s := &c.counts
	s.mu.Lock()
	defer s.mu.Unlock()
	if e.isDone() {
		return
	}
	e.abandoned = true
	if i := slices.Index(s.queue, e); i >= 0 {
		s.queue = slices.Delete(s.queue, i, i+1)
		c.settle(e, make([]*redis.Cmd, len(e.bounds)))
		close(e.done)
	}
}

// Leave ends a session.
func (c *Cluster) Leave(names ...string) {
	s := &c.counts
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, name := range names {
		n := s.all[name]
		if n == nil || n.n == 0 {
			panic("cluster: a session has left twice")
		}
		n.n--
		s.mark(name)
		s.sweep(name)
	}
}

// mark marks a count as dirty, with mu held.
func (s *counts) mark(name string) {
	s.all[name].dirty = true
	if len(s.dirty) < maxDirty || s.all[name].n > 0 {
		s.dirty[name] = s.all[name]
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
func (s *counts) sweep(name string) {
	if n := s.all[name]; n.n == 0 && n.pending == 0 && s.dirty[name] == nil {
		delete(s.all, name)
	}
}

// renew marks the counts that were not written for an age, 0 for all. Those of one age are
// spread over half of it.
func (s *counts) renew(age time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, n := range s.all {
		if n.n > 0 && time.Since(n.written) >= age/2+rand.N(age/2+1) {
			s.mark(name)
		}
	}
}

// Idle reports whether there is no session here, and nothing to write.
func (c *Cluster) Idle() bool {
	c.counts.mu.Lock()
	defer c.counts.mu.Unlock()
	return len(c.counts.all) == 0
}

// dirtyCount returns how many counts are to be written.
func (s *counts) dirtyCount() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.dirty)
}

// flush writes all dirty counts, and reports whether Redis has them.
func (c *Cluster) flush(ctx context.Context) bool {
	s := &c.counts
	for ctx.Err() == nil && c.allowed(true) {
		if s.dirtyCount() == 0 {
			return true
		}
		select {
		case s.exchanging <- struct{}{}:
			c.exchange(ctx)
			<-s.exchanging
		case <-ctx.Done():
		}
	}
	return false
}

// Sessions returns a count over all gateways.
func (c *Cluster) Sessions(ctx context.Context, name string) (int, error) {
	r, err := c.askOne(ctx, Call{"alive", []string{c.keys.gateways()}, []any{c.TTL.Milliseconds()}})
	if err != nil {
		return 0, err
	}
	alive, err := r.Slice()
	if err != nil {
		return 0, err
	}
	args := append([]any{c.TTL.Milliseconds(), (believedLeases * c.TTL).Milliseconds()}, alive...)
	if r, err = c.askOne(ctx, Call{"sessions", []string{c.keys.sessions(name)}, args}); err != nil {
		return 0, err
	}
	return r.Int()
}
