package cluster

import (
	"context"
	"net/netip"
	"time"

	"imapgate/internal/identity"
	"imapgate/internal/limit/penalty"
)

// noFailure and oneFailure are what is added to the counts of a Subject.
const noFailure, oneFailure = 0, 1

// CountFailure adds a failure to those of subjects that c includes, and returns the counts of
// all gateways, with windows as penalty.Failures has them. They are nil for a Subject that
// could not be read.
func (c *Cluster) CountFailure(ctx context.Context, counted penalty.Counted, subjects ...penalty.Subject) ([][]int, error) {
	calls := make([]Call, len(subjects))
	for i, s := range subjects {
		args := []any{noFailure}
		if counted.Includes(i) {
			args[0] = oneFailure
		}
		for _, length := range s.Windows(c.Failures.BanWithin) {
			args = append(args, length.Milliseconds())
		}
		calls[i] = Call{"failures", []string{c.keys.failed(s)}, args}
	}
	replies, err := c.ask(ctx, calls...)
	if err != nil {
		return nil, err
	}
	counts := make([][]int, len(subjects))
	for i, r := range replies {
		words, _ := r.Int64Slice() // a key that holds something else counts nothing
		if len(words) != len(calls[i].args)-1 {
			continue
		}
		for _, n := range words {
			counts[i] = append(counts[i], int(n))
		}
	}
	return counts, nil
}

// Forget returns the call that forgets failures.
func (c *Cluster) Forget(s penalty.Subject) Call {
	return Call{"delete", []string{c.keys.failed(s)}, nil}
}

// NoteLogin returns the call that notes a successful login from a network, of a user or of any
// user, for Settings.KnownFor.
func (c *Cluster) NoteLogin(s penalty.Subject) Call {
	member := ""
	if !s.User.IsZero() {
		member = s.Net.String()
	}
	return Call{"note", []string{c.keys.known(s)}, []any{member, c.Failures.KnownFor.Milliseconds()}}
}

// Known returns those of subjects with a successful login within
// Settings.KnownFor.
func (c *Cluster) Known(ctx context.Context, subjects ...penalty.Subject) (known []penalty.Subject, err error) {
	calls := make([]Call, len(subjects))
	for i, s := range subjects {
		calls[i] = Call{"known", []string{c.keys.known(s)}, []any{c.Failures.KnownFor.Milliseconds()}}
		if !s.User.IsZero() && s.Net.IsValid() {
			calls[i].args = append(calls[i].args, s.Net.String())
		}
	}
	replies, err := c.ask(ctx, calls...)
	if err != nil {
		return nil, err
	}
	for i, r := range replies {
		if words, _ := r.Int64Slice(); len(words) > 0 && words[0] == 1 {
			known = append(known, subjects[i])
		}
	}
	return known, nil
}

// KnownNet is a network from which a user has logged in.
type KnownNet struct {
	Net  netip.Prefix
	Ago  time.Duration // since the last login that was noted: at most once an hour
	Hour int           // failures of the user from it, within an hour
}

// KnownNets returns the networks from which a user has logged in, the latest first, without
// the failures.
func (c *Cluster) KnownNets(ctx context.Context, u identity.User) (nets []KnownNet, err error) {
	words, err := c.run(ctx, Call{"networks", []string{c.keys.known(penalty.Subject{User: u})}, []any{c.Failures.KnownFor.Milliseconds()}}).Slice()
	for ; len(words) >= 2; words = words[2:] {
		if net, err := netip.ParsePrefix(text(words[0])); err == nil {
			nets = append(nets, KnownNet{Net: net, Ago: clamp(number(words[1]))})
		}
	}
	return nets, err
}

// ResetUser forgets the failures of a user, at every gateway, for an operator.
func (c *Cluster) ResetUser(ctx context.Context, u identity.User) error {
	k, forget := c.keys.bans(), c.Forget(penalty.Subject{User: u})
	err := c.checkRights(ctx, "XADD", k[2], "INCR", k[3], "DEL", forget.keys[0])
	if err == nil {
		err = c.order(ctx, forget)
	}
	if err == nil {
		err = c.order(ctx, Call{"forgive", k, []any{u.String()}})
	}
	return err
}
