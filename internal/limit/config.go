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
	Prefix    string              // of the keys in Redis, such as "imapgate:"
	Settings                      // of every listener that Listeners does not name
	Listeners map[string]Settings // by name
	Preauth   int                 // connections before the login that this gateway has room for; 0: unknown

	// HeartbeatTTL is how long the sessions of a gateway that has died count at the
	// others. Default 45 s, so that they are gone within 60.
	HeartbeatTTL time.Duration

	wait time.Duration // for Redis; default ioTime. Tests on busy machines have more

	Names identity.Names // how user names are read: in what other gateways write
}

const defaultLease = 45 * time.Second

func (c *Config) complete() error {
	c.HeartbeatTTL, c.wait = cmp.Or(c.HeartbeatTTL, defaultLease), cmp.Or(c.wait, ioTime)
	if f := &c.Failures; f.BanWithin < 0 || f.BanDuration < 0 || f.MaxBanDuration < f.BanDuration || f.KnownFor < 0 {
		return errors.New("limit: no time of bans may be below 0, nor the longest ban be shorter than the first")
	}
	return nil
}

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
