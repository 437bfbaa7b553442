package upstream

import (
	"cmp"
	"context"
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

// choice is the addresses that a login may go to.
type choice struct {
	candidates []*address // best first
	probes     []*address // of candidates: those that are down, and due for a probe
	keep       []*address // draining: only for users who have sessions there
	someFull   bool       // an address was passed over because it is full
}

// choose returns the addresses for a login, without those that were tried. Every gateway that
// sees the same addresses chooses alike.
func (b *Backend) choose(cfg *Config, req *Request, tried []*address) (c choice) {
	now := time.Now()
	all := b.list()
	if len(all) == 1 && len(tried) == 0 { // no choice, so no need to work it out
		if state, _ := all[0].state(now); (state == event.AddressUp || state == event.AddressDown) && !all[0].isFull(cfg) {
			return choice{candidates: all}
		}
	}
	var usable, down []*address
	for _, a := range all {
		state, mayProbe := a.state(now)
		switch {
		case slices.Contains(tried, a), state == event.AddressEvacuating, state == event.AddressDisabled:
		case a.isFull(cfg):
			c.someFull = true
		case state == event.AddressDraining:
			c.keep = append(c.keep, a)
		case state == event.AddressUp:
			usable = append(usable, a)
		case mayProbe:
			usable, c.probes = append(usable, a), append(c.probes, a)
		default:
			down = append(down, a)
		}
	}
	if len(usable) == 0 { // one that may be down is better than none
		usable = down
	}
	if len(usable) == 0 && req.HasSession { // whose place may be unknown
		usable = c.keep
	}
	c.candidates = rank(usable, req.User, cfg.SlowStart, now)
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
		list = append(list, ranked{a, a.role.Load().priority, score(user.String(), a.hostPort) * a.effectiveWeight(slowStart, now)})
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

func hostPorts(addresses []*address) []string {
	names := make([]string, len(addresses))
	for i, a := range addresses {
		names[i] = a.hostPort
	}
	return names
}

// place returns the address for a login, and what to call when its connection ends; nil if there
// is none.
func (b *Backend) place(ctx context.Context, cfg *Config, user identity.User, c choice) (chosen *address, leave func()) {
	isSticky := cfg.Places != nil && cfg.Placement != event.Spread && len(b.list()) > 1
	switch {
	case len(c.candidates) == 0 && (!isSticky || len(c.keep) == 0):
		return nil, nil
	case !isSticky:
		return c.candidates[0], nil
	}
	name, leave := cfg.Places.Claim(ctx, b.name, user, hostPorts(c.candidates), hostPorts(c.keep))
	for _, list := range [][]*address{c.candidates, c.keep} {
		if i := slices.IndexFunc(list, func(a *address) bool { return a.hostPort == name }); i >= 0 {
			return list[i], leave
		}
	}
	if leave != nil {
		leave()
	}
	return nil, nil
}

// logInSomewhere logs in at the best address. Another one is tried only if the first has failed
// before the credentials were sent.
func (b *Backend) logInSomewhere(ctx context.Context, cfg *Config, req Request, creds credentials) (*Conn, error) {
	deadline := time.Now().Add(cfg.UpstreamLoginTimeout)
	if err := b.awaitAddresses(ctx, deadline); err != nil {
		return nil, b.refuse(ctx, err)
	}
	var tried []*address
	var failure error // at the last address that was tried
	for {
		c := b.choose(cfg, &req, tried)
		a, leave := b.place(ctx, cfg, req.User, c)
		switch {
		case a == nil && failure != nil:
			return nil, failure
		case a == nil && c.someFull:
			return nil, b.refuse(ctx, errFull)
		case a == nil:
			return nil, b.refuse(ctx, errNoAddress)
		}
		t := attempt{address: a, cfg: cfg, deadline: deadline, leave: leave, others: len(c.candidates)}
		if slices.Contains(c.candidates, a) {
			t.others--
		}
		isOurs := true
		if slices.Contains(c.probes, a) {
			t.isProbe, isOurs = a.beginProbe(time.Now())
		}
		var conn *Conn
		canRetry := true
		if isOurs {
			conn, canRetry, failure = t.run(ctx, req, creds)
			tried = append(tried, a)
		} // otherwise another login is the probe, and the next choice passes the address over
		if conn != nil {
			return conn, nil
		}
		if leave != nil {
			leave()
		}
		if !canRetry || !time.Now().Before(deadline) {
			return nil, cmp.Or(failure, errNoAddress)
		}
	}
}

// refuse counts a login that is tried nowhere, and returns err.
func (b *Backend) refuse(ctx context.Context, err error) error {
	if b.hooks.OnConnect != nil {
		b.hooks.OnConnect(ResultOf(ctx, err))
	}
	return err
}
