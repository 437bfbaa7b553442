package limit

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/redis/go-redis/v9"

	"imapgate/internal/event"
	"imapgate/internal/identity"
	"imapgate/internal/sanitize"
)

const (
	// maxNote bounds an operator's words, in bytes.
	maxNote = 200
	// widest4 and widest6 are the fewest bits of a network that is banned by hand.
	widest4, widest6 = 8, 16
)

// ErrNetworkTooWide is the answer to a ban of half the internet.
var ErrNetworkTooWide = fmt.Errorf("no network wider than %d bits, of IPv6 %d, is banned", widest4, widest6)

// ErrBanDuration is the answer to a ban that never was, or has no end.
var ErrBanDuration = fmt.Errorf("a ban lasts more than nothing and at most %v", longestBan)

// AddressStatus is what is known of an address.
type AddressStatus struct {
	AddrNet  netip.Prefix    // what counts as one address
	UserNet  netip.Prefix    // in which users are known
	Exempt   bool            // by the default settings
	Sessions int             // logged in, at all gateways
	Active   bool            // somebody has logged in from Near of late
	Tiers    []NetworkStatus // from the address to the widest network
	Delay    time.Duration
	Ban      *Ban // nil for none
}

// NetworkStatus is how often logins from a network have failed.
type NetworkStatus struct {
	Net               netip.Prefix
	Minute, Ban, Day  int // in the last minute, in Bans.Window, in a day
	PerMinute, PerDay int // the limits
}

// UserStatus is what is known of a user.
type UserStatus struct {
	User           identity.User
	Sessions       int           // logged in, at all gateways
	Hour, Day      int           // failures from networks the user is not known in
	Delay          time.Duration // of a login from such a network
	KnownOnly      bool          // no login from such a network
	Known          []KnownNet    // from the latest
	Uploaded       int64         // bytes of messages today (UTC)
	UploadsCounted bool          // they are: some listener bounds them
	UploadLimit    int64         // how many there may be; 0 is no bound
}

// KnownNet is a network from which a user has logged in of late.
type KnownNet struct {
	Net  netip.Prefix
	Ago  time.Duration // since the last right login that was noted: at most once an hour
	Hour int           // failures of the user in it, within an hour
}

// ParseNet reads an address, which is banned as what counts as one address, or a
// network.
func ParseNet(text string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(text); err == nil {
		return home(plain(a)), nil
	}
	p, err := netip.ParsePrefix(text)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("%q is neither an address nor a network such as 192.0.2.0/24", text)
	}
	if mapped := p.Bits() - 96; p.Addr().Is4In6() && mapped >= 0 { // as clients are known
		p = netip.PrefixFrom(p.Addr().Unmap(), mapped)
	}
	return p.Masked(), nil
}

// Bans are the bans under way, those that end soonest first: as Redis has them,
// or without Redis as this gateway does.
func (g *Limiter) Bans(ctx context.Context) ([]Ban, error) {
	if g.shared == nil {
		return g.bans.active(g.now()), nil
	}
	var all []Ban
	err := g.shared.eachBan(ctx, func(net netip.Prefix, left int64, record string) {
		if e, ok := parseEntry(record); ok && left > 0 {
			e.until = clamped(left)
			all = append(all, e.ban(net, 0))
		}
	})
	sortBans(all)
	return all, err
}

// Ban bans a network for a while. It holds at every gateway within a second; a
// ban under way gets the new time. A network wider than widest4 or widest6 is the
// slip of a finger.
func (g *Limiter) Ban(ctx context.Context, net netip.Prefix, d time.Duration, note string) error {
	if d <= 0 || d > longestBan {
		return fmt.Errorf("ban %v for %v: %w", net, d, ErrBanDuration)
	}
	if net.Bits() < around(net.Addr(), widest4, widest6).Bits() {
		return fmt.Errorf("ban %v: %w", net, ErrNetworkTooWide)
	}
	b := Ban{Net: net.Masked(), Reason: event.BanOperator, Remaining: d, Count: 1, Note: oneLine(note)}
	if s := g.shared; s != nil {
		k := s.keys.bans()
		err := s.checkRights(ctx, "HSET", k[0], "HDEL", k[0], "ZADD", k[1], "ZREM", k[1], "XADD", k[2], "INCR", k[3])
		if err == nil {
			err = s.order(ctx, s.banCall(b, asOrder, d, d))
		}
		if err != nil {
			return fmt.Errorf("ban %v: %w", net, err)
		}
	}
	if err := g.bans.put(b.Net, entry{until: g.now() + d, count: 1, why: event.BanOperator, note: b.Note}, g.now()); err != nil {
		return fmt.Errorf("ban %v: %w", net, err)
	}
	if g.shared == nil { // or it is told when it comes back from Redis
		g.hooks.OnBanRequest(BanRequest{Net: b.Net, Duration: d, Note: b.Note})
	}
	return nil
}

// oneLine is an operator's words as they fit into a record.
func oneLine(note string) string { return sanitize.Line(note, maxNote) }

// Unban lifts every ban that has something of net in it, and forgets that there
// were any; at every gateway within a second. It gives those that were under way.
func (g *Limiter) Unban(ctx context.Context, net netip.Prefix) ([]netip.Prefix, error) {
	s, net := g.shared, net.Masked()
	if s != nil {
		k := s.keys.bans()
		err := s.checkRights(ctx, "HDEL", k[0], "ZREM", k[1], "XADD", k[2], "INCR", k[3], "DEL", s.keys.failedNet(net))
		if err != nil {
			return nil, fmt.Errorf("unban %v: %w", net, err)
		}
	}
	lifted := g.lift(net)
	if s == nil {
		return lifted, nil
	}
	lifted = nil
	gone := []any{net.String()} // also without a ban: its failures are forgiven
	err := s.eachBan(ctx, func(n netip.Prefix, left int64, _ string) {
		if !n.Overlaps(net) {
			return
		}
		if left > 0 {
			lifted = append(lifted, n)
		}
		if n != net {
			gone = append(gone, n.String())
		}
	})
	for batch := range slices.Chunk(gone, flushBatch) {
		if err == nil {
			err = s.order(ctx, call{s.scripts.lift, s.keys.bans(), batch})
		}
	}
	if err == nil {
		err = s.forget(ctx, s.keys.failedNet(net))
	}
	if err != nil {
		return nil, fmt.Errorf("unban %v: %w", net, err)
	}
	return lifted, nil
}

// lift ends bans and forgets failures here, and tells of the bans that were under
// way. Who gave the order hears of it again from Redis, when there is nothing left.
func (g *Limiter) lift(net netip.Prefix) []netip.Prefix {
	lifted := g.bans.lift(net, g.now())
	g.past.forgiveNet(net)
	for _, n := range lifted {
		g.hooks.OnBanRequest(BanRequest{Net: n})
	}
	return lifted
}

// ResetUser forgets what was tried on a user, so that it may log in from networks
// where it is not known; at every gateway within a second.
func (g *Limiter) ResetUser(ctx context.Context, u identity.User) error {
	s := g.shared
	if s != nil {
		k := s.keys.bans()
		if err := s.checkRights(ctx, "XADD", k[2], "INCR", k[3], "DEL", s.keys.failedUser(u)); err != nil {
			return fmt.Errorf("forgive %v: %w", u, err)
		}
	}
	g.past.forgiveUser(u)
	if s == nil {
		return nil
	}
	err := s.forget(ctx, s.keys.failedUser(u))
	if err == nil {
		err = s.order(ctx, call{s.scripts.forgive, s.keys.bans(), []any{u.String()}})
	}
	if err != nil {
		return fmt.Errorf("forgive %v: %w", u, err)
	}
	return nil
}

// checkRights is an error when this gateway's Redis user may not run all the commands of
// an order, each of which is followed by its key. Redis does not undo what a script has
// done before it was refused, so it is asked first.
func (s *shared) checkRights(ctx context.Context, commands ...any) error {
	r, err := s.ask(ctx, call{s.scripts.rights, s.keys.bans()[:1], commands})
	if err == nil {
		err = r[0].Err()
	}
	var reply redis.Error
	switch {
	case errors.As(err, &reply):
		return fmt.Errorf("nothing was changed: %w", err)
	case err != nil:
		return nil // the order is given here, and says that Redis is away
	}
	if lacks, _ := r[0].Text(); lacks != "" {
		return fmt.Errorf("nothing was changed: this Redis user has no permission to run %s", lacks)
	}
	return nil
}

// forget drops a key of failures.
func (s *shared) forget(ctx context.Context, key string) error {
	return s.order(ctx, call{s.scripts.forget, []string{key}, nil})
}

// InspectAddress is what is known of an address, as Redis has it, or without Redis
// as this gateway does.
func (g *Limiter) InspectAddress(ctx context.Context, addr netip.Addr) (AddressStatus, error) {
	addr = plain(addr)
	a := AddressStatus{AddrNet: home(addr), UserNet: near(addr), Exempt: contains(g.cfg.ExemptNetworks, addr)}
	past, t := g.past.look(pair{net: a.UserNet}, addr, g.now()), g.now()
	a.Sessions = g.places.count(place{kind: addressSessions, net: a.AddrNet})
	a.Active = g.good.lived(a.UserNet, t)
	if b, ok := g.bans.covers(addr, t); ok {
		a.Ban = &b
	}
	if s := g.shared; s != nil {
		var err error
		if past, err = g.pastOf(ctx, pair{net: a.UserNet}, addr); err != nil {
			return a, fmt.Errorf("show %v: %w", addr, err)
		}
		if a.Sessions, err = s.sessions(ctx, place{kind: addressSessions, net: a.AddrNet}); err != nil {
			return a, fmt.Errorf("show %v: %w", addr, err)
		}
		a.Active = g.livedElsewhere(ctx, a.UserNet)
		if a.Ban, err = g.banOf(ctx, addr); err != nil {
			return a, fmt.Errorf("show %v: %w", addr, err)
		}
	}
	f := &g.cfg.Failures
	for i, n := range past.net {
		a.Tiers = append(a.Tiers, NetworkStatus{
			Net: tier(addr, i), Minute: n.minute, Ban: n.ban, Day: n.day,
			PerMinute: f.PerMinute * tierScale[i], PerDay: f.PerDay * tierScale[i],
		})
		a.Delay = max(a.Delay, f.step(n.ban/tierScale[i]))
	}
	return a, nil
}

// pastOf reads what Redis knows of failures.
func (g *Limiter) pastOf(ctx context.Context, at pair, addr netip.Addr) (tally, error) {
	r, err := g.shared.ask(ctx, g.failedCalls(at, addr, 0)...)
	for _, reply := range r {
		err = cmp.Or(err, reply.Err())
	}
	return tallyOf(r), err
}

// banOf is the longest ban in Redis that covers an address, or nil.
func (g *Limiter) banOf(ctx context.Context, addr netip.Addr) (*Ban, error) {
	all, err := g.Bans(ctx)
	for _, b := range slices.Backward(all) { // the last ends last
		if b.Net.Contains(addr) {
			return &b, err
		}
	}
	return nil, err
}

// sessions counts those at a place, at all gateways.
func (s *shared) sessions(ctx context.Context, at place) (int, error) {
	r, err := s.ask(ctx, call{s.scripts.alive, []string{s.keys.gateways()}, []any{s.lease.Milliseconds()}})
	if err != nil {
		return 0, err
	}
	alive, err := r[0].Slice()
	if err != nil {
		return 0, err
	}
	args := append([]any{s.lease.Milliseconds(), (believedLeases * s.lease).Milliseconds()}, alive...)
	if r, err = s.ask(ctx, call{s.scripts.sessions, []string{s.keys.sessions(at)}, args}); err != nil {
		return 0, err
	}
	return r[0].Int()
}

// InspectUser is what is known of a user, as Redis has it. Without Redis this
// gateway does not know in which networks: it keeps hashes of them.
func (g *Limiter) InspectUser(ctx context.Context, u identity.User) (UserStatus, error) {
	a := UserStatus{User: u}
	past := g.past.look(pair{user: u}, netip.IPv4Unspecified(), g.now())
	a.Sessions = g.places.count(place{kind: userSessions, user: u})
	if s := g.shared; s != nil {
		var err error
		if past, err = g.pastOf(ctx, pair{user: u}, netip.IPv4Unspecified()); err == nil {
			a.Sessions, err = s.sessions(ctx, place{kind: userSessions, user: u})
		}
		if err == nil {
			a.Known, err = g.knownNets(ctx, u)
		}
		if err != nil {
			return a, fmt.Errorf("show %v: %w", u, err)
		}
	}
	a.UploadLimit, a.UploadsCounted = int64(g.cfg.UserQuota.AppendBytesPerDay), g.uploads
	if a.UploadsCounted {
		var err error
		if a.Uploaded, err = g.uploadedToday(ctx, u); err != nil {
			return a, fmt.Errorf("show %v: %w", u, err)
		}
	}
	f := &g.cfg.Failures
	a.Hour, a.Day = past.user.hour, past.user.day
	if f.PerUserHour > 0 {
		a.Delay = f.step(a.Hour - f.PerUserHour)
	}
	switch known := len(a.Known) > 0 || g.good.anywhere(u, g.now()); {
	case !over(a.Day, f.PerUserDay):
	case known:
		a.KnownOnly = true
	default:
		a.Delay = f.MaxDelay
	}
	return a, nil
}

// knownNets are where a user has logged in of late, with what was tried on it
// there.
func (g *Limiter) knownNets(ctx context.Context, u identity.User) (known []KnownNet, err error) {
	s := g.shared
	r, err := s.ask(ctx, call{s.scripts.where, []string{s.keys.good(u)}, []any{g.cfg.Failures.KnownFor.Milliseconds()}})
	if err != nil {
		return nil, err
	}
	words, err := r[0].Slice()
	if err != nil {
		return nil, err
	}
	var calls []call
	for ; len(words) >= 2; words = words[2:] {
		net, err := netip.ParsePrefix(text(words[0]))
		if err != nil || net != near(net.Addr()) {
			continue // of the same login: the address alone, or the carrier
		}
		known = append(known, KnownNet{Net: net, Ago: clamped(number(words[1]))})
		calls = append(calls, call{s.scripts.failures, []string{s.keys.failedPair(pair{u, net})}, []any{0, hour.Milliseconds()}})
	}
	if len(calls) == 0 {
		return nil, nil
	}
	if r, err = s.ask(ctx, calls...); err != nil {
		return nil, err
	}
	for i := range known {
		if n, err := r[i].Int64Slice(); err == nil && len(n) == 1 {
			known[i].Hour = int(n[0])
		}
	}
	return known, nil
}
