// Package limit admits connections and logins, and slows down or refuses those that are over
// a limit. A Limiter is the gateway's; a Conn is one client's, and is used by the goroutine
// that serves it.
//
//	conn.go        one connection: Open, BeginLogin, LoginFailed, BeginSession, Close
//	counter        how many connections and sessions there are here
//	penalty        what failed logins cost, by one table
//	ban            the banned networks; bansync.go follows other gateways and operators
//	quota          what a user's sessions may use; quota.go counts uploads at all gateways
//	operator.go    the operator's commands
//
// With Redis, internal/cluster counts together with other gateways. No login waits for it
// longer than cluster.Wait. While Redis is down, the limits hold at each gateway, and the bans
// stay as they were.
//
// The package does not know IMAP, how passwords are verified, or what a client is sent. It
// never closes a connection. Each part has its own lock, and no two are held together, nor any
// while it waits.
package limit

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"
	"golang.org/x/time/rate"

	"imapgate/internal/cluster"
	"imapgate/internal/identity"
	"imapgate/internal/limit/ban"
	"imapgate/internal/limit/counter"
	"imapgate/internal/limit/penalty"
	"imapgate/internal/limit/quota"
)

// Limiter has all limits of a gateway.
type Limiter struct {
	// Set once.
	cfg           Config
	listener      *Settings            // the limits of those without limits of their own
	listeners     map[string]*Settings // of the others
	countsUploads bool                 // some listener has a limit
	hooks         Hooks
	log           *zap.Logger
	logged        rate.Sometimes
	counts        counter.Table
	rates         *quota.Rates
	quotas        *quota.Table
	failures      *penalty.Failures
	known         *penalty.Known
	spray         *penalty.SprayAlert
	bans          *ban.Table
	cluster       *cluster.Cluster // nil without Redis
}

// New returns a Limiter. Without a client of Redis it counts for itself.
func New(cfg Config, client redis.UniversalClient, hooks Hooks, log *zap.Logger) (*Limiter, error) {
	if err := cfg.setDefaults(); err != nil {
		return nil, err
	}
	hooks.setDefaults()
	l := &Limiter{
		cfg: cfg, hooks: hooks, log: log, logged: rate.Sometimes{First: 20, Interval: 10 * time.Second},
		listener: &cfg.Settings, listeners: make(map[string]*Settings, len(cfg.Listeners)), countsUploads: cfg.UserQuota.AppendBytesPerDay > 0,
		rates: quota.NewRates(), quotas: quota.New(), failures: penalty.NewFailures(&cfg.Failures), known: penalty.NewKnown(cfg.Failures.KnownFor),
		spray: penalty.NewSprayAlert(hooks.OnSpray), bans: ban.New(),
	}
	for name, own := range cfg.Listeners {
		l.listeners[name] = &own
		l.countsUploads = l.countsUploads || own.UserQuota.AppendBytesPerDay > 0
	}
	if client != nil {
		l.cluster = cluster.New(client, cluster.Options{Prefix: cfg.Prefix, TTL: cfg.HeartbeatTTL, Wait: cfg.wait, MaxBans: ban.Max, OnChange: l.reportRedis})
	}
	return l, nil
}

// Run counts with other gateways and follows their bans until ctx ends. Then it waits a moment
// for the last connections to close, and signs this gateway off. Without Redis it only waits
// for ctx.
func (l *Limiter) Run(ctx context.Context) error {
	if l.cluster == nil {
		<-ctx.Done()
		return nil
	}
	l.followCluster(ctx)
	l.cluster.SignOff()
	return nil
}

// followCluster is Run until ctx ends.
func (l *Limiter) followCluster(ctx context.Context) {
	var all sync.WaitGroup
	all.Go(func() { l.cluster.Run(ctx) })
	all.Go(func() { l.followBans(ctx) })
	all.Wait()
}

// reportRedis reports that limits are shared, or no longer and why. Not every change of a
// Redis that comes and goes is logged.
func (l *Limiter) reportRedis(up bool, why error) {
	l.hooks.OnRedis(up)
	l.logged.Do(func() {
		switch {
		case up:
			l.log.Info("limits are shared: Redis answers, and takes what is written")
		case cluster.IsRefusal(why):
			l.log.Warn("limits are local: Redis refuses to work", zap.Error(why))
		default:
			l.log.Warn("limits are local: Redis does not answer", zap.Error(why))
		}
	})
}

// limitsOf returns those of a listener.
func (l *Limiter) limitsOf(listener string) *Settings {
	if own := l.listeners[listener]; own != nil {
		return own
	}
	return l.listener
}

// share returns what a limit of all gateways is at this one, of which so much was used when
// they last counted together: the whole of it while they do, and while Redis is down that and
// a part of the rest. A limit never becomes 0, which would be none.
func (l *Limiter) share(limit, used int) int {
	if l.cluster == nil || limit == 0 || !l.cluster.IsDown() {
		return limit
	}
	used = min(used, limit)
	return max(1, used+(limit-used)/max(1, l.cluster.Gateways()))
}

// refuse counts a refusal and returns it as an error.
func (l *Limiter) refuse(r *Refusal) error {
	l.hooks.OnRefused(r.Reason)
	return r
}

// BanCount returns how many networks are banned, as far as this gateway knows.
func (l *Limiter) BanCount() int { return l.bans.Len() }

// CountersInUse returns 0 when there are no connections and sessions.
func (l *Limiter) CountersInUse() int { return l.counts.Sum() }

// record returns what is known here of logins around one login.
func (l *Limiter) record(u identity.User, a netip.Addr) penalty.Record {
	r := l.failures.Record(u, a)
	l.addFamiliarity(&r, u, a)
	return r
}

// addFamiliarity adds to a record what is known of successful logins.
func (l *Limiter) addFamiliarity(r *penalty.Record, u identity.User, a netip.Addr) {
	r.Familiarity = l.known.Familiarity(u, a)
	for i := range r.Active {
		r.Active[i] = l.known.IsActive(penalty.Tier(a, i))
	}
	r.Spray = l.spray.Suspected() && !l.known.IsActive(penalty.UserNet(a))
}

// askFamiliarity asks the cluster where a user is known around an address, and which networks
// are active, and remembers it. It reports whether there was an answer.
func (l *Limiter) askFamiliarity(ctx context.Context, u identity.User, a netip.Addr) bool {
	if l.cluster == nil {
		return false
	}
	user, active := penalty.UserNets(a), penalty.ActiveNets(a)
	f, err := l.cluster.Familiarity(ctx, u, user, active, l.cfg.Failures.KnownFor)
	if err != nil {
		return false
	}
	l.known.Learn(u, pick(user, f.Known), pick(active, f.Active), f.Anywhere)
	return true
}

// pick returns the networks whose flag is set.
func pick(nets []netip.Prefix, isSet []bool) (picked []netip.Prefix) {
	for i, net := range nets {
		if isSet[i] {
			picked = append(picked, net)
		}
	}
	return picked
}

// countFailure counts a failure at all gateways, and learns what they know.
func (l *Limiter) countFailure(ctx context.Context, u identity.User, a netip.Addr, c penalty.Counted) {
	if s := l.failures.Count(u, a, c); s.Suspected {
		l.hooks.OnSpray(s)
	}
	if l.cluster == nil {
		return
	}
	if fleet, err := l.fleetCounts(ctx, c, penalty.Subjects(u, a)...); err == nil {
		l.failures.Learn(u, a, fleet)
	}
}

// fleetCounts adds a failure to the counts of all gateways, and returns them.
func (l *Limiter) fleetCounts(ctx context.Context, c penalty.Counted, subjects ...penalty.Subject) ([][]int, error) {
	all := make([]cluster.Subject, len(subjects))
	for i, s := range subjects {
		all[i] = cluster.Subject{User: s.User, Net: s.Net, Add: c.Includes(i)}
	}
	return l.cluster.CountFailures(ctx, l.cfg.Failures.BanWithin, all...)
}

// noteSuccess notes a successful login, and returns the calls that note it in the cluster. From
// a network where the user was not known it proves the person, not their phone, and forgets
// what was tried on the user.
func (l *Limiter) noteSuccess(u identity.User, a netip.Addr) (calls []cluster.Call) {
	isNew := l.known.Familiarity(u, a) < penalty.KnownNetwork
	if isNew {
		l.failures.ForgetUser(u)
	}
	l.failures.Succeeded(u, a)
	l.spray.Succeeded()
	user, active := l.known.Note(u, a)
	if l.cluster == nil {
		return nil
	}
	for _, net := range user {
		calls = append(calls, l.cluster.NoteKnown(u, net, l.cfg.Failures.KnownFor))
	}
	for _, net := range active {
		calls = append(calls, l.cluster.NoteActive(net, l.cfg.Failures.KnownFor))
	}
	if isNew {
		calls = append(calls, l.cluster.ForgetUser(u))
	}
	return calls
}

func contains(nets []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(nets, func(n netip.Prefix) bool { return n.Contains(a) })
}
