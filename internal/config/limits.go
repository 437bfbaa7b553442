package config

import (
	"net/netip"
	"time"
)

// Connections bounds client connections.
type Connections struct {
	PerUserAddress        int `yaml:"per_user_address" default:"10" min:"0" max:"1000000" doc:"Sessions of one user from one address (IPv6: network of 64 bits). 0: no bound, here and below."`
	PerUser               int `yaml:"per_user" default:"50" min:"0" max:"1000000" doc:"Sessions of one user."`
	PerAddress            int `yaml:"per_address" default:"100" min:"0" max:"1000000" doc:"Connections from one address, those before the login included."`
	PreauthPerAddress     int `yaml:"preauth_per_address" default:"20" min:"0" max:"1000000" doc:"Connections from one address that have not logged in. Each gateway counts for itself."`
	PreauthNetworkPercent int `yaml:"preauth_network_percent" default:"25" min:"0" max:"100" doc:"The share of the slots for unauthenticated connections, half of max_connections, that one network may occupy. A network has 24 bits, IPv6 48; those of IPv6 56 bits may occupy half as much. An address may have preauth_per_address in any case; where that is 0, networks have no bound either. Each gateway counts for itself. 0: no bound."`
	Total                 int `yaml:"total" default:"0" min:"0" max:"100000000" doc:"Sessions of all users, on all gateways together. For one gateway, use max_connections."`
	NewPerMinute          int `yaml:"new_per_minute" default:"60" min:"0" max:"1000000" doc:"New connections from one address in a minute."`
	NewBurst              int `yaml:"new_burst" default:"30" min:"1" max:"1000000" doc:"How many of them may come at once."`
}

// ListenerLimits overrides limits for one listener.
type ListenerLimits struct {
	Connections    ListenerConnections `yaml:"connections" doc:"Bounds on client connections here. Connections are counted over all listeners and compared with this listener's bounds."`
	Failures       ListenerFailures    `yaml:"failures" doc:"Penalties for failed logins here. Failures are counted over all listeners and compared with this listener's bounds. The durations of bans, ban_within and known_for are the same everywhere."`
	UserQuota      ListenerQuota       `yaml:"user_quota" was:"budget" doc:"What the sessions of one user may use together here; listeners with the same quota share it. Uploads of a day are counted over all listeners and compared with this listener's bound."`
	ExemptNetworks []netip.Prefix      `yaml:"exempt_networks" was:"exempt" example:"[10.2.0.0/16]" doc:"Replaces limits.exempt_networks. An empty list exempts no network."`
}

// ListenerConnections is Connections with -1 for the value of limits.
type ListenerConnections struct {
	PerUserAddress        int `yaml:"per_user_address" default:"-1" min:"-1" max:"1000000" doc:"-1 (default): inherit limits.connections. Also for the keys below."`
	PerUser               int `yaml:"per_user" default:"-1" min:"-1" max:"1000000" doc:"As in limits.connections."`
	PerAddress            int `yaml:"per_address" default:"-1" min:"-1" max:"1000000" doc:"As in limits.connections."`
	PreauthPerAddress     int `yaml:"preauth_per_address" default:"-1" min:"-1" max:"1000000" doc:"As in limits.connections."`
	PreauthNetworkPercent int `yaml:"preauth_network_percent" default:"-1" min:"-1" max:"100" doc:"As in limits.connections."`
	NewPerMinute          int `yaml:"new_per_minute" default:"-1" min:"-1" max:"1000000" doc:"As in limits.connections."`
	NewBurst              int `yaml:"new_burst" default:"-1" min:"-1" max:"1000000" doc:"As in limits.connections, but 0 means that none may come at once."`
}

// ListenerFailures is Failures with -1, or -1s, for the value of limits.
type ListenerFailures struct {
	PerMinute          int           `yaml:"per_minute" default:"-1" min:"-1" max:"1000000" doc:"-1 (default): inherit limits.failures. Also for the keys below."`
	PerDay             int           `yaml:"per_day" default:"-1" min:"-1" max:"10000000" doc:"As in limits.failures."`
	Delay              time.Duration `yaml:"delay" default:"-1s" min:"-1s" max:"1m" doc:"-1s (default): inherit limits.failures."`
	MaxDelay           time.Duration `yaml:"max_delay" default:"-1s" min:"-1s" max:"5m" doc:"-1s (default): inherit limits.failures."`
	PerUserHour        int           `yaml:"per_user_hour" default:"-1" min:"-1" max:"1000000" doc:"As in limits.failures."`
	PerUserDay         int           `yaml:"per_user_day" was:"per_user_total" default:"-1" min:"-1" max:"10000000" doc:"As in limits.failures."`
	PerUserNetworkHour int           `yaml:"per_user_network_hour" default:"-1" min:"-1" max:"1000000" doc:"As in limits.failures."`
	BanAfter           int           `yaml:"ban_after" default:"-1" min:"-1" max:"1000000" doc:"As in limits.failures: a failed login here bans its address once it has this many failures within ban_within, here or elsewhere. A ban applies to all listeners."`
}

// Failures configures the penalties for failed logins.
type Failures struct {
	PerMinute          int           `yaml:"per_minute" default:"10" min:"0" max:"1000000" doc:"Failed logins from one address (IPv6: network of 64 bits) in a minute, beyond which further logins are refused without verifying them. The network around it (26 bits, IPv6 48) may have three times as many, the one around that (21 bits, IPv6 32) nine times. 0: no bound, here and below."`
	PerDay             int           `yaml:"per_day" default:"50" min:"0" max:"10000000" doc:"The same in a day."`
	Delay              time.Duration `yaml:"delay" default:"2s" min:"0s" max:"1m" doc:"The answer to a wrong password takes this long, plus or minus a fifth. The next login from the address waits as long before it is verified; each further wrong password doubles this wait. 0s: only the 200 ms of every denial."`
	MaxDelay           time.Duration `yaml:"max_delay" default:"15s" min:"0s" max:"5m" doc:"The longest such delay, and never more than a quarter of limits.preauth_timeout."`
	PerUserHour        int           `yaml:"per_user_hour" default:"10" min:"0" max:"1000000" doc:"Failed logins of one user in an hour, beyond which the user's logins are delayed, except from networks where the user has logged in recently (known_for)."`
	PerUserDay         int           `yaml:"per_user_day" was:"per_user_total" default:"100" min:"0" max:"10000000" doc:"Failed logins of one user in a day from unknown networks, beyond which the user may log in only from known networks. A user without any known network is delayed by max_delay instead. A successful login from a new network resets the count."`
	PerUserNetworkHour int           `yaml:"per_user_network_hour" default:"20" min:"0" max:"1000000" doc:"Failed logins of one user from one address (IPv6: network of 64 bits) in an hour. Beyond it, that user may not log in from there for a while, even if the network is known. For the network around it (24 bits) the same number refuses the user if the network is unknown, and delays the user if it is known."`
	KnownFor           time.Duration `yaml:"known_for" default:"720h" min:"1h" max:"8760h" doc:"How long a network counts as known after a successful login by the user."`
	BanAfter           int           `yaml:"ban_after" default:"10" min:"0" max:"1000000" doc:"An address with this many failed logins within ban_within is banned: its connections are refused. 0: automatic bans are off."`
	BanWithin          time.Duration `yaml:"ban_within" default:"10m" min:"1s" max:"24h" doc:"For ban_after."`
	BanDuration        time.Duration `yaml:"ban_duration" was:"ban" default:"10m" min:"1s" max:"24h" doc:"The duration of the first ban. Each further one is twice as long."`
	MaxBanDuration     time.Duration `yaml:"max_ban_duration" was:"max_ban" default:"24h" min:"1s" max:"8760h" doc:"The longest ban."`
}

// Quota bounds what the sessions of one user may use together.
type Quota struct {
	CommandsPerSecond int `yaml:"commands_per_second" default:"0" min:"0" max:"1000000" doc:"Commands, on each gateway; twice as many in a burst. In the modes reuse and resume only: splice does not parse commands. 0: no bound, here and below."`
	BytesInPerSecond  int `yaml:"bytes_in_per_second" default:"0" min:"0" max:"1000000000000" doc:"Bytes from the user's clients, on each gateway; twice as many in a burst."`
	BytesOutPerSecond int `yaml:"bytes_out_per_second" default:"0" min:"0" max:"1000000000000" doc:"Bytes to the user's clients, on each gateway; twice as many in a burst."`
	AppendBytesPerDay int `yaml:"append_bytes_per_day" default:"0" min:"0" max:"1000000000000000" doc:"Bytes of messages that the user's clients may upload (APPEND, REPLACE) in a day (UTC), on all gateways together. Beyond it they get NO [OVERQUOTA]. In the modes reuse and resume only."`
}

// ListenerQuota is Quota with -1 for the value of limits.
type ListenerQuota struct {
	CommandsPerSecond int `yaml:"commands_per_second" default:"-1" min:"-1" max:"1000000" doc:"-1 (default): inherit limits.user_quota. Also for the keys below."`
	BytesInPerSecond  int `yaml:"bytes_in_per_second" default:"-1" min:"-1" max:"1000000000000" doc:"As in limits.user_quota."`
	BytesOutPerSecond int `yaml:"bytes_out_per_second" default:"-1" min:"-1" max:"1000000000000" doc:"As in limits.user_quota."`
	AppendBytesPerDay int `yaml:"append_bytes_per_day" default:"-1" min:"-1" max:"1000000000000000" doc:"As in limits.user_quota. If any listener has a bound, uploads at listeners without one count too."`
}

// ForListener returns c with the overrides of a listener.
func (c Connections) ForListener(l Listener) Connections {
	if l.Limits == nil {
		return c
	}
	override := l.Limits.Connections
	overrideLimit(&c.PerUserAddress, override.PerUserAddress)
	overrideLimit(&c.PerUser, override.PerUser)
	overrideLimit(&c.PerAddress, override.PerAddress)
	overrideLimit(&c.PreauthPerAddress, override.PreauthPerAddress)
	overrideLimit(&c.PreauthNetworkPercent, override.PreauthNetworkPercent)
	overrideLimit(&c.NewPerMinute, override.NewPerMinute)
	overrideLimit(&c.NewBurst, override.NewBurst)
	return c
}

// ForListener returns f with the overrides of a listener.
func (f Failures) ForListener(l Listener) Failures {
	if l.Limits == nil {
		return f
	}
	override := l.Limits.Failures
	overrideLimit(&f.PerMinute, override.PerMinute)
	overrideLimit(&f.PerDay, override.PerDay)
	overrideLimit(&f.Delay, override.Delay)
	overrideLimit(&f.MaxDelay, override.MaxDelay)
	overrideLimit(&f.PerUserHour, override.PerUserHour)
	overrideLimit(&f.PerUserDay, override.PerUserDay)
	overrideLimit(&f.PerUserNetworkHour, override.PerUserNetworkHour)
	overrideLimit(&f.BanAfter, override.BanAfter)
	return f
}

// ForListener returns q with the overrides of a listener.
func (q Quota) ForListener(l Listener) Quota {
	if l.Limits == nil {
		return q
	}
	override := l.Limits.UserQuota
	overrideLimit(&q.CommandsPerSecond, override.CommandsPerSecond)
	overrideLimit(&q.BytesInPerSecond, override.BytesInPerSecond)
	overrideLimit(&q.BytesOutPerSecond, override.BytesOutPerSecond)
	overrideLimit(&q.AppendBytesPerDay, override.AppendBytesPerDay)
	return q
}

func overrideLimit[N int | time.Duration](limit *N, override N) {
	if override >= 0 {
		*limit = override
	}
}

// ExemptNetworksFor returns the networks that a listener exempts from limits.
func (l Limits) ExemptNetworksFor(listener Listener) []netip.Prefix {
	if listener.Limits != nil && listener.Limits.ExemptNetworks != nil {
		return listener.Limits.ExemptNetworks
	}
	return l.ExemptNetworks
}

// minRate lets a full buffer pass well before a peer counts as stalled. Bytes per
// second.
const minRate = 16 << 10

func (c checker) checkLimits() {
	l := &c.cfg.Limits
	if l.TLSHandshakeTimeout > l.PreauthTimeout {
		c.add("limits.tls_handshake_timeout", "is longer than preauth_timeout, which includes it")
	}
	c.checkQuota("limits.user_quota", l.UserQuota)
	if l.Failures.Delay > l.Failures.MaxDelay {
		c.add("limits.failures.delay", "is longer than max_delay")
	}
	for i, listener := range c.cfg.Listeners {
		if listener.Limits == nil {
			continue
		}
		key := MemberKey(ItemKey("listeners", i), "limits")
		if f := l.Failures.ForListener(listener); f != l.Failures && f.Delay > f.MaxDelay {
			c.add(key+".failures.delay", "is longer than max_delay")
		}
		if b := l.UserQuota.ForListener(listener); b != l.UserQuota {
			c.checkQuota(key+".user_quota", b)
		}
	}
	if l.Failures.BanDuration > l.Failures.MaxBanDuration {
		c.add("limits.failures.ban_duration", "is longer than max_ban_duration")
	}
}

func (c checker) checkQuota(key string, b Quota) {
	for name, rate := range map[string]int{"bytes_in_per_second": b.BytesInPerSecond, "bytes_out_per_second": b.BytesOutPerSecond} {
		if rate > 0 && rate < minRate {
			c.add(MemberKey(key, name), "is less than 16384: at such a rate a session would count as stalled")
		}
	}
}
