package limit

import (
	"net/netip"

	"imapgate/internal/limit/penalty"
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
type Failures = penalty.Settings

// Quotas are what the sessions of one user may use together: commands and bytes per second
// at each gateway, uploads per UTC day at all of them. 0 is no bound.
type Quotas struct {
	CommandsPerSecond int `yaml:"commands_per_second" default:"0" min:"0" max:"1000000" reload:"live" doc:"Commands, on each gateway; twice as many in a burst. In the modes reuse and resume only: splice does not parse commands. 0: no bound, here and below."`
	BytesInPerSecond  int `yaml:"bytes_in_per_second" default:"0" min:"0" max:"1000000000000" reload:"live" doc:"Bytes from the user's clients, on each gateway; twice as many in a burst."`
	BytesOutPerSecond int `yaml:"bytes_out_per_second" default:"0" min:"0" max:"1000000000000" reload:"live" doc:"Bytes to the user's clients, on each gateway; twice as many in a burst."`
	AppendBytesPerDay int `yaml:"append_bytes_per_day" default:"0" min:"0" max:"1000000000000000" reload:"live" doc:"Bytes of messages that the user's clients may upload (APPEND, REPLACE) in a day (UTC), on all gateways together. Beyond it they get NO [OVERQUOTA]. In the modes reuse and resume only." listener:"As in limits.user_quota. If any listener has a bound, uploads at listeners without one count too."`
}
