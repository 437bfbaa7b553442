package cluster

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"imapgate/internal/identity"
)

// Subject is whose failures are counted: those from a network, of a user, or of a user in a
// network.
type Subject struct {
	User identity.User
	Net  netip.Prefix
	Add  bool // one failure; otherwise they are only read
}

const day = 24 * time.Hour

// CountFailures adds failures and returns the counts of all gateways: from a network in a
// minute, in banWithin and in a day; of a user in an hour and in a day; of a user in a network
// in an hour. They are nil for a Subject that could not be read.
func (c *Cluster) CountFailures(ctx context.Context, banWithin time.Duration, subjects ...Subject) ([][]int, error) {
	script := "readfailures"
	if slices.ContainsFunc(subjects, func(s Subject) bool { return s.Add }) {
		script = "failures"
	}
	calls := make([]Call, len(subjects))
	for i, s := range subjects {
		key, lengths := c.keys.failedPair(s.User, s.Net), []any{0, time.Hour.Milliseconds()}
		switch {
		case s.User.IsZero():
			key, lengths = c.keys.failedNet(s.Net), []any{0, time.Minute.Milliseconds(), banWithin.Milliseconds(), day.Milliseconds()}
		case !s.Net.IsValid():
			key, lengths = c.keys.failedUser(s.User), []any{0, time.Hour.Milliseconds(), day.Milliseconds()}
		}
		if s.Add {
			lengths[0] = 1
		}
		calls[i] = Call{script, []string{key}, lengths}
	}
	replies, err := c.ask(ctx, calls...)
	if err != nil {
		return nil, err
	}
	counts := make([][]int, len(subjects))
	for i, r := range replies {
		words, _ := integers(r, len(calls[i].args)-1) // a key that holds something else counts nothing
		for _, n := range words {
			counts[i] = append(counts[i], int(n))
		}
	}
	return counts, nil
}

// ForgetUser returns the call that forgets the failures of a user.
func (c *Cluster) ForgetUser(u identity.User) Call {
	return Call{"delete", []string{c.keys.failedUser(u)}, nil}
}

// NoteKnown returns the call that notes a successful login of a user from a network, for a time.
func (c *Cluster) NoteKnown(u identity.User, net netip.Prefix, keep time.Duration) Call {
	return Call{"note", []string{c.keys.known(u)}, []any{net.String(), keep.Milliseconds()}}
}

// NoteActive returns the call that notes a successful login of any user from a network.
func (c *Cluster) NoteActive(net netip.Prefix, keep time.Duration) Call {
	return Call{"note", []string{c.keys.active(net)}, []any{"", keep.Milliseconds()}}
}

// Familiarity is what is known of earlier logins. Known and Active say of each network that
// was asked for whether the user, or any user, has logged in from there.
type Familiarity struct {
	Known, Active []bool
	Anywhere      bool // the user has logged in from any network
}

// Familiarity asks for logins of a user from some networks, and of any user from others. The
// zero User has none.
func (c *Cluster) Familiarity(ctx context.Context, u identity.User, nets, activeNets []netip.Prefix, keep time.Duration) (f Familiarity, err error) {
	var calls []Call
	for _, net := range activeNets {
		calls = append(calls, Call{"known", []string{c.keys.active(net)}, []any{keep.Milliseconds()}})
	}
	if !u.IsZero() {
		args := []any{keep.Milliseconds()}
		for _, net := range nets {
			args = append(args, net.String())
		}
		calls = append(calls, Call{"known", []string{c.keys.known(u)}, args})
	}
	replies, err := c.ask(ctx, calls...)
	if err != nil {
		return f, err
	}
	f.Known, f.Active = make([]bool, len(nets)), make([]bool, len(activeNets))
	for i := range activeNets {
		n, _ := integers(replies[i], 1)
		f.Active[i] = len(n) == 1 && n[0] == 1
	}
	if u.IsZero() {
		return f, nil
	}
	if n, err := integers(replies[len(activeNets)], len(nets)+1); err == nil {
		for i := range nets {
			f.Known[i] = n[i] == 1
		}
		f.Anywhere = n[len(nets)] == 1
	}
	return f, nil
}

// KnownNet is a network from which a user has logged in, and how long ago.
type KnownNet struct {
	Net netip.Prefix
	Ago time.Duration
}

// KnownNets returns the networks from which a user has logged in, the latest first.
func (c *Cluster) KnownNets(ctx context.Context, u identity.User, keep time.Duration) (nets []KnownNet, err error) {
	r, err := c.askOne(ctx, Call{"networks", []string{c.keys.known(u)}, []any{keep.Milliseconds()}})
	if err != nil {
		return nil, err
	}
	words, err := r.Slice()
	if err != nil {
		return nil, err
	}
	for ; len(words) >= 2; words = words[2:] {
		if net, err := netip.ParsePrefix(text(words[0])); err == nil {
			nets = append(nets, KnownNet{net, clamp(number(words[1]))})
		}
	}
	return nets, nil
}

// ResetUser forgets the failures of a user, at every gateway, for an operator.
func (c *Cluster) ResetUser(ctx context.Context, u identity.User) error {
	k := c.keys.bans()
	err := c.checkRights(ctx, "XADD", k[2], "INCR", k[3], "DEL", c.keys.failedUser(u))
	if err == nil {
		err = c.order(ctx, c.ForgetUser(u))
	}
	if err == nil {
		err = c.order(ctx, Call{"forgive", k, []any{u.String()}})
	}
	return err
}

// IsActive reports whether any user has logged in from a network.
func (c *Cluster) IsActive(ctx context.Context, net netip.Prefix, keep time.Duration) (bool, error) {
	f, err := c.Familiarity(ctx, identity.User{}, nil, []netip.Prefix{net}, keep)
	return err == nil && f.Active[0], err
}
