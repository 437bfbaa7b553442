package limit

import (
	"context"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/go-redis/redis_rate/v10"
	"github.com/redis/go-redis/v9"

	"imapgate/internal/event"
	"imapgate/internal/identity"
	"imapgate/internal/sleep"
)

// How gateways count together. At each shared place Redis has a number of each
// gateway. Who enters adds one if the limit allows, who leaves takes one away, and
// when a reply did not come the whole number is written, once nothing else is
// flying. Every message has a version that grows, so that one which was overtaken
// can be told: what was flying before a whole number was written is void, and a
// whole number that something has overtaken is written again.
//
// A number counts as long as its gateway is alive, for which the gateway says so
// in one place (beat), not at each of its sessions. Every number is written anew
// now and then, for what a failover may have lost.
const (
	// beatsPerLease is how often a gateway says that it is alive.
	beatsPerLease = 4
	// renewLeases is the age, in leases, at which a number is written again.
	renewLeases = 10
	// believedLeases is the age, in leases, beyond which nobody believes it.
	believedLeases = 25
	// flushBatch is how many places are written at once.
	flushBatch = 500
	// leaseBatch is how many of them one script writes: while it runs, Redis does
	// nothing else.
	leaseBatch = 64
	// gather lets sessions that end together be told of in one trip, and those
	// that begin again at once not at all.
	gather = 50 * time.Millisecond
	// flushPause is between batches, so that a gateway which registers all of
	// its sessions again leaves Redis to others.
	flushPause = 20 * time.Millisecond
)

// note is what Redis is told of a place.
type note struct {
	place
	whole   bool // n is the whole number, not what is added to it
	n       int32
	limit   int // 0 is none
	version int64
}

// notes are those of a session that enters. With it goes what others have left that
// Redis has not been told of: who comes back at once finds the room it has made.
func (p *places) notes(want []bounded) []note {
	p.mu.Lock()
	defer p.mu.Unlock()
	notes := make([]note, len(want))
	for i, b := range want {
		h := p.held[b.place]
		p.version++
		notes[i] = note{b.place, false, 1 - h.owed, b.limit, p.version}
		if h.owed = 0; !h.unsure {
			delete(p.dirty, b.place)
		}
	}
	return notes
}

// batch takes some of what there is to tell. A place of which the whole number is
// to be told, while something about it is flying, stays on the list.
func (p *places) batch() (notes []note) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for at, h := range p.dirty {
		if len(notes) == flushBatch {
			break
		}
		if h.unsure && h.flying > 0 {
			continue
		}
		p.version++
		n := note{at, h.unsure, -h.owed, 0, p.version}
		if h.unsure {
			n.n = h.n
		}
		h.unsure, h.owed = false, 0
		h.flying++
		delete(p.dirty, at)
		notes = append(notes, n)
	}
	return notes
}

// told ends what batch began.
func (p *places) told(notes []note, said []outcome, t time.Duration) (dirty bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, n := range notes {
		h := p.held[n.place]
		h.flying--
		switch {
		case said[i] != granted:
			h.unsure = true
		case n.whole:
			h.settled = t
		}
		dirty = p.sweep(n.place, h) || dirty
	}
	return dirty
}

// renew has the whole number told of all that was not for an age; those of one
// age are spread over half of it. An age of 0 is everything.
func (p *places) renew(age, t time.Duration) (dirty bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for at, h := range p.held {
		if at.kind.shared() && h.n > 0 && t-h.settled >= age/2+rand.N(age/2+1) {
			h.unsure = true
			dirty = p.sweep(at, h) || dirty
		}
	}
	return dirty
}

// leaseCalls are the script that takes notes down, for as many places at once as
// Redis can look at together.
func (s *shared) leaseCalls(notes []note) []call {
	s.mu.Lock()
	from := s.from
	s.mu.Unlock()
	calls := make([]call, 0, len(notes)/s.together+1)
	for some := range slices.Chunk(notes, s.together) {
		keys, args := make([]string, len(some)), make([]any, 0, len(from)+4*len(some))
		args = append(args, from...)
		for i, n := range some {
			keys[i] = s.keys.sessions(n.place)
			args = append(args, n.n, n.version, n.whole, n.limit)
		}
		calls = append(calls, call{s.scripts.lease, keys, args})
	}
	return calls
}

// outcomes are what Redis said of as many notes: leaseCalls has put so many of them
// together in each reply.
func (s *shared) outcomes(n int, replies []*redis.Cmd) []outcome {
	said := slices.Repeat([]outcome{unheard}, n)
	for i := 0; i < len(replies) && i*s.together < n; i++ {
		words, _ := replies[i].Int64Slice() // none with an error
		for k, w := range words[:min(len(words), s.together, n-i*s.together)] {
			said[i*s.together+k] = outcome(w)
		}
	}
	return said
}

// lease takes the places of a session from all gateways together, remembers
// where the user is, and asks whether the address comes too often: in one trip.
// When there is no answer the local limits, which have been asked, are all.
func (g *Limiter) lease(ctx context.Context, v *Conn, u identity.User, want []bounded) *Refusal {
	s := g.shared
	if s == nil {
		g.places.landed(want)
		return nil
	}
	notes := g.places.notes(want)
	calls := s.leaseCalls(notes)
	if !v.exempt {
		calls = append(calls, g.goodCalls(u, v.addr)...)
	}
	replies, rated := s.askRated(ctx, v, calls)
	said := s.outcomes(len(want), replies)
	var no *Refusal
	if i := slices.Index(said, denied); i >= 0 {
		no = want[i].refusal()
	} else if rated != nil && rated.Allowed == 0 {
		no = &Refusal{Reason: event.LimitConnectionRate, Net: home(v.addr), RetryAfter: rated.RetryAfter}
	}
	if no != nil {
		no.Shared = true
	}
	dirty := g.places.settle(notes, said, no == nil)
	if dirty && no != nil { // at once: who is refused over and over must not fill other places
		g.write(ctx, g.places.batch())
	}
	if dirty {
		s.wake()
	}
	return no
}

// askRated asks, and with it whether the address comes too often.
func (s *shared) askRated(ctx context.Context, v *Conn, calls []call) ([]*redis.Cmd, *redis_rate.Result) {
	if v.exempt || v.limits.NewPerMinute == 0 {
		replies, _ := s.ask(ctx, calls...) // each has its own error
		return replies, nil
	}
	limit := redis_rate.Limit{Rate: v.limits.NewPerMinute, Burst: max(1, v.limits.NewBurst), Period: time.Minute}
	var rated *redis_rate.Result
	key := s.keys.rate(home(v.addr))
	replies, _ := s.trip(ctx, true, func(ctx context.Context) ([]*redis.Cmd, error) {
		with := &rider{shared: s, calls: calls}
		var err error
		rated, err = redis_rate.NewLimiter(with).Allow(ctx, key, limit)
		if with.err == nil && err != nil {
			with.err = (*trouble)(nil).add(key, err)
		}
		return with.replies, with.err
	})
	return replies, rated
}

// rider is Redis as redis_rate sees it: what that asks goes out in one trip with
// the calls.
type rider struct {
	redis.Scripter // nothing else of it is asked
	shared         *shared
	calls          []call

	// Filled by EvalSha.
	replies []*redis.Cmd
	err     error
}

// ridden is the prefix that redis_rate puts before every key.
const ridden = "rate:"

// EvalSha sends everything.
func (r *rider) EvalSha(ctx context.Context, sha string, keys []string, args ...any) *redis.Cmd {
	pipe := r.shared.client.Pipeline()
	rate := pipe.EvalSha(ctx, sha, own(keys), args...)
	r.replies, r.err = r.shared.send(ctx, pipe, r.calls)
	return rate
}

// Eval is for a server that does not know the script.
func (r *rider) Eval(ctx context.Context, script string, keys []string, args ...any) *redis.Cmd {
	return r.shared.client.Eval(ctx, script, own(keys), args...)
}

// Del is not used: nothing is reset.
func (r *rider) Del(ctx context.Context, keys ...string) *redis.IntCmd {
	return r.shared.client.Del(ctx, own(keys)...)
}

func own(keys []string) []string {
	made := make([]string, len(keys))
	for i, k := range keys {
		made[i] = strings.TrimPrefix(k, ridden)
	}
	return made
}

// beat says every now and then that this gateway is alive, and learns who else is;
// it ends with ctx. When Redis had forgotten this gateway it is told everything
// again.
func (g *Limiter) beat(ctx context.Context) {
	for ctx.Err() == nil {
		g.beatOnce(ctx)
		_ = sleep.For(ctx, jitter(g.shared.lease/beatsPerLease))
	}
}

func (g *Limiter) beatOnce(ctx context.Context) {
	s := g.shared
	r, err := s.ask(ctx, call{s.scripts.beat, []string{s.keys.gateways()}, []any{s.self, s.lease.Milliseconds()}})
	if err == nil {
		g.hear(r[0])
	}
}

// hear takes the answer to a beat in.
func (g *Limiter) hear(reply *redis.Cmd) {
	s := g.shared
	words, err := reply.Slice()
	if err != nil || len(words) == 0 {
		return
	}
	from := s.leaseOf(words[1:]...)
	s.mu.Lock()
	s.from, s.alive = from, len(words)
	s.mu.Unlock()
	age := renewLeases * s.lease
	if words[0] == int64(0) {
		age = 0
	}
	g.places.renew(age, g.now())
	s.wake() // also for what could not be written before
}

// flush writes what there is to write as soon as there is; it ends with ctx. What
// cannot be written waits for the next beat.
func (g *Limiter) flush(ctx context.Context) {
	s := g.shared
	for ctx.Err() == nil {
		select {
		case <-s.work:
		case <-ctx.Done():
		}
		_ = sleep.For(ctx, gather)
		for ctx.Err() == nil { // else what is left is for farewell
			notes := g.places.batch()
			if len(notes) == 0 || !g.write(ctx, notes) {
				break
			}
			if len(notes) == flushBatch {
				_ = sleep.For(ctx, jitter(flushPause))
			}
		}
	}
}

// write writes notes down, and says whether any of them was heard: what was not is
// written again. Refused are whole numbers that were overtaken.
func (g *Limiter) write(ctx context.Context, notes []note) bool {
	if len(notes) == 0 {
		return true
	}
	replies, _ := g.shared.ask(ctx, g.shared.leaseCalls(notes)...) // each has its own error
	said := g.shared.outcomes(len(notes), replies)
	g.places.told(notes, said, g.now())
	return slices.ContainsFunc(said, func(o outcome) bool { return o != unheard })
}
