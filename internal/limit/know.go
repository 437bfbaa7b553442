package limit

import (
	"context"
	"net/netip"
	"time"

	"github.com/redis/go-redis/v9"
)

// goodCalls tell everybody where a user is, if they do not know.
func (g *Gate) goodCalls(at pair) []call {
	t, s := g.now(), g.shared
	if !g.good.stale(at, t) {
		return nil
	}
	keep := g.cfg.Failures.KnownFor.Milliseconds()
	calls := []call{
		{s.scripts.good, []string{s.keys.good(at.user)}, []any{at.net.String(), keep}},
		{s.scripts.good, []string{s.keys.lived(at.net)}, []any{"", keep}},
	}
	if !g.good.knows(at, t) { // as succeeded does here
		calls = append(calls, call{s.scripts.forget, []string{s.keys.failedUser(at.user)}, nil})
	}
	return calls
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
