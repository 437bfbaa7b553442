package limit

import (
	"net/netip"
	"time"
)

// Settings are the limits that a listener may override, but for those that are global.
type Settings struct {
	Connections    `yaml:"connections" doc:"Bounds on the connections of clients. When a bound is reached, clients get BYE before login, or NO [LIMIT] after a correct password. With redis, the counts cover all gateways." listener:"Bounds on client connections here. Connections are counted over all listeners and compared with this listener's bounds."`
	Failures       Failures       `yaml:"failures" doc:"Penalties for failed logins. The same wrong password repeated, such as by a phone with an outdated password, counts once. With redis, the counts, delays and bans cover all gateways." listener:"Penalties for failed logins here. Failures are counted over all listeners and compared with this listener's bounds. The durations of bans, ban_within and known_for are the same everywhere."`
	UserQuota      Quotas         `yaml:"user_quota" was:"budget" doc:"What the sessions of one user may use together. A user who exceeds it is slowed down, not disconnected." listener:"What the sessions of one user may use together here; listeners with the same quota share it. Uploads of a day are counted over all listeners and compared with this listener's bound."`
	ExemptNetworks []netip.Prefix `yaml:"exempt_networks" was:"exempt" default:"127.0.0.0/8 ::1/128" example:"[127.0.0.0/8, 10.2.0.0/16]" reload:"live" doc:"Networks whose addresses are not counted, delayed or banned, such as a webmail's, which stands for many users. The bounds on a user's sessions and quota apply there too, but failed logins from there are not counted. The client's own address is compared: that of a PROXY header or a trusted ID if there is one." listener:"Replaces limits.exempt_networks. An empty list exempts no network."`
}

// Connections bounds client connections.
type Connections struct {
	PerUserAddress        int `yaml:"per_user_address" default:"10" min:"0" max:"1000000" reload:"live" doc:"Sessions of one user from one address (IPv6: network of 64 bits). 0: no bound, here and below."`
	PerUser               int `yaml:"per_user" default:"50" min:"0" max:"1000000" reload:"live" doc:"Sessions of one user."`
	PerAddress            int `yaml:"per_address" default:"100" min:"0" max:"1000000" reload:"live" doc:"Connections from one address, those before the login included."`
	PreauthPerAddress     int `yaml:"preauth_per_address" default:"20" min:"0" max:"1000000" reload:"live" doc:"Connections from one address that have not logged in. Each gateway counts for itself."`
	PreauthNetworkPercent int `yaml:"preauth_network_percent" default:"25" min:"0" max:"100" reload:"live" doc:"The share of the slots for unauthenticated connections, half of max_connections, that one network may occupy. A network has 24 bits, IPv6 48; those of IPv6 56 bits may occupy half as much. An address may have preauth_per_address in any case; where that is 0, networks have no bound either. Each gateway counts for itself. 0: no bound."`
	Total                 int `yaml:"total" default:"0" min:"0" max:"100000000" reload:"live" doc:"Sessions of all users, on all gateways together. For one gateway, use max_connections." global:"true"`
	NewPerMinute          int `yaml:"new_per_minute" default:"60" min:"0" max:"1000000" reload:"live" doc:"New connections from one address in a minute."`
	NewBurst              int `yaml:"new_burst" default:"30" min:"1" max:"1000000" reload:"live" doc:"How many of them may come at once." listener:"As in limits.connections, but 0 means that none may come at once."`
}

// Failures configures the penalties for failed logins.
type Failures struct {
	PerMinute          int           `yaml:"per_minute" default:"10" min:"0" max:"1000000" reload:"live" doc:"Failed logins from one address (IPv6: network of 64 bits) in a minute, beyond which further logins are refused without verifying them. The network around it (26 bits, IPv6 48) may have three times as many, the one around that (21 bits, IPv6 32) nine times. 0: no bound, here and below."`
	PerDay             int           `yaml:"per_day" default:"50" min:"0" max:"10000000" reload:"live" doc:"The same in a day."`
	Delay              time.Duration `yaml:"delay" default:"2s" min:"0s" max:"1m" reload:"live" doc:"The answer to a wrong password takes this long, plus or minus a fifth. The next login from the address waits as long before it is verified; each further wrong password doubles this wait. 0s: only the 200 ms of every denial."`
	MaxDelay           time.Duration `yaml:"max_delay" default:"15s" min:"0s" max:"5m" reload:"live" doc:"The longest such delay, and never more than a quarter of limits.preauth_timeout."`
	PerUserHour        int           `yaml:"per_user_hour" default:"10" min:"0" max:"1000000" reload:"live" doc:"Failed logins of one user in an hour, beyond which the user's logins are delayed, except from networks where the user has logged in recently (known_for)."`
	PerUserDay         int           `yaml:"per_user_day" was:"per_user_total" default:"100" min:"0" max:"10000000" reload:"live" doc:"Failed logins of one user in a day from unknown networks, beyond which the user may log in only from known networks. A user without any known network is delayed by max_delay instead. A successful login from a new network resets the count."`
	PerUserNetworkHour int           `yaml:"per_user_network_hour" default:"20" min:"0" max:"1000000" reload:"live" doc:"Failed logins of one user from one address (IPv6: network of 64 bits) in an hour. Beyond it, that user may not log in from there for a while, even if the network is known. For the network around it (24 bits) the same number refuses the user if the network is unknown, and delays the user if it is known."`
	KnownFor           time.Duration `yaml:"known_for" default:"720h" min:"1h" max:"8760h" reload:"live" doc:"How long a network counts as known after a successful login by the user." global:"true"`
	BanAfter           int           `yaml:"ban_after" default:"10" min:"0" max:"1000000" reload:"live" doc:"An address with this many failed logins within ban_within is banned: its connections are refused. 0: automatic bans are off." listener:"As in limits.failures: a failed login here bans its address once it has this many failures within ban_within, here or elsewhere. A ban applies to all listeners."`
	BanWithin          time.Duration `yaml:"ban_within" default:"10m" min:"1s" max:"24h" reload:"live" doc:"For ban_after." global:"true"`
	BanDuration        time.Duration `yaml:"ban_duration" was:"ban" default:"10m" min:"1s" max:"24h" reload:"live" doc:"The duration of the first ban. Each further one is twice as long." global:"true"`
	MaxBanDuration     time.Duration `yaml:"max_ban_duration" was:"max_ban" default:"24h" min:"1s" max:"8760h" reload:"live" doc:"The longest ban." global:"true"`
}

// Quotas bounds what the sessions of one user may use together.
type Quotas struct {
	CommandsPerSecond int `yaml:"commands_per_second" default:"0" min:"0" max:"1000000" reload:"live" doc:"Commands, on each gateway; twice as many in a burst. In the modes reuse and resume only: splice does not parse commands. 0: no bound, here and below."`
	BytesInPerSecond  int `yaml:"bytes_in_per_second" default:"0" min:"0" max:"1000000000000" reload:"live" doc:"Bytes from the user's clients, on each gateway; twice as many in a burst."`
	BytesOutPerSecond int `yaml:"bytes_out_per_second" default:"0" min:"0" max:"1000000000000" reload:"live" doc:"Bytes to the user's clients, on each gateway; twice as many in a burst."`
	AppendBytesPerDay int `yaml:"append_bytes_per_day" default:"0" min:"0" max:"1000000000000000" reload:"live" doc:"Bytes of messages that the user's clients may upload (APPEND, REPLACE) in a day (UTC), on all gateways together. Beyond it they get NO [OVERQUOTA]. In the modes reuse and resume only." listener:"As in limits.user_quota. If any listener has a bound, uploads at listeners without one count too."`
}
