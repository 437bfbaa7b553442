package limit

import (
	"cmp"
	"errors"
	"net/netip"
	"time"

	"imapgate/internal/cluster"
	"imapgate/internal/identity"
	"imapgate/internal/limit/ban"
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

	wait time.Duration // for Redis; by default cluster.Wait. Tests on busy machines have more

	Names identity.Names // how user names from other gateways are read
}

const (
	defaultTTL = 45 * time.Second
	day        = 24 * time.Hour
)

func (c *Config) setDefaults() error {
	c.HeartbeatTTL, c.wait = cmp.Or(c.HeartbeatTTL, defaultTTL), cmp.Or(c.wait, cluster.Wait)
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
