package proxy

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"imapgate/proxy/upstream"
	"imapgate/routing"
)

const (
	// resolveTime bounds the wait of a login for the addresses of backends' names.
	resolveTime = 2 * time.Second
	// resolveAgain is how long a name that nobody could resolve is left alone.
	resolveAgain = time.Second
	// maxAddresses bounds the addresses that are kept of one name.
	maxAddresses = 64
)

// places are the backends by address, for what an auth server says. A name leads to
// the addresses it has now: they only say which backend is meant, and a login there
// goes where the backend's own block says.
type places struct {
	// Set once.
	fixed   map[netip.AddrPort]string
	named   []*namedPlace // in the order of the backends' names
	ttl     time.Duration // how long the addresses of a name are used
	resolve func(ctx context.Context, network, host string) ([]netip.Addr, error)
}

// namedPlace is a backend whose address is a name.
type namedPlace struct {
	// Set once.
	backend, host string
	port          uint16

	mu sync.Mutex
	// Guarded by mu.
	addrs []netip.Addr // at most maxAddresses
	err   error        // why there are none
	until time.Time    // when to ask again
}

// newPlaces takes of two backends with one address the first by name.
func newPlaces(backends map[string]*upstream.Backend, ttl time.Duration) *places {
	p := &places{fixed: make(map[netip.AddrPort]string), ttl: ttl, resolve: net.DefaultResolver.LookupNetIP}
	for _, name := range slices.Sorted(maps.Keys(backends)) {
		host, service, err := net.SplitHostPort(backends[name].Address())
		if err != nil {
			continue // no address; to dial it says so
		}
		port, err := strconv.ParseUint(service, 10, 16)
		if err != nil {
			continue
		}
		addr, err := netip.ParseAddr(host)
		if err != nil {
			p.named = append(p.named, &namedPlace{backend: name, host: host, port: uint16(port)})
			continue
		}
		at := netip.AddrPortFrom(addr.Unmap(), uint16(port))
		if _, taken := p.fixed[at]; !taken {
			p.fixed[at] = name
		}
	}
	return p
}

// at is the backend with an address. Where a name that could be the one has no
// answer, nobody knows.
func (p *places) at(ctx context.Context, at netip.AddrPort) (string, error) {
	at = netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
	if name, known := p.fixed[at]; known {
		return name, nil
	}
	var asked sync.WaitGroup
	ctx, cancel := context.WithTimeout(ctx, resolveTime)
	defer cancel()
	found, errs := make([]bool, len(p.named)), make([]error, len(p.named))
	for i, n := range p.named {
		if n.port == at.Port() {
			asked.Go(func() { found[i], errs[i] = p.leads(ctx, n, at.Addr()) })
		}
	}
	asked.Wait()
	if i := slices.Index(found, true); i >= 0 {
		return p.named[i].backend, nil
	}
	for i, err := range errs {
		if err != nil {
			return "", fmt.Errorf("%w: resolve backend %s: %w", routing.ErrUnavailable, p.named[i].backend, err)
		}
	}
	return "", fmt.Errorf("%w: the auth server says %v, which is no backend's address", routing.ErrUnavailable, at)
}

// leads says whether addr is one of a name's. Whoever comes while somebody asks the
// resolver, asks too: net asks about a name once at a time.
func (p *places) leads(ctx context.Context, n *namedPlace, addr netip.Addr) (bool, error) {
	n.mu.Lock()
	addrs, err, fresh := n.addrs, n.err, time.Now().Before(n.until)
	n.mu.Unlock()
	if !fresh {
		addrs, err = p.resolve(ctx, "ip", n.host)
		if errors.Is(ctx.Err(), context.Canceled) { // which is this client's end, and nobody else's
			return false, ctx.Err()
		}
		addrs = addrs[:min(len(addrs), maxAddresses)]
		keep := p.ttl
		if err != nil {
			keep = resolveAgain
		}
		n.mu.Lock()
		n.addrs, n.err, n.until = addrs, err, time.Now().Add(keep)
		n.mu.Unlock()
	}
	return slices.ContainsFunc(addrs, func(a netip.Addr) bool { return a.Unmap() == addr }), err
}
