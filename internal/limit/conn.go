package limit

import (
	"context"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"imapgate/internal/cluster"
	"imapgate/internal/event"
	"imapgate/internal/identity"
	"imapgate/internal/limit/counter"
	"imapgate/internal/limit/penalty"
	"imapgate/internal/sleep"
)

// stage says what a Conn has acquired.
type stage uint8

const (
	unlimited stage = iota // nothing: it is exempt, or its address is not known yet
	preauth                // the counts of a connection before login
	loggedIn               // those of a session
	closed
)

const (
	// pendingWait is how long a login waits for those in progress that might all fail. Correct
	// ones are over in a moment. pendingPause is how often it looks.
	pendingWait  = 5 * time.Second
	pendingPause = 50 * time.Millisecond
	// freeRepeats of a wrong password in an hour are a forgotten phone.
	freeRepeats = 10
)

// Conn is one connection. It is used by one goroutine at a time.
type Conn struct {
	// Set once.
	limiter *Limiter
	limits  *Settings // of the listener that accepted it

	// Owned by the goroutine that serves the connection.
	addr   netip.Addr // zero while it is not known
	exempt bool       // also while the address is not known
	stage  stage
	user   identity.User // of the session
	quota  *Quota        // nil until it is asked for
	claims []uint64      // of the login in progress; nil for none
	waited time.Duration // of the login in progress, for Redis
}

// Open admits a new connection, or refuses it with a *Refusal. If the address is not known yet
// (a PROXY header follows), addr is the zero Addr, and nothing is counted until SetAddr.
func (l *Limiter) Open(listener string, addr netip.Addr) (*Conn, error) {
	c := &Conn{limiter: l, limits: &l.cfg.Settings, exempt: true}
	if own := l.listeners[listener]; own != nil {
		c.limits = own
	}
	if err := c.SetAddr(addr); err != nil {
		return nil, err
	}
	return c, nil
}

// SetAddr says, before login, that the client is at another address than was thought, and
// acquires the counts of a connection from there. After a *Refusal nothing is counted, and only
// Close may follow.
func (c *Conn) SetAddr(addr netip.Addr) error {
	addr = plain(addr)
	if addr == c.addr {
		return nil
	}
	c.EndLogin()
	l, s := c.limiter, &c.limits.Connections
	if c.stage == preauth {
		l.counts.Release(c.preauthBounds())
		c.stage = unlimited
	}
	c.addr, c.exempt = addr, !addr.IsValid() || contains(c.limits.ExemptNetworks, addr)
	if c.exempt {
		return nil
	}
	if b, ok := l.bans.Find(addr); ok && (b.Reason == event.BanOperator || !b.Active && !l.history.IsActive(penalty.UserNet(addr))) {
		return &Refusal{Reason: event.LimitBanned, Net: b.Net, RetryAfter: b.Remaining}
	}
	bounds := c.preauthBounds()
	if full := l.counts.Acquire(bounds); full != nil {
		return &Refusal{Reason: full.Reason, Net: full.Net}
	}
	if net := identity.AddrPrefix(addr); !l.quotas.allow(net, s.NewPerMinute, s.NewBurst) {
		l.counts.Release(bounds)
		return &Refusal{Reason: event.LimitConnectionRate, Net: net, RetryAfter: time.Minute / time.Duration(s.NewPerMinute)}
	}
	c.stage = preauth
	return nil
}

// plain returns the one spelling of an address.
func plain(a netip.Addr) netip.Addr { return a.Unmap().WithZone("") }

func contains(nets []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(nets, func(n netip.Prefix) bool { return n.Contains(a) })
}

// preauthBounds are the counts of a connection before login. The last stays after it. A network
// may have a share of all connections before login, and at least as many as one address.
func (c *Conn) preauthBounds() []counter.Bound {
	net, s := identity.AddrPrefix(c.addr), &c.limits.Connections
	bounds := []counter.Bound{{Key: counter.Key{Scope: counter.AddressPreauth, Net: net}, Limit: s.PreauthPerAddress, Reason: event.LimitPreauthAddress}}
	if room := c.limiter.cfg.Preauth * s.PreauthNetworkPercent; room > 0 && s.PreauthPerAddress > 0 {
		share := max(s.PreauthPerAddress, room/100)
		// A /56 and a /48 are often one customer's, who has all addresses in it.
		if site := identity.Network(c.addr, 32, 56); site != net {
			bounds = append(bounds, counter.Bound{Key: counter.Key{Scope: counter.SitePreauth, Net: site}, Limit: max(s.PreauthPerAddress, share/2), Reason: event.LimitPreauthNetwork})
		}
		block := counter.Key{Scope: counter.BlockPreauth, Net: identity.Network(c.addr, 24, 48)}
		bounds = append(bounds, counter.Bound{Key: block, Limit: share, Reason: event.LimitPreauthNetwork})
	}
	return append(bounds, counter.Bound{Key: counter.Key{Scope: counter.AddressConns, Net: net}, Limit: s.PerAddress, Reason: event.LimitAddress})
}

// askRedis bounds the time of a login's questions to Redis: all together take cluster.Wait,
// also if none is answered. Its second result ends it.
func (c *Conn) askRedis(ctx context.Context) (context.Context, func()) {
	began := time.Now()
	ctx, cancel := context.WithTimeoutCause(ctx, c.limiter.cfg.Wait-c.waited, cluster.ErrBudgetSpent)
	return ctx, func() {
		cancel()
		c.waited += time.Since(began)
	}
}

// BeginLogin is called before a login is verified. It waits out the delay for earlier
// failures, and returns a *Refusal for a login that is banned or over a limit. It ends with
// ctx, whose error it then returns. The login counts as one that may fail until LoginFailed,
// LoginUnclear, LoginDenied, BeginSession, EndLogin or Close.
func (c *Conn) BeginLogin(ctx context.Context, u identity.User) error {
	if c.exempt {
		return nil
	}
	c.EndLogin()
	wait, no := c.evaluate(ctx, u)
	if no != nil {
		return no
	}
	if wait > 0 {
		if err := sleep.For(ctx, jitter(wait)); err != nil {
			return err
		}
	}
	return c.claim(ctx, u) // others may have failed meanwhile
}

// CheckLogin returns a *Refusal if BeginLogin would refuse the login now. It does not wait and
// leaves nothing: it is for a step of an exchange in which nothing is verified yet.
func (c *Conn) CheckLogin(ctx context.Context, u identity.User) error {
	if c.exempt {
		return nil
	}
	if _, no := c.evaluate(ctx, u); no != nil {
		return no
	}
	return nil
}

// evaluate applies the policy to what is known here and, where it matters, to what other
// gateways know of the user.
func (c *Conn) evaluate(ctx context.Context, u identity.User) (wait time.Duration, no *Refusal) {
	r := c.limiter.history.Record(u, c.addr)
	wait, no = c.apply(r)
	if (wait > 0 || no != nil || c.isUnderAttack(&r)) && r.Familiarity < penalty.KnownAddress && c.askFamiliarity(ctx, u) {
		wait, no = c.apply(c.limiter.history.Record(u, c.addr))
	}
	return wait, no
}

// askFamiliarity asks the cluster where the user is known around the address, and which
// networks are active, and remembers it. It reports whether there was an answer.
func (c *Conn) askFamiliarity(ctx context.Context, u identity.User) bool {
	l := c.limiter
	if l.cluster == nil {
		return false
	}
	ctx, done := c.askRedis(ctx)
	defer done()
	known, err := l.cluster.Known(ctx, penalty.KnownSubjects(u, c.addr)...)
	l.history.LearnKnown(known)
	return err == nil
}

// isUnderAttack reports whether the user's failures of the day are too many for logins from
// unknown networks.
func (c *Conn) isUnderAttack(r *penalty.Record) bool {
	limit := c.dayLimit(r)
	return limit > 0 && r.User.Day >= limit
}

func (c *Conn) dayLimit(r *penalty.Record) int {
	return c.limiter.share(c.limits.Failures.PerUserDay, r.User.Fleet)
}

// apply returns how long a login has to wait, or why it is refused: by a ban, or the policy.
// A ban admits users who are known near the address, unless an operator imposed it.
func (c *Conn) apply(r penalty.Record) (wait time.Duration, no *Refusal) {
	if b, ok := c.limiter.bans.Find(c.addr); ok && (r.Familiarity < penalty.KnownNetwork || b.Reason == event.BanOperator) {
		return 0, &Refusal{Reason: event.LimitBanned, Net: b.Net, RetryAfter: b.Remaining}
	}
	s := c.limits.Failures
	s.PerUserDay = c.dayLimit(&r)
	return s.Evaluate(c.addr, &r)
}

// claim begins a login that is not refused even if all logins in progress fail. It waits a
// while for them to succeed.
func (c *Conn) claim(ctx context.Context, u identity.User) error {
	l, began, asked := c.limiter, time.Now(), false
	for {
		claims, worst := l.history.Begin(u, c.addr)
		if worst.Familiarity == penalty.KnownNowhere && !asked && c.isUnderAttack(&worst) { // another gateway may know the user
			l.history.End(claims)
			asked = true
			c.askFamiliarity(ctx, u)
			continue
		}
		_, no := c.apply(worst)
		if no == nil {
			c.claims = claims
			return nil
		}
		l.history.End(claims)
		if _, certain := c.apply(l.history.Record(u, c.addr)); certain != nil || time.Since(began) >= pendingWait {
			return no
		}
		if err := sleep.For(ctx, jitter(pendingPause)); err != nil {
			return err
		}
	}
}

// EndLogin ends the login in progress, if there is one, without a result.
func (c *Conn) EndLogin() {
	if c.claims != nil {
		c.limiter.history.End(c.claims)
		c.claims = nil
	}
}

// LoginFailed counts a wrong login and returns the least time of the denial, from the login
// on. A password that was wrong before is not counted again, so that a phone with an old one
// does no harm; but each repetition costs a verification, so many are denied ever slower. For
// the zero User password is all that was presented, with the name. With the zero Secret each
// failure counts for the user, and a few for the networks. It may take what BeginLogin has
// left of cluster.Wait.
func (c *Conn) LoginFailed(ctx context.Context, u identity.User, password identity.Secret) time.Duration {
	if c.exempt {
		return 0
	}
	defer c.EndLogin()
	l := c.limiter
	weight, repeats := l.history.Weigh(u, c.addr, password)
	if weight == penalty.Repeated {
		return c.denialTime(repeats)
	}
	ctx, done := c.askRedis(ctx)
	isKnown := l.history.Familiarity(u, c.addr) >= penalty.KnownNetwork
	l.countFailure(ctx, u, c.addr, penalty.Counted{Nets: weight == penalty.Full, User: !isKnown, Pairs: true})
	if n, limit := l.history.Record(u, c.addr).Nets[0].Ban, c.limits.Failures.BanAfter; limit > 0 && n >= limit {
		l.ban(ctx, identity.AddrPrefix(c.addr), event.BanFailures)
	}
	done()
	return c.denialTime(repeats)
}

// denialTime returns the least time of a denial after so many repetitions. The next login may
// wait for Redis again.
func (c *Conn) denialTime(repeats int) time.Duration {
	c.waited = 0
	s := &c.limits.Failures
	return jitter(max(s.Delay, s.Step(repeats-freeRepeats)))
}

// LoginUnclear counts a login whose password may have been right: a service has received it,
// and its answer fits both, or there was none. One password of the user in the network may be
// right. It counts for the user, not for the address, so that an office with a backend in
// trouble is not banned. A second one at the same time cannot be right too, and has failed. It
// may take as long as LoginFailed.
func (c *Conn) LoginUnclear(ctx context.Context, u identity.User, password identity.Secret) time.Duration {
	if c.exempt {
		return 0
	}
	l := c.limiter
	repeats, ok := l.history.MayBeRight(u, c.addr, password)
	if !ok {
		return c.LoginFailed(ctx, u, password)
	}
	defer c.EndLogin()
	if repeats == 0 && l.history.Familiarity(u, c.addr) < penalty.KnownNetwork {
		ctx, done := c.askRedis(ctx)
		l.countFailure(ctx, u, c.addr, penalty.Counted{User: true})
		done()
	}
	return c.denialTime(repeats)
}

// LoginDenied ends a login that is denied although its password was right. It returns the
// least time of the denial, which is that of any other.
func (c *Conn) LoginDenied() time.Duration {
	if c.exempt {
		return 0
	}
	c.EndLogin()
	return jitter(c.limits.Failures.Delay)
}

// BeginSession counts the session of a user whose login was right. It asks Redis, for no longer
// than cluster.Wait together with BeginLogin. After a *Refusal the Conn is as before.
func (c *Conn) BeginSession(ctx context.Context, u identity.User) error {
	if c.stage >= loggedIn {
		panic("limit: a session was begun twice")
	}
	c.EndLogin()
	l, bounds := c.limiter, c.sessionBounds(u)
	here := slices.Clone(bounds)
	here[1].Limit = l.share(c.limits.Connections.Total, 0) // of the total: what this gateway may have
	if full := l.counts.Acquire(here); full != nil {
		return &Refusal{Reason: full.Reason, Net: full.Net}
	}
	var calls []cluster.Call
	if !c.exempt {
		calls = l.noteSuccess(u, c.addr)
	}
	if l.cluster != nil {
		if err := c.enterCluster(ctx, bounds, calls); err != nil {
			l.counts.Release(bounds)
			return err
		}
	}
	if !c.exempt {
		before := c.preauthBounds()
		l.counts.Release(before[:len(before)-1])
	}
	c.stage, c.user = loggedIn, u
	return nil
}

// sessionBounds are the counts of a session at all gateways.
func (c *Conn) sessionBounds(u identity.User) []counter.Bound {
	s := &c.limits.Connections
	bounds := []counter.Bound{
		{Key: counter.Key{Scope: counter.UserSessions, User: u}, Limit: s.PerUser, Reason: event.LimitUser},
		{Key: counter.Key{Scope: counter.AllSessions}, Limit: s.Total, Reason: event.LimitTotal},
	}
	if c.exempt {
		return bounds
	}
	net := identity.AddrPrefix(c.addr)
	return append(bounds,
		counter.Bound{Key: counter.Key{Scope: counter.PairSessions, User: u, Net: net}, Limit: s.PerUserAddress, Reason: event.LimitUserAddress},
		counter.Bound{Key: counter.Key{Scope: counter.AddressSessions, Net: net}, Limit: s.PerAddress, Reason: event.LimitAddress},
	)
}

// enterCluster counts a session at all gateways, and takes a token of the address's rate.
func (c *Conn) enterCluster(ctx context.Context, bounds []counter.Bound, calls []cluster.Call) error {
	s, r := &c.limits.Connections, cluster.Rate{}
	if !c.exempt {
		r = cluster.Rate{Net: identity.AddrPrefix(c.addr), PerMinute: s.NewPerMinute, Burst: s.NewBurst}
	}
	ctx, done := c.askRedis(ctx)
	defer done()
	full, retryAfter := c.limiter.cluster.Enter(ctx, bounds, r, calls...)
	switch {
	case full != nil:
		return &Refusal{Reason: full.Reason, Net: full.Net}
	case retryAfter > 0:
		return &Refusal{Reason: event.LimitConnectionRate, Net: r.Net, RetryAfter: retryAfter}
	}
	return nil
}

// Quota returns what the user of a Conn with a session may use, until Close; nil if there is
// no limit.
func (c *Conn) Quota() *Quota {
	l, s := c.limiter, c.limits.UserQuota
	if c.stage != loggedIn || s == (Quotas{}) && !l.countsUploads {
		return nil
	}
	if c.quota == nil {
		c.quota = l.acquireQuota(c.user, s)
	}
	return c.quota
}

// Close releases everything. It is called once, last.
func (c *Conn) Close() {
	c.EndLogin()
	l := c.limiter
	switch c.stage {
	case closed:
		panic("limit: a connection was closed twice")
	case preauth:
		l.counts.Release(c.preauthBounds())
	case loggedIn:
		if c.quota != nil {
			l.quotas.release(c.quota)
		}
		bounds := c.sessionBounds(c.user)
		l.counts.Release(bounds)
		if l.cluster != nil {
			l.cluster.Leave(bounds)
		}
		if before := c.preauthBounds(); !c.exempt {
			l.counts.Release(before[len(before)-1:])
		}
	}
	c.stage = closed
}

// jitter returns d, a fifth more or less, so that clients that wait do not come back together
// and a delay reveals nothing.
func jitter(d time.Duration) time.Duration {
	if d < 5 {
		return d
	}
	return d*4/5 + rand.N(d*2/5)
}
