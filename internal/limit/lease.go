package limit

import (
	"context"
	"math/rand/v2"
	"net/netip"
	"strings"
	"time"

	"github.com/go-redis/redis_rate/v10"
	"github.com/redis/go-redis/v9"

	"imapgate/internal/identity"
)

// How gateways count together. At each shared place Redis has a number of each
// gateway; a gateway writes its own, whole, with a version that grows, so that
// nothing is lost or counted twice by a reply that did not come. A number counts as
// long as its gateway is alive, for which the gateway says so in one place
// (beat), not at each of its sessions. Every number is written again now and then,
// for what a failover may have lost.
const (
	// beatsPerLease is how often a gateway says that it is alive.
	beatsPerLease = 4
	// renewLeases is the age, in leases, at which a number is written again.
	renewLeases = 10
	// believedLeases is the age, in leases, beyond which nobody believes it.
	believedLeases = 25
	// flushBatch is how many places are written at once.
	flushBatch = 500
	// flushPause is between batches, so that a gateway which registers all of
	// its sessions again leaves Redis to others.
	flushPause = 20 * time.Millisecond
)

// note is a number, as Redis is to be told of it.
type note struct {
	place
	n       int32
	version uint64
}

// tell makes notes of places, with mu held. The notes are written from now on.
func (p *places) tell(at place, h *held, t time.Duration) note {
	p.version++
	h.version, h.wrote = p.version, int64(t)
	return note{at, h.n, p.version}
}

// notes are those of the places of one session.
func (p *places) notes(want []bounded, t time.Duration) []note {
	p.mu.Lock()
	defer p.mu.Unlock()
	notes := make([]note, len(want))
	for i, b := range want {
		notes[i] = p.tell(b.place, p.held[b.place], t)
	}
	return notes
}

// unsure notes that nobody knows what Redis has.
func (p *places) unsure(notes []note) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, n := range notes {
		h := p.held[n.place]
		if h == nil { // all have left, and Redis may not know
			h = &held{version: n.version}
			p.held[n.place] = h
		}
		p.soil(n.place, h)
		if h.n == 0 && !h.dirty { // there was no room to remember it
			delete(p.held, n.place)
		}
	}
}

// batch takes some of the dirty places.
func (p *places) batch(t time.Duration) (notes []note) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for at, h := range p.dirty {
		if len(notes) == flushBatch {
			break
		}
		notes = append(notes, p.tell(at, h, t))
		delete(p.dirty, at)
		h.dirty = false
		if h.n == 0 {
			delete(p.held, at)
		}
	}
	return notes
}

// renew makes dirty what was not written for an age; 0 is everything. Those of
// one age are spread over half of it.
func (p *places) renew(age, t time.Duration) (some bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for at, h := range p.held {
		if at.kind.shared() && h.n > 0 && t-time.Duration(h.wrote) >= age/2+rand.N(age/2+1) {
			p.soil(at, h)
			some = true
		}
	}
	return some
}

// leaseCall is the call that writes a note. A limit of 0 is none.
func (s *shared) leaseCall(n note, limit int) call {
	args := []any{s.self, n.n, n.version, limit, s.lease.Milliseconds(), (believedLeases * s.lease).Milliseconds()}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range s.live {
		args = append(args, id)
	}
	return call{s.scripts.lease, []string{s.keys.sessions(n.place)}, args}
}

// lease takes the places of a session from all gateways together, remembers
// where the user is, and asks whether the address comes too often: in one trip.
// When there is no answer the local limits, which have been asked, are all.
func (g *Gate) lease(ctx context.Context, v *Visit, u identity.User, want []bounded) *Refusal {
	s := g.shared
	if s == nil {
		return nil
	}
	notes := g.places.notes(want, g.now())
	calls := make([]call, 0, len(want)+3)
	for i, n := range notes {
		calls = append(calls, s.leaseCall(n, want[i].limit))
	}
	if !v.exempt {
		calls = append(calls, g.goodCalls(pair{u, near(v.addr)})...)
	}
	replies, rated, err := s.askRated(ctx, v, calls)
	if err != nil {
		g.places.unsure(notes)
		s.wake()
		return nil
	}
	for i, b := range want {
		if ok, err := replies[i].Int(); err == nil && ok == 0 {
			r := b.refusal()
			r.Shared = true
			return r
		}
	}
	if rated != nil && rated.Allowed == 0 {
		return &Refusal{Reason: ConnectionRate, Net: home(v.addr), Wait: rated.RetryAfter, Shared: true}
	}
	return nil
}

// askRated asks, and with it whether the address comes too often.
func (s *shared) askRated(ctx context.Context, v *Visit, calls []call) ([]*redis.Cmd, *redis_rate.Result, error) {
	if v.exempt || v.settings.NewPerMinute == 0 {
		replies, err := s.ask(ctx, calls...)
		return replies, nil, err
	}
	limit := redis_rate.Limit{Rate: v.settings.NewPerMinute, Burst: max(1, v.settings.NewBurst), Period: time.Minute}
	var rated *redis_rate.Result
	replies, err := s.trip(ctx, func(ctx context.Context) ([]*redis.Cmd, error) {
		with := &rider{shared: s, calls: calls}
		var err error
		rated, err = redis_rate.NewLimiter(with).Allow(ctx, s.keys.rate(home(v.addr)), limit)
		if err == nil {
			err = with.err
		}
		return with.replies, err
	})
	return replies, rated, err
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

// goodCalls tell everybody where a user is, if they do not know.
func (g *Gate) goodCalls(at pair) []call {
	t, s := g.now(), g.shared
	if !g.good.stale(at, t) {
		return nil
	}
	keep := g.cfg.Failures.KnownFor.Milliseconds()
	return []call{
		{s.scripts.good, []string{s.keys.good(at.user)}, []any{at.net.String(), keep}},
		{s.scripts.good, []string{s.keys.lived(at.net)}, []any{"", keep}},
	}
}

// known asks whether a user is known in a network, and remembers it.
func (g *Gate) known(ctx context.Context, at pair) bool {
	s := g.shared
	if s == nil || at.user.IsZero() {
		return false
	}
	keep := g.cfg.Failures.KnownFor.Milliseconds()
	r, err := s.ask(ctx, call{s.scripts.known, []string{s.keys.good(at.user)}, []any{at.net.String(), keep}})
	if err != nil {
		return false
	}
	if yes, err := r[0].Int(); err != nil || yes == 0 {
		return false
	}
	g.good.note(at, g.now())
	return true
}

// beat says every now and then that this gateway is alive, and learns who else is;
// it ends with ctx. When Redis had forgotten this gateway it is told everything
// again.
func (g *Gate) beat(ctx context.Context) {
	s := g.shared
	for ctx.Err() == nil {
		r, err := s.ask(ctx, call{s.scripts.beat, []string{s.keys.gateways()}, []any{s.self, s.lease.Milliseconds()}})
		if err == nil {
			g.hear(r[0])
		}
		_ = sleep(ctx, jitter(s.lease/beatsPerLease))
	}
}

// hear takes the answer to a beat in.
func (g *Gate) hear(reply *redis.Cmd) {
	s := g.shared
	words, err := reply.Slice()
	if err != nil || len(words) == 0 {
		return
	}
	live := make([]string, 0, len(words)-1)
	for _, w := range words[1:] {
		if id, ok := w.(string); ok {
			live = append(live, id)
		}
	}
	s.mu.Lock()
	s.live = live
	s.mu.Unlock()
	age := renewLeases * s.lease
	if words[0] == int64(0) {
		age = 0
	}
	if g.places.renew(age, g.now()) {
		s.wake()
	}
}

// flush writes the dirty places as they become so; it ends with ctx. What cannot be
// written waits for the next beat.
func (g *Gate) flush(ctx context.Context) {
	s := g.shared
	retry := time.NewTicker(s.lease / beatsPerLease)
	defer retry.Stop()
	for ctx.Err() == nil {
		notes := g.places.batch(g.now())
		if len(notes) > 0 && g.write(ctx, notes) {
			if len(notes) == flushBatch {
				_ = sleep(ctx, jitter(flushPause))
			}
			continue
		}
		if len(notes) == 0 {
			select {
			case <-s.work:
			case <-ctx.Done():
			}
			continue
		}
		select {
		case <-retry.C:
		case <-ctx.Done():
		}
	}
}

// write writes notes down, and says whether that worked.
func (g *Gate) write(ctx context.Context, notes []note) bool {
	s := g.shared
	calls := make([]call, len(notes))
	for i, n := range notes {
		calls[i] = s.leaseCall(n, 0)
	}
	_, err := s.ask(ctx, calls...)
	if err != nil {
		g.places.unsure(notes)
	}
	return err == nil
}

// failedEverywhere counts a failure at all gateways, and gives what there is.
func (g *Gate) failedEverywhere(ctx context.Context, at pair, addr netip.Addr, known bool) (all tally, ok bool) {
	s := g.shared
	if s == nil {
		return all, false
	}
	calls := g.failedCalls(at, addr, 1)
	if !at.user.IsZero() && known {
		calls[tiers].args[0] = 0 // as failedUser has it
	}
	r, err := s.ask(ctx, calls...)
	if err != nil {
		return all, false
	}
	return tallyOf(r), true
}

// failedCalls are the calls that add to what is known of failures: the tiers, and
// of somebody the user and the pair.
func (g *Gate) failedCalls(at pair, addr netip.Addr, add int) []call {
	s := g.shared
	minute, ban := time.Minute.Milliseconds(), g.cfg.Failures.BanWithin.Milliseconds()
	calls := make([]call, 0, tiers+2)
	for i := range tiers {
		calls = append(calls, call{s.scripts.failed, []string{s.keys.failedNet(tier(addr, i))}, []any{add, minute, ban, day.Milliseconds()}})
	}
	if at.user.IsZero() {
		return calls
	}
	return append(calls,
		call{s.scripts.failed, []string{s.keys.failedUser(at.user)}, []any{add, hour.Milliseconds(), day.Milliseconds()}},
		call{s.scripts.failed, []string{s.keys.failedPair(at)}, []any{add, hour.Milliseconds()}},
	)
}

// tallyOf reads the replies to failedCalls. A reply that is none counts nothing.
func tallyOf(r []*redis.Cmd) (all tally) {
	for i, reply := range r {
		n, err := reply.Int64Slice()
		switch {
		case err != nil:
		case i < tiers && len(n) == 3:
			all.net[i] = netTally{minute: int(n[0]), ban: int(n[1]), day: int(n[2])}
		case i == tiers && len(n) == 2:
			all.user.hour, all.user.day = int(n[0]), int(n[1])
		case i == tiers+1 && len(n) == 1:
			all.pair.hour = int(n[0])
		}
	}
	return all
}
