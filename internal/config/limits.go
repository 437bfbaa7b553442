package config

import (
	"net/netip"
	"time"
)

// Connections bounds the connections of clients.
type Connections struct {
	PerUserAddress    int `yaml:"per_user_address" default:"10" min:"0" max:"1000000" doc:"Sessions of one user from one address (IPv6: network of 64 bits). 0: no bound, here and below."`
	PerUser           int `yaml:"per_user" default:"50" min:"0" max:"1000000" doc:"Sessions of one user."`
	PerAddress        int `yaml:"per_address" default:"100" min:"0" max:"1000000" doc:"Connections from one address, those before the login included."`
	PreauthPerAddress int `yaml:"preauth_per_address" default:"20" min:"0" max:"1000000" doc:"Connections from one address that have not logged in. Counted by each gateway for itself."`
	PreauthNetwork    int `yaml:"preauth_network_percent" default:"25" min:"0" max:"100" doc:"How much of the room for connections that have not logged in, half of max_connections, those from one network may take: 24 bits, IPv6 48; and half as much those from 56 bits. An address may have preauth_per_address in any case, and where that is 0 networks have no bound either. Counted by each gateway for itself. 0: no bound."`
	Total             int `yaml:"total" default:"0" min:"0" max:"100000000" doc:"Sessions of everybody, at all gateways together. For one gateway there is max_connections."`
	NewPerMinute      int `yaml:"new_per_minute" default:"60" min:"0" max:"1000000" doc:"New connections from one address."`
	NewBurst          int `yaml:"new_burst" default:"30" min:"1" max:"1000000" doc:"How many of them may come at once."`
}

// ListenerLimits is where a listener differs from limits.
type ListenerLimits struct {
	Connections ListenerConnections `yaml:"connections" doc:"How many connections clients may have here. Numbers are counted over all listeners; what is compared with them is this listener's."`
	Failures    ListenerFailures    `yaml:"failures" doc:"What failed logins cost here. They count wherever they were; what is compared with the counts is this listener's. The lengths of bans, ban_within and known_for are the same everywhere."`
	Budget      ListenerBudget      `yaml:"user_quota" was:"budget" doc:"What the sessions of one user may use here together, those of listeners with the same budget included. Uploads of a day are counted over all listeners; what is compared with them is this listener's."`
	Exempt      []netip.Prefix      `yaml:"exempt_networks" was:"exempt" example:"[10.2.0.0/16]" doc:"Instead of limits.exempt_networks. An empty list exempts nobody."`
}

// ListenerConnections is Connections where -1 stands for what limits says.
type ListenerConnections struct {
	PerUserAddress    int `yaml:"per_user_address" default:"-1" min:"-1" max:"1000000" doc:"As in limits.connections; -1: what is said there, here and below."`
	PerUser           int `yaml:"per_user" default:"-1" min:"-1" max:"1000000" doc:"As in limits.connections."`
	PerAddress        int `yaml:"per_address" default:"-1" min:"-1" max:"1000000" doc:"As in limits.connections."`
	PreauthPerAddress int `yaml:"preauth_per_address" default:"-1" min:"-1" max:"1000000" doc:"As in limits.connections."`
	PreauthNetwork    int `yaml:"preauth_network_percent" default:"-1" min:"-1" max:"100" doc:"As in limits.connections."`
	NewPerMinute      int `yaml:"new_per_minute" default:"-1" min:"-1" max:"1000000" doc:"As in limits.connections."`
	NewBurst          int `yaml:"new_burst" default:"-1" min:"-1" max:"1000000" doc:"As in limits.connections, but 0 is none."`
}

// ListenerFailures is Failures where -1, and of times -1s, stands for what limits says.
type ListenerFailures struct {
	PerMinute    int           `yaml:"per_minute" default:"-1" min:"-1" max:"1000000" doc:"As in limits.failures; -1: what is said there, here and below."`
	PerDay       int           `yaml:"per_day" default:"-1" min:"-1" max:"10000000" doc:"As in limits.failures."`
	Delay        time.Duration `yaml:"delay" default:"-1s" min:"-1s" max:"1m" doc:"As in limits.failures; -1s: what is said there."`
	MaxDelay     time.Duration `yaml:"max_delay" default:"-1s" min:"-1s" max:"5m" doc:"As in limits.failures; -1s: what is said there."`
	PerUserHour  int           `yaml:"per_user_hour" default:"-1" min:"-1" max:"1000000" doc:"As in limits.failures."`
	PerUserTotal int           `yaml:"per_user_day" was:"per_user_total" default:"-1" min:"-1" max:"10000000" doc:"As in limits.failures."`
	PerUserNet   int           `yaml:"per_user_network_hour" default:"-1" min:"-1" max:"1000000" doc:"As in limits.failures."`
	BanAfter     int           `yaml:"ban_after" default:"-1" min:"-1" max:"1000000" doc:"As in limits.failures: a failed login here bans its address when it has failed as often within ban_within, here or elsewhere. Who is banned is at all listeners."`
}

// Failures is what failed logins cost.
type Failures struct {
	PerMinute    int           `yaml:"per_minute" default:"10" min:"0" max:"1000000" doc:"Failed logins from one address (IPv6: network of 64 bits) in a minute; beyond it no login is tried. The network around it (26 bits, IPv6 48) may have three times as many, the one around that (21 bits, IPv6 32) nine times. 0: no bound, here and below."`
	PerDay       int           `yaml:"per_day" default:"50" min:"0" max:"10000000" doc:"The same in a day."`
	Delay        time.Duration `yaml:"delay" default:"2s" min:"0s" max:"1m" doc:"The answer to a wrong password takes this long, a fifth more or less. The next login from the address waits as long before it is tried, each one behind a further wrong password twice as long. 0s: nothing waits but the 200 ms of every denial."`
	MaxDelay     time.Duration `yaml:"max_delay" default:"15s" min:"0s" max:"5m" doc:"The longest such delay, and never more than a quarter of limits.preauth_timeout."`
	PerUserHour  int           `yaml:"per_user_hour" default:"10" min:"0" max:"1000000" doc:"Failed logins of one user in an hour, beyond which logins for it are delayed. Networks from which the user has logged in of late (known_for) are not."`
	PerUserTotal int           `yaml:"per_user_day" was:"per_user_total" default:"100" min:"0" max:"10000000" doc:"Failed logins of one user in a day from networks where it is not known, beyond which only networks where it is may log in. A user who is known in no network is delayed by max_delay instead. A right login from a new network starts again."`
	PerUserNet   int           `yaml:"per_user_network_hour" default:"20" min:"0" max:"1000000" doc:"Failed logins of one user from one address (IPv6: network of 64 bits) in an hour, beyond which that user may not log in there for a while, also where it is known. As many from the network around it (24 bits) are enough where the user is not known in it; where it is they delay."`
	KnownFor     time.Duration `yaml:"known_for" default:"720h" min:"1h" max:"8760h" doc:"A network is known for this long behind a right login of the user."`
	BanAfter     int           `yaml:"ban_after" default:"10" min:"0" max:"1000000" doc:"An address with this many failed logins within ban_within is banned: its connections are refused. 0: nobody is banned but by hand."`
	BanWithin    time.Duration `yaml:"ban_within" default:"10m" min:"1s" max:"24h" doc:"For ban_after."`
	Ban          time.Duration `yaml:"ban_duration" was:"ban" default:"10m" min:"1s" max:"24h" doc:"The length of the first ban. Each further one is twice as long."`
	MaxBan       time.Duration `yaml:"max_ban_duration" was:"max_ban" default:"24h" min:"1s" max:"8760h" doc:"The longest ban."`
}

// Budget is what the sessions of one user may use together.
type Budget struct {
	CommandsPerSecond int `yaml:"commands_per_second" default:"0" min:"0" max:"1000000" doc:"Commands, at each gateway; twice as many at once. In the modes reuse and resume only: in splice nobody reads commands. 0: no bound, here and below."`
	BytesInPerSecond  int `yaml:"bytes_in_per_second" default:"0" min:"0" max:"1000000000000" doc:"Bytes from the user's clients, at each gateway; twice as many at once."`
	BytesOutPerSecond int `yaml:"bytes_out_per_second" default:"0" min:"0" max:"1000000000000" doc:"Bytes to the user's clients, at each gateway; twice as many at once."`
	AppendBytesPerDay int `yaml:"append_bytes_per_day" default:"0" min:"0" max:"1000000000000000" doc:"Bytes of messages that the user's clients may upload (APPEND, REPLACE) in a day (UTC), at all gateways together; beyond it they get NO [OVERQUOTA]. In the modes reuse and resume only."`
}

// ListenerBudget is Budget where -1 stands for what limits says.
type ListenerBudget struct {
	CommandsPerSecond int `yaml:"commands_per_second" default:"-1" min:"-1" max:"1000000" doc:"As in limits.user_quota; -1: what is said there, here and below."`
	BytesInPerSecond  int `yaml:"bytes_in_per_second" default:"-1" min:"-1" max:"1000000000000" doc:"As in limits.user_quota."`
	BytesOutPerSecond int `yaml:"bytes_out_per_second" default:"-1" min:"-1" max:"1000000000000" doc:"As in limits.user_quota."`
	AppendBytesPerDay int `yaml:"append_bytes_per_day" default:"-1" min:"-1" max:"1000000000000000" doc:"As in limits.user_quota. When any listener has a bound, what is uploaded at one without counts too."`
}

// On is c as a listener has it.
func (c Connections) On(l Listener) Connections {
	if l.Limits == nil {
		return c
	}
	theirs := l.Limits.Connections
	over(&c.PerUserAddress, theirs.PerUserAddress)
	over(&c.PerUser, theirs.PerUser)
	over(&c.PerAddress, theirs.PerAddress)
	over(&c.PreauthPerAddress, theirs.PreauthPerAddress)
	over(&c.PreauthNetwork, theirs.PreauthNetwork)
	over(&c.NewPerMinute, theirs.NewPerMinute)
	over(&c.NewBurst, theirs.NewBurst)
	return c
}

// On is f as a listener has it.
func (f Failures) On(l Listener) Failures {
	if l.Limits == nil {
		return f
	}
	theirs := l.Limits.Failures
	over(&f.PerMinute, theirs.PerMinute)
	over(&f.PerDay, theirs.PerDay)
	over(&f.Delay, theirs.Delay)
	over(&f.MaxDelay, theirs.MaxDelay)
	over(&f.PerUserHour, theirs.PerUserHour)
	over(&f.PerUserTotal, theirs.PerUserTotal)
	over(&f.PerUserNet, theirs.PerUserNet)
	over(&f.BanAfter, theirs.BanAfter)
	return f
}

// On is b as a listener has it.
func (b Budget) On(l Listener) Budget {
	if l.Limits == nil {
		return b
	}
	theirs := l.Limits.Budget
	over(&b.CommandsPerSecond, theirs.CommandsPerSecond)
	over(&b.BytesInPerSecond, theirs.BytesInPerSecond)
	over(&b.BytesOutPerSecond, theirs.BytesOutPerSecond)
	over(&b.AppendBytesPerDay, theirs.AppendBytesPerDay)
	return b
}

func over[N int | time.Duration](ours *N, theirs N) {
	if theirs >= 0 {
		*ours = theirs
	}
}

// ExemptOn is whom a listener does not count.
func (l Limits) ExemptOn(on Listener) []netip.Prefix {
	if on.Limits != nil && on.Limits.Exempt != nil {
		return on.Limits.Exempt
	}
	return l.Exempt
}

// leastRate lets a full buffer pass well before a peer is taken to have stalled.
const leastRate = 16 << 10

func (k checker) limits() {
	l := &k.c.Limits
	if l.TLSHandshakeTimeout > l.PreauthTimeout {
		k.add("limits.tls_handshake_timeout", "is longer than preauth_timeout, which includes it")
	}
	k.budget("limits.user_quota", l.Budget)
	if l.Failures.Delay > l.Failures.MaxDelay {
		k.add("limits.failures.delay", "is longer than max_delay")
	}
	for i, on := range k.c.Listeners {
		if on.Limits == nil {
			continue
		}
		key := Below(Indexed("listeners", i), "limits")
		if f := l.Failures.On(on); f != l.Failures && f.Delay > f.MaxDelay {
			k.add(key+".failures.delay", "is longer than max_delay")
		}
		if b := l.Budget.On(on); b != l.Budget {
			k.budget(key+".user_quota", b)
		}
	}
	if l.Failures.Ban > l.Failures.MaxBan {
		k.add("limits.failures.ban_duration", "is longer than max_ban_duration")
	}
}

func (k checker) budget(key string, b Budget) {
	for name, rate := range map[string]int{"bytes_in_per_second": b.BytesInPerSecond, "bytes_out_per_second": b.BytesOutPerSecond} {
		if rate > 0 && rate < leastRate {
			k.add(Below(key, name), "is less than 16384: a session would seem to have stalled")
		}
	}
}
