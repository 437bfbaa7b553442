package limit

import (
	"cmp"
	"errors"
	"net/netip"
	"time"

	"imapgate/internal/cluster"
	"imapgate/internal/event"
	"imapgate/internal/identity"
	"imapgate/internal/limit/ban"
	"imapgate/internal/limit/penalty"
	"imapgate/internal/limit/quota"
)

// Config configures a Limiter. Limits of 0 are none.
type Config struct {
	Prefix         string      // of the keys in Redis, such as "imapgate:"
	Connections    Connections // these four of every listener that Listeners does not name
	Failures       Failures    // the durations of bans, and KnownFor, of all listeners
	UserQuota      UserQuota
	ExemptNetworks []netip.Prefix
	Listeners      map[string]Listener // by name
	Preauth        int                 // connections before login that this gateway has room for; 0: unknown

	// HeartbeatTTL is how long the sessions of a gateway that has died count at the others. By
	// default 45 s, so that they are gone within 60.
	HeartbeatTTL time.Duration

	wait time.Duration // for Redis; by default cluster.Wait. Tests on busy machines have more

	Names identity.Names // how user names from other gateways are read
}

// Listener has the limits of a listener. Counts are over all listeners, and are compared with
// the limits of the listener.
type Listener struct {
	Connections    Connections
	Failures       Failures
	UserQuota      UserQuota
	ExemptNetworks []netip.Prefix // no address in them is counted, delayed or banned; limits of users hold
}

// Connections are limits of connections.
type Connections struct {
	PerUserAddress        int // sessions of a user from one address (IPv6: /64)
	PerUser               int // sessions of a user
	PerAddress            int // connections of an address, before login or after
	PreauthPerAddress     int // connections of an address before login, at this gateway
	PreauthNetworkPercent int // percent of Config.Preauth that an IPv4 /24 or IPv6 /48 may have; a /56 half as much
	Total                 int // sessions of all users
	NewPerMinute          int // new connections of an address
	NewBurst              int // how many of them may come at once
}

// Failures are the limits of failed logins, and UserQuota what the sessions of a user may use.
type (
	Failures  = penalty.Settings
	UserQuota = quota.Settings
)

const (
	defaultTTL      = 45 * time.Second
	defaultBan      = 10 * time.Minute
	defaultKnownFor = 30 * day
	day             = 24 * time.Hour
)

func (c *Config) setDefaults() error {
	c.HeartbeatTTL, c.wait = cmp.Or(c.HeartbeatTTL, defaultTTL), cmp.Or(c.wait, cluster.Wait)
	f := &c.Failures
	f.BanWithin, f.BanDuration = cmp.Or(f.BanWithin, defaultBan), cmp.Or(f.BanDuration, defaultBan)
	f.MaxBanDuration = cmp.Or(f.MaxBanDuration, max(day, f.BanDuration))
	f.KnownFor = cmp.Or(f.KnownFor, defaultKnownFor)
	if f.BanWithin < 0 || f.BanDuration < 0 || f.MaxBanDuration < f.BanDuration || f.KnownFor < 0 {
		return errors.New("limit: no duration of bans may be below 0, nor the longest ban be shorter than the first")
	}
	return nil
}

// defaultListener returns the limits of listeners that have none of their own.
func (c *Config) defaultListener() *Listener {
	return &Listener{c.Connections, c.Failures, c.UserQuota, c.ExemptNetworks}
}

// Refusal is the error of a connection or login that is over a limit or banned.
type Refusal struct {
	Reason     event.Limit
	Net        netip.Prefix  // the network it is about, if one
	RetryAfter time.Duration // until another try may succeed; 0: when a session ends
}

func (r *Refusal) Error() string {
	text := "limit: " + string(r.Reason)
	if r.Net.IsValid() {
		text += " " + r.Net.String()
	}
	return text
}

// Hooks are called for metrics and the audit log. Any may be nil. They are called without a
// lock and must not block.
type Hooks struct {
	OnRefused    func(event.Limit)
	OnBan        func(Ban)        // a ban imposed here, not those of other gateways
	OnBanRequest func(BanRequest) // an operator's, wherever it was given: once at each gateway
	OnSpray      func(Spray)      // password spraying is suspected, or no longer
	OnRedis      func(up bool)
}

func (h *Hooks) setDefaults() {
	setDefault(&h.OnRefused)
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

// Ban is one banned network, and Spray a suspicion of many users being tried with few guesses
// each.
type (
	Ban   = ban.Ban
	Spray = penalty.Spray
)

// BanRequest is a change of bans by an operator.
type BanRequest struct {
	Net      netip.Prefix
	Duration time.Duration // of the ban; 0: it is ended
	Note     string
}
