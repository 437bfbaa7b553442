// Package penalty decides what failed logins cost: how long the next login has to wait, and
// when it is refused. policy.go has the table of it; docs/operating/limits.md says the same to
// operators. failures.go and known.go remember what the table needs, in bounded tables, and
// spray.go notices that many users are tried with few guesses each.
package penalty

import (
	"net/netip"
	"time"

	"imapgate/internal/event"
	"imapgate/internal/identity"
)

// Settings are the limits of failed logins. A limit of 0 is none.
type Settings struct {
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

// Familiarity is how near to a client the user has logged in before.
type Familiarity uint8

// The familiarities, from the least.
const (
	KnownNowhere Familiarity = iota
	KnownElsewhere
	KnownRegion  // from the same /21, IPv6 /32
	KnownNetwork // from the same /24, IPv6 /64
	KnownAddress // from this address, IPv6 /64
)

// Tiers is the number of networks around an address for which failures are counted.
const Tiers = 3

// The widths of those networks, and how many times the failures of an address they may have.
// Constant.
var (
	tierBits4 = [Tiers]int{32, 26, 21}
	tierBits6 = [Tiers]int{64, 48, 32}
	TierScale = [Tiers]int{1, 3, 9}
)

// Tier returns the i-th network around an address. The first counts as the address.
func Tier(a netip.Addr, i int) netip.Prefix { return identity.Network(a, tierBits4[i], tierBits6[i]) }

// UserNet returns the network in which a user is known. It is wider than the address for IPv4,
// because addresses change within a provider's network.
func UserNet(a netip.Addr) netip.Prefix { return identity.Network(a, 24, 64) }

// Record is what is known of earlier logins around one login.
type Record struct {
	Familiarity Familiarity
	Nets        [Tiers]NetCounts // of all users
	User        UserCounts       // of the user, from networks where the user is not known
	UserNet     int              // of the user in the network around the address, in an hour
	UserAddress int              // of the user from the address, in an hour
	Active      [Tiers]bool      // any user has logged in from this network
	Spray       bool             // spraying is suspected, and no user has logged in from UserNet
}

// NetCounts are the failures from a network, in a minute, in Settings.BanWithin, and in a day.
type NetCounts struct{ Minute, Ban, Day int }

// UserCounts are the failures of a user.
type UserCounts struct {
	Hour, Day int
	Fleet     int // of Day, as Redis last had it of all gateways
}

// cost is a cell of the policy: what failures of one kind cost. From the failure delayFrom on
// the next login waits, and each further failure doubles the delay. From slow times the limit
// on each login waits for the longest delay, from refuse times it is refused. 0: never.
type cost struct{ delayFrom, slow, refuse int }

// row is a row of the policy. Its columns say whose failures there are:
//
//	userAddress, userNet   the user's, from the address and from the network around it, in an
//	                       hour, against PerUserNetworkHour
//	address                of all users from the address, against PerMinute and PerDay
//	quietNet, activeNet    the same from wider networks, at 3 and 9 times the scale: in one
//	                       from which no user has logged in, and in one from which a user has
//	user                   the user's from all networks where the user is not known, against
//	                       PerUserDay; their delays begin after PerUserHour
type row struct{ userAddress, userNet, address, quietNet, activeNet, user cost }

// policy is the whole of the policy. The rows say how well the user is known where the login
// comes from. Constant.
var policy = [...]row{
	KnownNowhere:   {unknown.userAddress, unknown.userNet, unknown.address, unknown.quietNet, unknown.activeNet, cost{delayFrom: 1, slow: 1}},
	KnownElsewhere: unknown,
	// The networks around do not matter to a user who has logged in from one of them.
	KnownRegion: {unknown.userAddress, unknown.userNet, unknown.address, cost{}, cost{}, unknown.user},
	// The provider may have assigned another address, or a neighbor guesses.
	KnownNetwork: {
		userAddress: cost{refuse: 1}, userNet: cost{delayFrom: freeFailures + 1, slow: 1, refuse: 10}, address: cost{slow: 1, refuse: 10},
	},
	// A NAT has many users, and one of them may guess: address matters only to those who were
	// tried from there.
	KnownAddress: {userAddress: cost{delayFrom: freeFailures + 1, refuse: 1}, address: cost{slow: 10, refuse: 100}},
}

var unknown = row{
	userAddress: cost{refuse: 1}, userNet: cost{refuse: 1}, address: cost{delayFrom: 1, refuse: 1},
	quietNet: cost{delayFrom: 1, refuse: 1}, activeNet: cost{delayFrom: 1, slow: 1, refuse: 10}, user: cost{delayFrom: 1, refuse: 1},
}

const (
	// freeFailures of a user where the user is known cost nothing.
	freeFailures = 3
	// sprayDelay is the number of failures whose delay a login waits from a network without
	// active users while spraying is suspected.
	sprayDelay = 2
)

// Refusal is the error of a login that has failed too often, and of what is over another limit
// or banned.
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

// failures are those of one column in one of its windows.
type failures struct {
	cost
	delays     int // the number for the delay
	n, limit   int
	retryAfter time.Duration
	reason     event.Limit
	net        netip.Prefix
}

// exceed reports whether the limit has been reached so many times.
func (f *failures) exceed(times int) bool {
	return times > 0 && f.limit > 0 && f.n >= times*f.limit
}

// Evaluate returns how long a login from addr has to wait, or why it is refused.
func (s *Settings) Evaluate(addr netip.Addr, r *Record) (wait time.Duration, no *Refusal) {
	for _, f := range s.columns(addr, r) {
		if f.exceed(f.refuse) {
			return 0, &Refusal{f.reason, f.net, f.retryAfter}
		}
		if f.delayFrom > 0 {
			wait = max(wait, s.Step(f.delays-f.delayFrom+1))
		}
		if f.exceed(f.slow) {
			wait = s.MaxDelay
		}
	}
	if r.Spray && r.Familiarity < KnownNetwork {
		wait = max(wait, s.Step(sprayDelay))
	}
	return wait, nil
}

// columns returns the failures around a login with what they cost.
func (s *Settings) columns(addr netip.Addr, r *Record) []failures {
	c := policy[r.Familiarity]
	if r.Familiarity == KnownAddress && r.UserAddress == 0 {
		c.address = cost{}
	} else if r.Familiarity == KnownAddress && r.UserAddress < freeFailures {
		c.address.refuse = 0
	}
	if s.PerUserHour == 0 {
		c.user.delayFrom = 0
	}
	perHour, retryAfter := s.PerUserNetworkHour, time.Hour/time.Duration(max(1, s.PerUserNetworkHour))
	all := []failures{
		{c.userAddress, r.UserAddress, r.UserAddress, perHour, retryAfter, event.LimitPairFailures, Tier(addr, 0)},
		{c.userNet, r.UserNet, r.UserNet, perHour, retryAfter, event.LimitPairFailures, UserNet(addr)},
		{c.user, r.User.Hour - s.PerUserHour, r.User.Day, s.PerUserDay, time.Hour, event.LimitUserFailures, netip.Prefix{}},
	}
	for i, n := range r.Nets {
		perDay, scale, net := c.quietNet, TierScale[i], Tier(addr, i)
		if i == 0 {
			perDay = c.address
		} else if r.Active[i] {
			perDay = c.activeNet
		}
		perMinute := perDay
		perMinute.delayFrom = 0 // the delays are those of the first
		all = append(all,
			failures{perDay, n.Ban / scale, n.Day, scale * s.PerDay, time.Hour, event.LimitAddressFailures, net},
			failures{perMinute, 0, n.Minute, scale * s.PerMinute, time.Minute, event.LimitAddressFailures, net})
	}
	return all
}

// Step returns the delay after so many failures: Delay, doubled for each but the first, up to
// MaxDelay.
func (s *Settings) Step(n int) time.Duration {
	if n <= 0 {
		return 0
	}
	d := s.Delay
	for range min(n, 16) - 1 {
		d *= 2
	}
	return min(d, s.MaxDelay)
}
