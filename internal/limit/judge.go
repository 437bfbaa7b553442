package limit

import (
	"context"
	"math/rand/v2"
	"net/netip"
	"time"

	"imapgate/internal/event"
	"imapgate/internal/identity"
	"imapgate/internal/sleep"
)

const (
	// patience are the failures of a user in a network where it is known that
	// cost nothing but the least time of a denial.
	patience = 3
	// unknownSteps is how far a network without a right login is down the ladder of
	// delays while spraying is suspected.
	unknownSteps = 2
	// muchMore is how many times what an address may do is too much also where the
	// user is known; that many times more is the end of it.
	muchMore = 10
	// freeRepeats of a wrong password in an hour are a forgotten phone.
	freeRepeats = 10
)

// BeginLogin comes before a login is checked. It waits for what is owed for earlier
// failures, and refuses with a *Refusal whoever is banned or over a limit. It
// ends with ctx, whose error it then gives. Until Failed, Enter, the next Attempt or
// Leave the login counts as one that may yet fail.
//
// A user who has logged in from this very address is neither delayed nor refused
// there for what others do: it pays for the failures of the user there alone, and
// a little sooner when others there fail by the hundred.
func (v *Conn) BeginLogin(ctx context.Context, u identity.User) error {
	if v.exempt {
		return nil
	}
	v.EndLogin()
	g, at := v.gate, pair{u, near(v.addr)}
	wait, no := v.owes(ctx, at)
	if no == nil && wait > 0 {
		if err := sleep.For(ctx, jitter(wait)); err != nil {
			return err
		}
	}
	if no == nil { // others may have failed meanwhile
		var err error
		if no, err = v.turn(ctx, at); err != nil {
			return err
		}
	}
	if no != nil {
		return g.refused(no)
	}
	return nil
}

// CheckLogin says with a *Refusal that Attempt would refuse the login as things are. It does
// not wait, and leaves nothing behind: it is for a step of an exchange in which nothing
// is verified yet, and for which a client may take its time.
func (v *Conn) CheckLogin(ctx context.Context, u identity.User) error {
	if v.exempt {
		return nil
	}
	if _, no := v.owes(ctx, pair{u, near(v.addr)}); no != nil {
		return v.gate.refused(no)
	}
	return nil
}

// owes judges a login by the failures that are known here and, where they matter, by
// what the other gateways know of the user.
func (v *Conn) owes(ctx context.Context, at pair) (wait time.Duration, no *Refusal) {
	g := v.gate
	who, past := g.good.standing(at.user, v.addr, g.now()), g.past.look(at, v.addr, g.now())
	wait, no = v.judge(who, past)
	matters := wait > 0 || no != nil || v.besieged(past)
	if matters && who < resident && v.inquire(ctx, at.user) {
		wait, no = v.judge(g.good.standing(at.user, v.addr, g.now()), g.past.look(at, v.addr, g.now()))
	}
	return wait, no
}

// besieged reports whether so many guesses at the user have failed in a day that only
// networks in which the user is known may log in.
func (v *Conn) besieged(past tally) bool {
	return over(past.user.day, v.gate.share(v.limits.Failures.PerUserDay, past.user.all))
}

// LoginFailed counts a wrong login and gives the least time that the denial must take,
// from the login on. A password that was wrong before is not counted again, so
// that a phone which was not told of the new one does no harm; but each repetition
// costs a check, and many are denied ever slower. For nobody (the zero User) the
// password is all that was shown, with the name. Without a password (the zero
// Secret) each failure counts for the user, and a few for the networks. It may
// take what Attempt has left of ioTime, for Redis.
func (v *Conn) LoginFailed(ctx context.Context, u identity.User, password identity.Secret) time.Duration {
	if v.exempt {
		return 0
	}
	g := v.gate
	at := pair{u, near(v.addr)}
	defer v.EndLogin()
	f := &v.limits.Failures
	w, repeats := g.past.weigh(at, password, g.now())
	if w != repeated {
		asking, done := v.asking(ctx)
		v.count(asking, at, w)
		done()
	}
	v.asked = 0 // the next login may wait again
	return jitter(max(f.Delay, f.step(repeats-freeRepeats)))
}

// LoginUnclear counts a login of which nobody knows whether the password was right: a
// service has seen it, and its answer fits both, or there was none. One password of
// the user in the network may be right; it counts for the user, not for the address,
// so that an office whose backend is in trouble is not banned. A second one of the same
// time cannot be right too, and is Failed. It may take as long as Failed.
func (v *Conn) LoginUnclear(ctx context.Context, u identity.User, password identity.Secret) time.Duration {
	if v.exempt {
		return 0
	}
	g := v.gate
	at := pair{u, near(v.addr)}
	repeats, ok := g.past.mayBeRight(at, password, g.now())
	if !ok {
		return v.LoginFailed(ctx, u, password)
	}
	defer v.EndLogin()
	if repeats == 0 && !g.good.knows(at, g.now()) {
		g.past.failedUser(u, g.now())
		asking, done := v.asking(ctx)
		if all, ok := g.failedEverywhere(asking, at, v.addr, counts{user: true}); ok {
			g.past.learn(at, v.addr, all, g.now())
		}
		done()
	}
	v.asked = 0 // the next login may wait again
	f := &v.limits.Failures
	return jitter(max(f.Delay, f.step(repeats-freeRepeats)))
}

// LoginDenied ends a login that is denied although its password was right. It gives the
// least time of the denial, which is that of any other.
func (v *Conn) LoginDenied() time.Duration {
	if v.exempt {
		return 0
	}
	v.EndLogin()
	return jitter(v.limits.Failures.Delay)
}

// count counts a failure here and at all gateways, and bans whoever has had
// enough of them.
func (v *Conn) count(ctx context.Context, at pair, w weight) {
	g := v.gate
	known := !at.user.IsZero() && g.good.knows(at, g.now())
	if w == whole {
		g.sprayed(g.past.failedNets(at.user, v.addr, g.now()))
		g.sprayed(g.spray.failed(at.user, g.now()))
	}
	if !at.user.IsZero() {
		g.past.failedPair(at, v.addr, g.now())
	}
	if !known && !at.user.IsZero() {
		g.past.failedUser(at.user, g.now())
	}
	if all, ok := g.failedEverywhere(ctx, at, v.addr, counts{networks: w == whole, user: !known, pairs: true}); ok {
		g.past.learn(at, v.addr, all, g.now())
	}
	if now := g.past.look(at, v.addr, g.now()); over(now.net[0].ban, v.limits.Failures.BanAfter) {
		g.ban(ctx, home(v.addr), event.BanFailures)
	}
}

// judge says what a login owes, or why it is refused.
func (v *Conn) judge(who standing, past tally) (wait time.Duration, no *Refusal) {
	f, addr := &v.limits.Failures, v.addr
	ban, banned := v.gate.bans.covers(addr, v.gate.now())
	switch {
	case banned && (who < neighbor || ban.Reason == event.BanOperator):
		return 0, &Refusal{Reason: event.LimitBanned, Net: ban.Net, RetryAfter: ban.Remaining}
	case over(past.exact.hour, f.PerUserNetworkHour):
		return 0, &Refusal{Reason: event.LimitPairFailures, Net: home(addr), RetryAfter: hour / time.Duration(f.PerUserNetworkHour)}
	case who == resident:
		return f.resident(addr, past)
	case who == neighbor:
		return f.neighbor(addr, past)
	case over(past.pair.hour, f.PerUserNetworkHour):
		return 0, &Refusal{Reason: event.LimitPairFailures, Net: near(addr), RetryAfter: hour / time.Duration(f.PerUserNetworkHour)}
	}
	return v.stranger(who, past)
}

// resident judges a login from where the user has been right. Many may share the
// address, and one of them guess: who was not tried there pays nothing.
func (f *Failures) resident(addr netip.Addr, past tally) (wait time.Duration, no *Refusal) {
	n := past.net[0]
	if until := f.beyond(n, muchMore*muchMore); until > 0 && past.exact.hour >= patience {
		return 0, &Refusal{Reason: event.LimitAddressFailures, Net: home(addr), RetryAfter: until}
	}
	if past.exact.hour > 0 && f.beyond(n, muchMore) > 0 {
		return f.MaxDelay, nil
	}
	return f.step(past.exact.hour - patience), nil
}

// neighbor judges a login from near where the user has been right: its provider may
// have given it another address, or a neighbor guesses.
func (f *Failures) neighbor(addr netip.Addr, past tally) (wait time.Duration, no *Refusal) {
	n := past.net[0]
	if until := f.beyond(n, muchMore); until > 0 {
		return 0, &Refusal{Reason: event.LimitAddressFailures, Net: home(addr), RetryAfter: until}
	}
	if over(past.pair.hour/muchMore, f.PerUserNetworkHour) {
		return 0, &Refusal{Reason: event.LimitPairFailures, Net: near(addr), RetryAfter: hour / time.Duration(f.PerUserNetworkHour)}
	}
	wait = f.step(past.pair.hour - patience)
	if over(past.pair.hour, f.PerUserNetworkHour) {
		wait = f.MaxDelay
	}
	if f.beyond(n, 1) > 0 {
		wait = max(wait, f.step(unknownSteps))
	}
	return wait, nil
}

// stranger judges a login from where the user is not known. A user who is known nowhere,
// as all are when a gateway is new or Redis has lost what it knew, would be locked out
// altogether by PerUserDay: it is delayed instead.
func (v *Conn) stranger(who standing, past tally) (wait time.Duration, no *Refusal) {
	g, f, addr := v.gate, &v.limits.Failures, v.addr
	besieged := v.besieged(past)
	if besieged && who > newcomer {
		return 0, &Refusal{Reason: event.LimitUserFailures, RetryAfter: hour}
	}
	if until := f.beyond(past.net[0], 1); until > 0 {
		return 0, &Refusal{Reason: event.LimitAddressFailures, Net: home(addr), RetryAfter: until}
	}
	wait = f.step(past.net[0].ban)
	for i := 1; i < tiers; i++ {
		owed, no := v.vicinity(who, tier(addr, i), past.net[i], tierScale[i])
		if no != nil {
			return 0, no
		}
		wait = max(wait, owed)
	}
	if f.PerUserHour > 0 {
		wait = max(wait, f.step(past.user.hour-f.PerUserHour))
	}
	if besieged {
		wait = f.MaxDelay
	}
	if t := g.now(); g.spray.suspects(t) && !g.good.lived(near(addr), t) {
		wait = max(wait, f.step(unknownSteps))
	}
	return wait, nil
}

// vicinity judges a login by the failures of a network around it, which may have so
// many times those of an address. Where people live, one with a few addresses must
// not shut out the customers of a whole carrier: they are delayed, and the carrier's
// own, who are known somewhere in it, but a little.
func (v *Conn) vicinity(who standing, net netip.Prefix, n netTally, times int) (wait time.Duration, no *Refusal) {
	g, f := v.gate, &v.limits.Failures
	until := f.beyond(n, times)
	switch {
	case until > 0 && who == customer:
		return f.step(unknownSteps), nil
	case who == customer:
		return 0, nil
	case until > 0 && (!g.good.lived(net, g.now()) || f.beyond(n, muchMore*times) > 0):
		return 0, &Refusal{Reason: event.LimitAddressFailures, Net: net, RetryAfter: until}
	case until > 0:
		return f.MaxDelay, nil
	}
	return f.step(n.ban / times), nil
}

// beyond says for how long a network has failed too often: more than so many times
// what an address may. 0 when it has not.
func (f *Failures) beyond(n netTally, times int) time.Duration {
	switch {
	case over(n.day/times, f.PerDay):
		return hour
	case over(n.minute/times, f.PerMinute):
		return time.Minute
	}
	return 0
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

// succeeded notes a right login. From a network where the user was not known it
// proves the person, not its phone, and clears the user of what was tried on it.
func (g *Limiter) succeeded(u identity.User, addr netip.Addr) {
	at := pair{u, near(addr)}
	if !g.good.knows(at, g.now()) {
		g.past.forgiveUser(u)
	}
	g.past.wasRight(at)
	g.good.note(u, addr, g.now())
	g.sprayed(g.spray.succeeded(g.now()))
}
