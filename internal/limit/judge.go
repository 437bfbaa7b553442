package limit

import (
	"context"
	"math/rand/v2"
	"net/netip"
	"time"

	"imapgate/internal/identity"
)

const (
	// patience are the failures of a user in a network where it is known that
	// cost nothing but the least time of a denial.
	patience = 3
	// unknownSteps is how far a network without a right login is down the ladder of
	// delays while spraying is suspected.
	unknownSteps = 2
)

// Attempt comes before a login is checked. It waits for what is owed for earlier
// failures, and refuses with a *Refusal whoever is banned or over a limit. It
// ends with ctx, whose error it then gives.
//
// A user who has logged in from a network of late is neither delayed nor refused
// there for what others in it do, or for what is tried on it elsewhere: it pays
// for the failures of the user in that network alone.
func (v *Visit) Attempt(ctx context.Context, u identity.User) error {
	if v.exempt {
		return nil
	}
	g := v.gate
	at := pair{u, near(v.addr)}
	wait, no := g.judge(at, v)
	if (wait > 0 || no != nil) && !g.good.knows(at, g.now()) && g.known(ctx, at) {
		wait, no = g.judge(at, v)
	}
	if no == nil && wait > 0 {
		if err := sleep(ctx, jitter(wait)); err != nil {
			return err
		}
		_, no = g.judge(at, v) // others may have failed meanwhile
	}
	if no != nil {
		return g.refused(no)
	}
	return nil
}

// Failed counts a wrong login and gives the least time that the denial must take,
// from the login on. A password that was wrong before is not counted again, so
// that a phone which was not told of the new one does no harm; without a password
// (the zero Secret) each failure counts. It may take ioTime, for Redis.
func (v *Visit) Failed(ctx context.Context, u identity.User, password identity.Secret) time.Duration {
	if v.exempt {
		return 0
	}
	g := v.gate
	at := pair{u, near(v.addr)}
	if !g.past.again(at, password) {
		g.count(ctx, at, v)
	}
	return jitter(g.cfg.Failures.Delay)
}

// count counts a failure here and at all gateways, and bans whoever has had
// enough of them.
func (g *Gate) count(ctx context.Context, at pair, v *Visit) {
	known := !at.user.IsZero() && g.good.knows(at, g.now())
	g.sprayed(g.past.failed(at, v.addr, g.now()))
	if !known && !at.user.IsZero() {
		g.past.failedUser(at.user, g.now())
	}
	g.sprayed(g.spray.failed(at.user, g.now()))
	if all, ok := g.failedEverywhere(ctx, at, v.addr, known); ok {
		g.past.learn(at, v.addr, all, g.now())
	}
	f := &g.cfg.Failures
	if now := g.past.look(at, v.addr, g.now()); f.BanAfter > 0 && now.net[0].ban >= f.BanAfter {
		g.ban(ctx, home(v.addr), ManyFailures)
	}
}

// judge says what a login owes, or why it is refused.
func (g *Gate) judge(at pair, v *Visit) (wait time.Duration, no *Refusal) {
	f, t := &g.cfg.Failures, g.now()
	past := g.past.look(at, v.addr, t)
	if past.pair.hour >= f.PerPairHour {
		return 0, &Refusal{Reason: PairFailures, Net: at.net, Wait: hour / time.Duration(f.PerPairHour)}
	}
	if g.good.knows(at, t) {
		return f.step(past.pair.hour - patience), nil
	}
	if b, ok := g.bans.covers(v.addr, t); ok {
		return 0, &Refusal{Reason: Banned, Net: b.Net, Wait: b.For}
	}
	if over(past.user.day, f.PerUserTotal) {
		return 0, &Refusal{Reason: UserFailures, Wait: hour}
	}
	for i, n := range past.net {
		net := tier(v.addr, i)
		if over(n.minute, f.PerMinute*tierScale[i]) {
			return 0, &Refusal{Reason: AddressFailures, Net: net, Wait: time.Minute}
		}
		if over(n.day, f.PerDay*tierScale[i]) {
			return 0, &Refusal{Reason: AddressFailures, Net: net, Wait: hour}
		}
		wait = max(wait, f.step(n.ban/tierScale[i]))
	}
	if f.PerUserHour > 0 {
		wait = max(wait, f.step(past.user.hour-f.PerUserHour))
	}
	if g.spray.suspects(t) && !g.good.lived(at.net, t) {
		wait = max(wait, f.step(unknownSteps))
	}
	return wait, nil
}

func over(n, limit int) bool { return limit > 0 && n >= limit }

// step is the delay behind so many failures: Delay doubled for each but the
// first, up to MaxDelay.
func (f *Failures) step(failures int) time.Duration {
	if failures <= 0 {
		return 0
	}
	d := f.Delay
	for range min(failures, 16) - 1 {
		d *= 2
	}
	return min(d, f.MaxDelay)
}

// jitter is d, a fifth more or less, so that those who wait do not come back
// together, and a delay tells nothing.
func jitter(d time.Duration) time.Duration {
	if d < 5 {
		return d
	}
	return d*4/5 + rand.N(d*2/5)
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// succeeded notes a right login. From a network where the user was not known it
// proves the person, not its phone, and clears the user of what was tried on it.
func (g *Gate) succeeded(u identity.User, addr netip.Addr) {
	at := pair{u, near(addr)}
	if !g.good.knows(at, g.now()) {
		g.past.forgiveUser(u)
	}
	g.good.note(at, g.now())
	g.sprayed(g.spray.succeeded(g.now()))
}
