package limit

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"imapgate/internal/cluster"
	"imapgate/internal/event"
	"imapgate/internal/identity"
	"imapgate/internal/limit/ban"
	"imapgate/internal/limit/counter"
	"imapgate/internal/limit/penalty"
	"imapgate/internal/sanitize"
)

// widest4 and widest6 are the fewest bits of a network that can be banned by hand.
const widest4, widest6 = 8, 16

// ErrNetworkTooWide is the error of a ban of half the internet.
var ErrNetworkTooWide = fmt.Errorf("network too wide: the widest allowed is /%d (IPv6 /%d)", widest4, widest6)

// ErrBanDuration is the error of a ban without a duration, or without an end.
var ErrBanDuration = fmt.Errorf("the duration must be positive and at most %v", cluster.MaxDuration)

// AddressStatus is what is known of an address.
type AddressStatus struct {
	AddrNet  netip.Prefix    // what counts as one address
	Exempt   bool            // by the limits of all listeners
	Sessions int             // at all gateways
	Tiers    []NetworkStatus // from the address to the widest network
	Delay    time.Duration   // of the next login of an unknown user
	Ban      *Ban            // nil for none
}

// NetworkStatus is how often logins from a network have failed.
type NetworkStatus struct {
	Net               netip.Prefix
	Minute, Day       int // in the last minute, in a day
	PerMinute, PerDay int // the limits
}

// UserStatus is what is known of a user.
type UserStatus struct {
	User           identity.User
	Sessions       int           // at all gateways
	Hour, Day      int           // failures from networks where the user is not known
	Delay          time.Duration // of a login from such a network
	KnownOnly      bool          // no login from such a network
	Known          []KnownNet    // from the latest
	Uploaded       int64         // bytes of messages today (UTC)
	UploadsCounted bool          // some listener has a limit of them
	UploadLimit    int64         // 0 is none
}

// KnownNet is a network from which a user has logged in.
type KnownNet = cluster.KnownNet

// ParseNet reads a network, or an address, which is banned as what counts as one address.
func ParseNet(text string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(text); err == nil {
		return identity.AddrPrefix(a), nil
	}
	p, err := netip.ParsePrefix(text)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("%q is neither an address nor a network such as 192.0.2.0/24", text)
	}
	if bits := p.Bits() - 96; p.Addr().Is4In6() && bits >= 0 { // as clients are known
		p = netip.PrefixFrom(p.Addr().Unmap(), bits)
	}
	return p.Masked(), nil
}

// Bans returns the bans that have not ended, in the order of their ends: as Redis has them, or
// without Redis as this gateway has.
func (l *Limiter) Bans(ctx context.Context) ([]Ban, error) {
	if l.cluster == nil {
		return l.bans.Bans(), nil
	}
	var all []Ban
	err := l.cluster.Bans(ctx, func(b Ban) {
		if b.Remaining > 0 {
			all = append(all, b)
		}
	})
	ban.Sort(all)
	return all, err
}

// Ban bans a network for a while. It holds at every gateway within a second. A ban that has
// not ended gets the new duration. A network wider than widest4 or widest6 is a mistake.
func (l *Limiter) Ban(ctx context.Context, net netip.Prefix, d time.Duration, note string) error {
	if d <= 0 || d > cluster.MaxDuration {
		return ErrBanDuration
	}
	if net.Bits() < identity.Network(net.Addr(), widest4, widest6).Bits() {
		return ErrNetworkTooWide
	}
	b := Ban{Net: net.Masked(), Reason: event.BanOperator, Remaining: d, Count: 1, Note: sanitize.Line(note, cluster.MaxNote)}
	if l.cluster != nil {
		if err := l.cluster.OrderBan(ctx, b); err != nil {
			return err
		}
	}
	if err := l.bans.Put(b); err != nil {
		return err
	}
	if l.cluster == nil { // otherwise it comes back from Redis
		l.hooks.OnBanRequest(BanRequest{Net: b.Net, Duration: d, Note: b.Note})
	}
	return nil
}

// Unban ends every ban that overlaps net, and forgets that there were any, at every gateway
// within a second. It returns those that had not ended.
func (l *Limiter) Unban(ctx context.Context, net netip.Prefix) ([]netip.Prefix, error) {
	net = net.Masked()
	if l.cluster == nil {
		return l.lift(net), nil
	}
	if err := l.cluster.CheckUnban(ctx, net); err != nil {
		return nil, err
	}
	l.lift(net)
	return l.cluster.Unban(ctx, net)
}

// ResetUser forgets what was tried on a user, so that it may log in from networks where it is
// not known, at every gateway within a second.
func (l *Limiter) ResetUser(ctx context.Context, u identity.User) error {
	if l.cluster != nil {
		if err := l.cluster.ResetUser(ctx, u); err != nil {
			return err
		}
	}
	l.history.ForgetUser(u)
	return nil
}

// InspectAddress returns what is known of an address, as Redis has it, or without Redis as this
// gateway has.
func (l *Limiter) InspectAddress(ctx context.Context, addr netip.Addr) (AddressStatus, error) {
	addr = plain(addr)
	a := AddressStatus{AddrNet: identity.AddrPrefix(addr), Exempt: contains(l.cfg.ExemptNetworks, addr)}
	r, err := l.sharedRecord(ctx, identity.User{}, addr)
	if err == nil {
		a.Sessions, err = l.sessions(ctx, counter.Key{Scope: counter.AddressSessions, Net: a.AddrNet})
	}
	if err == nil {
		a.Ban, err = l.longestBan(ctx, addr)
	}
	if err != nil {
		return a, err
	}
	s := &l.cfg.Failures
	for i, n := range r.Nets {
		scale := penalty.TierScale[i]
		a.Tiers = append(a.Tiers, NetworkStatus{penalty.Tier(addr, i), n.Minute, n.Day, s.PerMinute * scale, s.PerDay * scale})
		a.Delay = max(a.Delay, s.Step(n.Ban/scale))
	}
	return a, nil
}

// sharedRecord returns the failures around a login, as Redis has them, or without Redis as this
// gateway has.
func (l *Limiter) sharedRecord(ctx context.Context, u identity.User, addr netip.Addr) (penalty.Record, error) {
	if l.cluster == nil {
		return l.history.Record(u, addr), nil
	}
	counts, err := l.cluster.CountFailure(ctx, penalty.Counted{}, penalty.Subjects(u, addr)...)
	return penalty.NewRecord(counts), err
}

// sessions returns a count of sessions at all gateways.
func (l *Limiter) sessions(ctx context.Context, of counter.Key) (int, error) {
	if l.cluster == nil {
		return l.counts.Count(of), nil
	}
	return l.cluster.Sessions(ctx, of)
}

// longestBan returns the longest ban of an address, or nil.
func (l *Limiter) longestBan(ctx context.Context, addr netip.Addr) (*Ban, error) {
	all, err := l.Bans(ctx)
	for _, b := range slices.Backward(all) { // the last ends last
		if b.Net.Contains(addr) {
			return &b, err
		}
	}
	return nil, err
}

// InspectUser returns what is known of a user, as Redis has it. Without Redis this gateway does
// not know the networks: it keeps hashes of them.
func (l *Limiter) InspectUser(ctx context.Context, u identity.User) (UserStatus, error) {
	a := UserStatus{User: u, UploadLimit: int64(l.cfg.UserQuota.AppendBytesPerDay), UploadsCounted: l.countsUploads}
	nowhere := netip.IPv4Unspecified()
	r, err := l.sharedRecord(ctx, u, nowhere)
	if err == nil {
		a.Sessions, err = l.sessions(ctx, counter.Key{Scope: counter.UserSessions, User: u})
	}
	if err == nil && l.cluster != nil {
		a.Known, err = l.knownNets(ctx, u)
	}
	if err == nil && a.UploadsCounted {
		a.Uploaded, err = l.uploadedToday(ctx, u)
	}
	if err != nil {
		return a, err
	}
	a.Hour, a.Day = r.User.Hour, r.User.Day
	r = penalty.Record{User: r.User}
	if len(a.Known) > 0 || l.history.Familiarity(u, nowhere) > penalty.KnownNowhere {
		r.Familiarity = penalty.KnownElsewhere
	}
	s := &l.cfg.Failures
	wait, no := s.Evaluate(nowhere, &r)
	if a.Delay = wait; no != nil {
		a.KnownOnly = true
		if s.PerUserHour > 0 {
			a.Delay = s.Step(a.Hour - s.PerUserHour)
		}
	}
	return a, nil
}

// knownNets returns where a user has logged in, with what was tried on the user there.
func (l *Limiter) knownNets(ctx context.Context, u identity.User) (known []KnownNet, err error) {
	nets, err := l.cluster.KnownNets(ctx, u)
	if err != nil {
		return nil, err
	}
	var pairs []penalty.Subject
	for _, n := range nets {
		if n.Net == penalty.UserNet(n.Net.Addr()) { // others are of the same login: the address, or the region
			known = append(known, n)
			pairs = append(pairs, penalty.Subject{User: u, Net: n.Net})
		}
	}
	if len(pairs) == 0 {
		return nil, nil
	}
	counts, err := l.cluster.CountFailure(ctx, penalty.Counted{}, pairs...)
	for i := range counts {
		if len(counts[i]) == 1 {
			known[i].Hour = counts[i][0]
		}
	}
	return known, err
}
