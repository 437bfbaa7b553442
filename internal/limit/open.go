package limit

import (
	"context"
	"hash/maphash"
	"net/netip"
	"time"

	"imapgate/internal/sleep"
)

const (
	// turnTime is how long a login waits for those ahead of it that might all fail;
	// those that are right are over in a moment.
	turnTime = 5 * time.Second
	// turnPause is how often it looks whether they are.
	turnPause = 50 * time.Millisecond
)

// begin takes down that a login is under way, and gives what there is of failures
// around it: as it is, and as it will be when all that are under way fail. Or a
// burst of guesses, of which none has failed yet, would pass as a whole. Whoever
// begins ends with the claims.
func (f *failures) begin(who standing, at pair, addr netip.Addr, t time.Duration) (claims []uint64, now, feared tally) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now = f.past(at, addr, t)
	feared = now
	claims = make([]uint64, 0, tiers+3)
	claim := func(key uint64) int {
		claims = append(claims, key)
		return int(f.open[key])
	}
	if who < resident { // whom its address knows is right nearly always
		for i := range tiers {
			n := claim(maphash.Comparable(f.seed, tier(addr, i)))
			feared.net[i].minute += n
			feared.net[i].day += n
		}
	}
	if !at.user.IsZero() {
		feared.exact.hour += claim(maphash.Comparable(f.seed, pair{at.user, home(addr)}))
		if near(addr) != home(addr) {
			feared.pair.hour += claim(maphash.Comparable(f.seed, at))
		}
		if who < neighbor {
			feared.user.day += claim(maphash.Comparable(f.seed, at.user))
		}
	}
	for _, key := range claims {
		f.open[key]++
	}
	return claims, now, feared
}

// end takes back what begin took down.
func (f *failures) end(claims []uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, key := range claims {
		if f.open[key]--; f.open[key] == 0 {
			delete(f.open, key)
		}
	}
}

// turn lets a login begin that is not refused, also if all that are under way fail.
// It waits a while for them to be right.
func (v *Conn) turn(ctx context.Context, at pair) (*Refusal, error) {
	g, inquired := v.gate, false
	for began := g.now(); ; {
		who := g.good.standing(at.user, v.addr, g.now())
		claims, past, feared := g.past.begin(who, at, v.addr, g.now())
		if who == newcomer && !inquired && v.besieged(feared) { // another gateway may know the user
			g.past.end(claims)
			inquired = true
			_ = v.inquire(ctx, at.user)
			continue
		}
		_, sure := v.judge(who, past)
		_, no := v.judge(who, feared)
		if no == nil {
			v.claims = claims
			return nil, nil
		}
		g.past.end(claims)
		if sure != nil || g.now()-began >= turnTime {
			return no, nil
		}
		if err := sleep.For(ctx, jitter(turnPause)); err != nil {
			return nil, err
		}
	}
}

// EndLogin ends the login under way, if there is one, with no word on whether it was
// right. Failed, Enter and Leave do so too.
func (v *Conn) EndLogin() {
	if v.claims != nil {
		v.gate.past.end(v.claims)
		v.claims = nil
	}
}
