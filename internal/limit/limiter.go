// Package limit admits connections and logins, and slows down or refuses those that are over
// a limit. A Limiter is the gateway's; a Conn is one client's, and is used by the goroutine
// that serves it.
//
//	conn.go        one connection: Open, BeginLogin, LoginFailed, BeginSession, Close
//	counter        how many connections and sessions there are here
//	penalty        what failed logins cost, by one table
//	ban            the banned networks
//	quota.go       the rate of new connections, and what a user's sessions may use
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
	"cmp"
	"context"
	"errors"
	"net/netip"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"
	"golang.org/x/time/rate"

	"imapgate/internal/cluster"
	"imapgate/internal/event"
	"imapgate/internal/identity"
	"imapgate/internal/limit/ban"
	"imapgate/internal/limit/counter"
	"imapgate/internal/limit/penalty"
)

// Config configures a Limiter. Limits of 0 are none.
type Config struct {
	Prefix    string              // of the keys in Redis, such as "imapgate:"
	Settings                      // of every listener that Listeners does not name; the durations of bans, and KnownFor, of all
	Listeners map[string]Settings // by name
	Preauth   int                 // connections before login that this gateway has room for; 0: unknown

	// HeartbeatTTL is how long the sessions of a gateway that has died count at the others. By
	// default 45 s, so that they are gone within 60.
	HeartbeatTTL time.Duration

	Wait time.Duration // for Redis; by default cluster.Wait. Commands, and tests on busy machines, have more

	Names identity.Names // how user names from other gateways are read
}

func (c *Config) setDefaults() error {
	c.HeartbeatTTL, c.Wait = cmp.Or(c.HeartbeatTTL, 45*time.Second), cmp.Or(c.Wait, cluster.Wait)
	if f := &c.Failures; f.BanWithin < 0 || f.BanDuration < 0 || f.MaxBanDuration < f.BanDuration || f.KnownFor < 0 {
		return errors.New("limit: no duration of bans may be below 0, nor the longest ban be shorter than the first")
	}
	return nil
}

// Hooks are called for metrics and the audit log. Any may be nil. They are called without a
// lock and must not block.
type Hooks struct {
	OnBan        func(Ban)        // a ban imposed here, not those of other gateways
	OnBanRequest func(BanRequest) // an operator's, wherever it was given: once at each gateway
	OnSpray      func(Spray)      // password spraying is suspected, or no longer
	OnRedis      func(up bool)
}

func (h *Hooks) setDefaults() {
	setDefault(&h.OnBan)
	setDefault(&h.OnBanRequest)
	setDefault(&h.OnSpray)
	setDefault(&h.OnRedis)
}

func setDefault[T any](hook *func(T)) {
	if *hook == nil {
		*hook = func(T) {}
	}
}

// Refusal is the error of a connection or login that is over a limit or banned. Ban is one
// banned network, and Spray a suspicion of many users being tried with few guesses each.
type (
	Refusal = penalty.Refusal
	Ban     = ban.Ban
	Spray   = penalty.Spray
)

// BanRequest is a change of bans by an operator.
type BanRequest struct {
	Net      netip.Prefix
	Duration time.Duration // of the ban; 0: it is ended
	Note     string
}

// Limiter has all limits of a gateway.
type Limiter struct {
	// Set once.
	cfg           Config
	listeners     map[string]*Settings // the limits of those with limits of their own
	countsUploads bool                 // some listener has a limit
	hooks         Hooks
	log           *zap.Logger
	logged        rate.Sometimes
	counts        counter.Table
	quotas        *quotas
	history       *penalty.History
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
		listeners: make(map[string]*Settings, len(cfg.Listeners)), countsUploads: cfg.UserQuota.AppendBytesPerDay > 0,
		quotas: newQuotas(), history: penalty.NewHistory(&cfg.Failures, hooks.OnSpray), bans: ban.New(),
	}
	for name, own := range cfg.Listeners {
		l.listeners[name] = &own
		l.countsUploads = l.countsUploads || own.UserQuota.AppendBytesPerDay > 0
	}
	if client != nil {
		l.cluster = cluster.New(client, cluster.Options{Prefix: cfg.Prefix, TTL: cfg.HeartbeatTTL, Wait: cfg.Wait, Failures: &l.cfg.Failures, Table: l.bans, OnHealth: l.reportRedis, OnChange: l.applyChange})
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
	l.cluster.Run(ctx)
	l.cluster.SignOff()
	return nil
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

// RedisHealth returns whether the latest exchanges with Redis have succeeded, and why not.
func (l *Limiter) RedisHealth() (up bool, why string) {
	if l.cluster == nil {
		return false, ""
	}
	return l.cluster.Health()
}

// BanCount returns how many networks are banned, as far as this gateway knows.
func (l *Limiter) BanCount() int { return l.bans.Len() }

// CountersInUse returns 0 when there are no connections and sessions.
func (l *Limiter) CountersInUse() int { return l.counts.Sum() }

// countFailure counts a failure at all gateways, and learns what they know.
func (l *Limiter) countFailure(ctx context.Context, u identity.User, a netip.Addr, counted penalty.Counted) {
	l.history.Count(u, a, counted)
	if l.cluster == nil {
		return
	}
	if fleet, err := l.cluster.CountFailure(ctx, counted, penalty.Subjects(u, a)...); err == nil {
		l.history.Learn(u, a, fleet)
	}
}

// noteSuccess notes a successful login, and returns the calls that note it in the cluster.
func (l *Limiter) noteSuccess(u identity.User, a netip.Addr) (calls []cluster.Call) {
	stale, isNew := l.history.Succeeded(u, a)
	if l.cluster == nil {
		return nil
	}
	for _, s := range stale {
		calls = append(calls, l.cluster.NoteLogin(s))
	}
	if isNew {
		calls = append(calls, l.cluster.Forget(penalty.Subject{User: u}))
	}
	return calls
}

// ban bans a network here and everywhere, and the /48 around it when it has too many banned
// ones.
func (l *Limiter) ban(ctx context.Context, net netip.Prefix, reason event.BanReason) {
	settings, around := &l.cfg.Failures, penalty.UserNet(net.Addr())
	isActive := net.Bits() < around.Bits() || l.history.IsActive(around)
	if l.cluster != nil && !isActive {
		known, _ := l.cluster.Known(ctx, penalty.Subject{Net: around})
		isActive = len(known) > 0
	}
	b, isNew := l.bans.Impose(Ban{Net: net, Reason: reason, Active: isActive}, settings.BanDuration, settings.MaxBanDuration)
	if !isNew {
		return
	}
	if l.cluster != nil {
		if longer, err := l.cluster.Ban(ctx, b); err == nil {
			b = longer
			_ = l.bans.Put(b) // it has its place already
		}
	}
	l.hooks.OnBan(b)
	if up, ok := l.bans.CrowdedParent(net); ok {
		l.ban(ctx, up, event.BanNeighbors)
	}
}

// applyChange takes over one change. One that cannot be read is for another version.
func (l *Limiter) applyChange(change cluster.Change) {
	if change.Kind == "forgive" {
		if u, err := l.cfg.Names.Canonicalize(change.Subject); err == nil && u.String() == change.Subject {
			l.history.ForgetUser(u)
		}
		return
	}
	net, err := netip.ParsePrefix(change.Subject)
	if err != nil {
		return
	}
	if b := change.Ban; change.Kind == "lift" {
		l.lift(net)
	} else if b.Net.IsValid() { // "again": the order is on record already
		if change.Kind == "ban" && b.Reason == event.BanOperator {
			l.hooks.OnBanRequest(BanRequest{Net: net, Duration: max(0, b.Remaining), Note: b.Note})
		}
		_ = l.bans.Put(b)
	}
}

// lift ends bans and forgets failures here, and reports the bans that had not ended. The
// gateway that has given the order gets it from Redis again, when there is nothing left.
func (l *Limiter) lift(net netip.Prefix) []netip.Prefix {
	lifted := l.bans.Lift(net)
	l.history.ForgetNet(net)
	for _, n := range lifted {
		l.hooks.OnBanRequest(BanRequest{Net: n})
	}
	return lifted
}
