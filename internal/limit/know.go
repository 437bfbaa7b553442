package limit

import (
	"context"
	"net/netip"
	"time"

	"github.com/redis/go-redis/v9"

	"imapgate/internal/identity"
)

// goodCalls tell everybody where a user is, if they do not know.
func (g *Limiter) goodCalls(u identity.User, addr netip.Addr) (calls []call) {
	t, s := g.now(), g.shared
	mine, lived := g.good.stale(u, addr, t)
	keep := g.cfg.Failures.KnownFor.Milliseconds()
	for _, net := range mine {
		calls = append(calls, call{s.scripts.good, []string{s.keys.good(u)}, []any{net.String(), keep}})
	}
	for _, net := range lived {
		calls = append(calls, call{s.scripts.good, []string{s.keys.lived(net)}, []any{"", keep}})
	}
	if len(mine) > 0 && !g.good.knows(pair{u, near(addr)}, t) { // as succeeded does here
		calls = append(calls, call{s.scripts.forget, []string{s.keys.failedUser(u)}, nil})
	}
	return calls
}

// inquire is that of the gate, with what this login may still wait.
func (v *Conn) inquire(ctx context.Context, u identity.User) bool {
	asking, done := v.asking(ctx)
	defer done()
	return v.gate.inquire(asking, u, v.addr)
}

// inquire asks where a user is known around an address and whether anywhere, and where
// anybody is, and remembers it. It says whether there was an answer.
func (g *Limiter) inquire(ctx context.Context, u identity.User, addr netip.Addr) bool {
	s := g.shared
	if s == nil {
		return false
	}
	keep := g.cfg.Failures.KnownFor.Milliseconds()
	mine, lived := homes(addr), streets(addr)
	if u.IsZero() {
		mine = nil
	}
	var calls []call
	for _, net := range mine {
		calls = append(calls, call{s.scripts.known, []string{s.keys.good(u)}, []any{net.String(), keep}})
	}
	for _, net := range lived {
		calls = append(calls, call{s.scripts.known, []string{s.keys.lived(net)}, []any{"", keep}})
	}
	if !u.IsZero() {
		calls = append(calls, call{s.scripts.proven, []string{s.keys.good(u)}, []any{keep}})
	}
	r, err := s.ask(ctx, calls...)
	if err != nil {
		return false
	}
	if yes, err := r[len(r)-1].Int(); err == nil && yes == 1 && !u.IsZero() {
		g.good.proven(u, g.now())
	}
	for i, net := range append(mine, lived...) {
		yes, err := r[i].Int()
		switch {
		case err != nil || yes == 0:
		case i < len(mine):
			g.good.knew(pair{u, net}, g.now())
		default:
			g.good.living(net, g.now())
		}
	}
	return true
}

// counts is what a failure counts for.
type counts struct{ networks, user, pairs bool }

// failedEverywhere counts a failure at all gateways, and gives what there is.
func (g *Limiter) failedEverywhere(ctx context.Context, at pair, addr netip.Addr, c counts) (all tally, ok bool) {
	s := g.shared
	if s == nil {
		return all, false
	}
	calls := g.failedCalls(at, addr, 1)
	for i := range calls {
		if i < tiers && !c.networks || i == tiers && !c.user || i > tiers && !c.pairs {
			calls[i].args[0] = 0
		}
	}
	r, err := s.ask(ctx, calls...)
	if err != nil {
		return all, false
	}
	return tallyOf(r), true
}

// failedCalls are the calls that add to what is known of failures: the tiers, and
// of somebody the user and the pairs.
func (g *Limiter) failedCalls(at pair, addr netip.Addr, add int) []call {
	s := g.shared
	minute, ban := time.Minute.Milliseconds(), g.cfg.Failures.BanWithin.Milliseconds()
	calls, script := make([]call, 0, tiers+2), s.scripts.failed
	if add == 0 {
		script = s.scripts.failures
	}
	for i := range tiers {
		calls = append(calls, call{script, []string{s.keys.failedNet(tier(addr, i))}, []any{add, minute, ban, day.Milliseconds()}})
	}
	if at.user.IsZero() {
		return calls
	}
	calls = append(calls,
		call{script, []string{s.keys.failedUser(at.user)}, []any{add, hour.Milliseconds(), day.Milliseconds()}},
		call{script, []string{s.keys.failedPair(at)}, []any{add, hour.Milliseconds()}},
	)
	if exact := (pair{at.user, home(addr)}); exact != at {
		calls = append(calls, call{script, []string{s.keys.failedPair(exact)}, []any{add, hour.Milliseconds()}})
	}
	return calls
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
			all.pair.hour, all.exact.hour = int(n[0]), int(n[0]) // with IPv6 one number is both
		case i == tiers+2 && len(n) == 1:
			all.exact.hour = int(n[0])
		}
	}
	return all
}
