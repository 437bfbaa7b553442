package limit

import (
	"cmp"
	"errors"
	"net/netip"
	"time"

	"imapgate/internal/event"
	"imapgate/internal/identity"
)

// Config is everything the gate needs to know. In all of it, a number of 0 is
// no limit.
type Config struct {
	Prefix    string // of the keys in Redis, such as "imapgate:"
	Settings         // these three of every listener that Listeners does not name
	Failures  Failures
	Quotas    Quotas
	Listeners map[string]Listener // by name
	Preauth   int                 // connections before the login that this gateway has room for; 0: unknown

	Bans     Bans
	KnownFor time.Duration // how long a network is known behind a right login; default 30 days

	// HeartbeatTTL is how long the sessions of a gateway that has died count at the
	// others. Default 45 s, so that they are gone within 60.
	HeartbeatTTL time.Duration

	wait time.Duration // for Redis; default ioTime. Tests on busy machines have more

	Names identity.Names // how user names are read: in what other gateways write
}

// Listener are the limits of a listener. What is counted is counted over all
// listeners; what it is compared with is the listener's.
type Listener struct {
	Settings
	Failures Failures
	Quotas   Quotas
}

// Settings say how many connections there may be.
type Settings struct {
	PerUserAddress        int // sessions of a user from one address (IPv6: /64)
	PerUser               int // sessions of a user
	PerAddress            int // connections of an address, before the login or after
	PreauthPerAddress     int // connections of an address before the login, at this gateway
	PreauthNetworkPercent int // percent of Config.PreauthTimeout that an IPv4 /24 or IPv6 /48 may have; a /56 half as much
	Total                 int // sessions of everybody
	NewPerMinute          int // new connections of an address
	NewBurst              int // how many of them may come at once

	// Exempt are networks no address of which is counted, delayed or banned; nor do
	// failed logins from there count for users.
	// The limits of users hold there too.
	Exempt []netip.Prefix
}

// Failures says what failed logins cost.
type Failures struct {
	PerMinute          int           // of one address; the networks around it have 3 and 9 times as many
	PerDay             int           // the same
	Delay              time.Duration // the least time of a denial, and the first delay of the next login
	MaxDelay           time.Duration // where doubling ends
	PerUserHour        int           // of one user; then logins from networks the user is not known in are delayed
	PerUserDay         int           // of one user in a day; then such logins are refused, of a user who is known anywhere
	PerUserNetworkHour int           // of one user in one network, known there or not; default 20
	BanAfter           int           // of one address within Bans.Window
}

// Bans are everywhere the same, whichever listener somebody has failed at.
type Bans struct {
	Window      time.Duration // default 10 minutes
	Duration    time.Duration // each further one is twice as long; default 10 minutes
	MaxDuration time.Duration // default a day
}

const (
	defaultLease    = 45 * time.Second
	defaultPairHour = 20
	defaultBan      = 10 * time.Minute
	defaultKnown    = 30 * day
)

func (c *Config) complete() error {
	c.HeartbeatTTL, c.wait = cmp.Or(c.HeartbeatTTL, defaultLease), cmp.Or(c.wait, ioTime)
	c.Failures.PerUserNetworkHour = cmp.Or(c.Failures.PerUserNetworkHour, defaultPairHour)
	b := &c.Bans
	b.Window, b.Duration = cmp.Or(b.Window, defaultBan), cmp.Or(b.Duration, defaultBan)
	b.MaxDuration = cmp.Or(b.MaxDuration, max(day, b.Duration))
	c.KnownFor = cmp.Or(c.KnownFor, defaultKnown)
	if b.Window < 0 || b.Duration < 0 || b.MaxDuration < b.Duration || c.KnownFor < 0 {
		return errors.New("limit: no time of bans may be below 0, nor the longest ban be shorter than the first")
	}
	return nil
}

// usual are the limits of listeners that have none of their own.
func (c *Config) usual() *Listener { return &Listener{c.Settings, c.Failures, c.Quotas} }

// Refusal is the error of whoever may not come in.
type Refusal struct {
	Reason     event.Limit
	Net        netip.Prefix  // the network it is about, if one
	RetryAfter time.Duration // until it is worth trying again; 0: when something ends
	Shared     bool          // it was the count of all gateways together
}

func (r *Refusal) Error() string {
	text := "limit: " + string(r.Reason)
	if r.Net.IsValid() {
		text += " " + r.Net.String()
	}
	return text
}

// Hooks are told what happens, for metrics and the audit log. Any may be nil.
// They are called without a lock, by whoever noticed, and must not block.
type Hooks struct {
	OnRefused    func(event.Limit)
	OnBan        func(Ban)        // a ban imposed here, not those followed from others
	OnBanRequest func(BanRequest) // an operator's, wherever it was given: once at each gateway
	OnSpray      func(Spray)      // password spraying is suspected, or no longer
	OnRedis      func(up bool)
}

func (h *Hooks) complete() {
	if h.OnRefused == nil {
		h.OnRefused = func(event.Limit) {}
	}
	if h.OnBan == nil {
		h.OnBan = func(Ban) {}
	}
	if h.OnBanRequest == nil {
		h.OnBanRequest = func(BanRequest) {}
	}
	if h.OnSpray == nil {
		h.OnSpray = func(Spray) {}
	}
	if h.OnRedis == nil {
		h.OnRedis = func(bool) {}
	}
}

// Ban is one banned network.
type Ban struct {
	Net       netip.Prefix
	Reason    event.BanReason
	Remaining time.Duration // what is left of it
	Count     int           // which ban of this network it is, from 1
	Active    bool          // somebody has logged in from there of late: not refused before it is known who comes
	Note      string        // an operator's words
}

// BanRequest is a change of bans by an operator.
type BanRequest struct {
	Net      netip.Prefix
	Duration time.Duration // of the ban; 0: it is lifted
	Note     string
}

// Spray is a suspicion of many users being tried with few guesses each.
type Spray struct {
	Suspected bool
	Net       netip.Prefix // where, when one network does it; zero: everywhere
	Users     int          // about how many were tried
}
