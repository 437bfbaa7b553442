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
	// resolveTimeout bounds the wait of a login for the addresses of backends' names.
	resolveTimeout = 2 * time.Second
	// resolveRetry is how long a name that nobody could resolve is left alone.
	resolveRetry = time.Second
	// maxAddresses bounds the addresses that are kept of one name.
	maxAddresses = 64
)

// backendIndex are the backends by address, for what an auth server says. A name leads to
// the addresses it has now: they only say which backend is meant, and a login there
// goes where the backend's own block says.
type backendIndex struct {
	// Set once.
	byAddr  map[netip.AddrPort]string
	byName  []*namedBackend // in the order of the backends' names
	ttl     time.Duration   // how long the addresses of a name are used
	resolve func(ctx context.Context, network, host string) ([]netip.Addr, error)
}

// namedBackend is a backend whose address is a name.
type namedBackend struct {
	// Set once.
	backend, host string
	port          uint16

	mu sync.Mutex
	// Guarded by mu.
	addrs   []netip.Addr // at most maxAddresses
	err     error        // why there are none
	expires time.Time    // when to ask again
}

// newBackendIndex takes of two backends with one address the first by name.
func newBackendIndex(backends map[string]*upstream.Backend, ttl time.Duration) *backendIndex {
	x := &backendIndex{byAddr: make(map[netip.AddrPort]string), ttl: ttl, resolve: net.DefaultResolver.LookupNetIP}
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
			x.byName = append(x.byName, &namedBackend{backend: name, host: host, port: uint16(port)})
			continue
		}
		key := netip.AddrPortFrom(addr.Unmap(), uint16(port))
		if _, exists := x.byAddr[key]; !exists {
			x.byAddr[key] = name
		}
	}
	return x
}

// find is the backend with an address. Where a name that could be the one has no
// answer, nobody knows.
func (x *backendIndex) find(ctx context.Context, addr netip.AddrPort) (string, error) {
	addr = netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())
	if name, ok := x.byAddr[addr]; ok {
		return name, nil
	}
	var lookups sync.WaitGroup
	ctx, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	matches, errs := make([]bool, len(x.byName)), make([]error, len(x.byName))
	for i, n := range x.byName {
		if n.port == addr.Port() {
			lookups.Go(func() { matches[i], errs[i] = x.resolvesTo(ctx, n, addr.Addr()) })
		}
	}
	lookups.Wait()
	if i := slices.Index(matches, true); i >= 0 {
		return x.byName[i].backend, nil
	}
	for i, err := range errs {
		if err != nil {
			return "", fmt.Errorf("%w: resolve backend %s: %w", routing.ErrUnavailable, x.byName[i].backend, err)
		}
	}
	return "", fmt.Errorf("%w: the auth server says %v, which is no backend's address", routing.ErrUnavailable, addr)
}

// resolvesTo says whether addr is one of a name's. Whoever comes while somebody asks the
// resolver, asks too: net asks about a name once at a time.
func (x *backendIndex) resolvesTo(ctx context.Context, n *namedBackend, addr netip.Addr) (bool, error) {
	n.mu.Lock()
	addrs, err, fresh := n.addrs, n.err, time.Now().Before(n.expires)
	n.mu.Unlock()
	if !fresh {
		addrs, err = x.resolve(ctx, "ip", n.host)
		if errors.Is(ctx.Err(), context.Canceled) { // which is this client's end, and nobody else's
			return false, ctx.Err()
		}
		addrs = addrs[:min(len(addrs), maxAddresses)]
		ttl := x.ttl
		if err != nil {
			ttl = resolveRetry
		}
		n.mu.Lock()
		n.addrs, n.err, n.expires = addrs, err, time.Now().Add(ttl)
		n.mu.Unlock()
	}
	return slices.ContainsFunc(addrs, func(a netip.Addr) bool { return a.Unmap() == addr }), err
}
