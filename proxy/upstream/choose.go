package upstream

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/cespare/xxhash/v2"

	"imapgate/internal/event"
	"imapgate/internal/identity"
)

// Places knows at which address the sessions of a user are, in the whole fleet.
type Places interface {
	// Claim returns the address of a backend at which the user's sessions are, if it is one of
	// candidates or keep; otherwise it records and returns the first of candidates, or "" if
	// there is none. release is called once, when the connection there has ended.
	Claim(ctx context.Context, backend string, user identity.User, candidates, keep []string) (address string, release func())
}

// errNoAddress means that no address takes the user.
var errNoAddress = errors.New("no address takes new logins")

// choice is the addresses that a login may go to.
type choice struct {
	candidates []*address // best first
	keep       []*address // draining: only for users who have sessions there
}

// choose returns the addresses for a user, without those that were tried. Every gateway that
// sees the same addresses chooses alike.
func (b *Backend) choose(cfg *Config, user identity.User, tried []*address) (c choice) {
	now := time.Now()
	all := b.list()
	if len(all) == 1 && len(tried) == 0 { // no choice, so no need to work it out
		if state, _ := all[0].state(now); (state == event.AddressUp || state == event.AddressDown) && !all[0].isFull(cfg) {
			return choice{candidates: all}
		}
	}
	var usable, down []*address
	for _, a := range all {
		state, _ := a.state(now)
		switch {
		case slices.Contains(tried, a):
		case state == event.AddressDraining:
			c.keep = append(c.keep, a)
		case a.isFull(cfg):
		case state == event.AddressUp:
			usable = append(usable, a)
		case state == event.AddressDown:
			if !b.isWatched.Load() && a.circuit.takeProbe(now, cfg.Breaker.Hold) {
				usable = append(usable, a)
			} else {
				down = append(down, a)
			}
		}
	}
	if len(usable) == 0 { // one that may be down is better than none
		usable = down
	}
	c.candidates = rank(usable, user, cfg.SlowStart, now)
	return c
}

// rank sorts addresses: the lowest priority first, and those of one priority by weighted
// rendezvous hashing of the user (Schindelhauer and Schomaker 2005). So an address that leaves
// or returns changes the choice of its own users only.
func rank(addresses []*address, user identity.User, slowStart time.Duration, now time.Time) []*address {
	if len(addresses) < 2 {
		return addresses
	}
	type ranked struct {
		*address
		priority int
		score    float64
	}
	list := make([]ranked, 0, len(addresses))
	for _, a := range addresses {
		list = append(list, ranked{a, a.priorityNow(), score(user.String(), a.hostPort) * a.effectiveWeight(slowStart, now)})
	}
	slices.SortFunc(list, func(a, b ranked) int {
		return cmp.Or(cmp.Compare(a.priority, b.priority), cmp.Compare(b.score, a.score), cmp.Compare(a.hostPort, b.hostPort))
	})
	sorted := make([]*address, len(list))
	for i, r := range list {
		sorted[i] = r.address
	}
	return sorted
}

// score returns a pseudorandom number > 0 for a user and an address. Multiplied by weights, the
// share of users for whom an address has the highest is that of its weight.
func score(user, hostPort string) float64 {
	h := xxhash.New()
	_, _ = h.WriteString(user) // never fails
	_, _ = h.Write([]byte{0})
	_, _ = h.WriteString(hostPort)
	u := (float64(h.Sum64()>>11) + 0.5) / (1 << 53) // in (0, 1)
	return -1 / math.Log(u)
}

func (a *address) priorityNow() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.priority
}

func hostPorts(addresses []*address) []string {
	names := make([]string, len(addresses))
	for i, a := range addresses {
		names[i] = a.hostPort
	}
	return names
}

// place returns the address for a login, and what to call when its connection ends.
func (b *Backend) place(ctx context.Context, cfg *Config, user identity.User, c choice) (chosen *address, leave func()) {
	isSticky := cfg.Places != nil && cfg.Placement != event.Spread && b.hasSeveral()
	if !isSticky {
		if len(c.candidates) == 0 {
			return nil, nil
		}
		return c.candidates[0], nil
	}
	name, leave := cfg.Places.Claim(ctx, b.name, user, hostPorts(c.candidates), hostPorts(c.keep))
	for _, a := range append(slices.Clone(c.candidates), c.keep...) {
		if a.hostPort == name {
			return a, leave
		}
	}
	leave()
	return nil, nil
}

// logInSomewhere logs in at the best address. Another one is tried only if the first has failed
// before the credentials were sent.
func (b *Backend) logInSomewhere(ctx context.Context, cfg *Config, req Request, creds credentials) (*Conn, error) {
	deadline := time.Now().Add(cfg.UpstreamLoginTimeout)
	if err := b.awaitAddresses(ctx, deadline); err != nil {
		return nil, err
	}
	var tried []*address
	var failure error
	for {
		c := b.choose(cfg, req.User, tried)
		a, leave := b.place(ctx, cfg, req.User, c)
		if a == nil {
			return nil, cmp.Or(failure, fmt.Errorf("%w: %w", ErrUnavailable, errNoAddress))
		}
		req.leave = leave
		conn, canRetry, err := attempt{a, cfg, deadline, len(c.candidates) > 1}.run(ctx, req, creds)
		if err == nil {
			return conn, nil
		}
		if leave != nil {
			leave() // again, if the connection was opened: it is idempotent
		}
		if failure = err; !canRetry || !time.Now().Before(deadline) {
			return nil, err
		}
		tried = append(tried, a)
	}
}
