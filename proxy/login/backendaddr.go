package login

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
	// resolveTimeout bounds a login's wait for the addresses of backend names.
	resolveTimeout = 2 * time.Second
	// resolveRetry is how long a failed name lookup is remembered.
	resolveRetry = time.Second
	// maxAddresses bounds the addresses kept for one name, and maxNames the names.
	maxAddresses = 64
	maxNames     = 4096
)

// backendIndex finds the backend for an address that an auth server returned. Names are
// resolved as needed. The address only selects a backend: logins use the backend's own
// configuration, and choose among its addresses.
type backendIndex struct {
	// Set once.
	backends []*upstream.Backend // sorted by name
	ttl      time.Duration       // lifetime of a name's addresses
	resolve  func(ctx context.Context, network, host string) ([]netip.Addr, error)

	mu    sync.Mutex
	names map[string]*namedAddress // Guarded by mu. By host:port; at most maxNames.
}

// namedAddress is an address of a backend with a host name.
type namedAddress struct {
	// Set once.
	host string
	port uint16

	mu sync.Mutex
	// Guarded by mu.
	addrs   []netip.Addr // at most maxAddresses
	err     error        // error of the last lookup
	expires time.Time    // time of the next lookup
}

// newBackendIndex returns the index of the backends. If two have the same address, the first by
// name wins.
func newBackendIndex(backends map[string]*upstream.Backend, ttl time.Duration) *backendIndex {
	x := &backendIndex{ttl: ttl, resolve: net.DefaultResolver.LookupNetIP, names: make(map[string]*namedAddress)}
	for _, name := range slices.Sorted(maps.Keys(backends)) {
		x.backends = append(x.backends, backends[name])
	}
	return x
}

// find returns the name of the backend with an address. The addresses of backends change, with
// the configuration and with DNS. A failed lookup of a name that could match makes the result
// unavailable.
func (x *backendIndex) find(ctx context.Context, addr netip.AddrPort) (string, error) {
	addr = netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())
	var owners []string // of named, by the same index
	var named []*namedAddress
	for _, b := range x.backends {
		for _, hostPort := range b.HostPorts() {
			if literal, err := netip.ParseAddrPort(hostPort); err == nil {
				if netip.AddrPortFrom(literal.Addr().Unmap(), literal.Port()) == addr {
					return b.Name(), nil
				}
			} else if n := x.named(hostPort); n != nil && n.port == addr.Port() {
				owners, named = append(owners, b.Name()), append(named, n)
			}
		}
	}
	var lookups sync.WaitGroup
	ctx, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	matches, errs := make([]bool, len(named)), make([]error, len(named))
	for i, n := range named {
		lookups.Go(func() { matches[i], errs[i] = x.resolvesTo(ctx, n, addr.Addr()) })
	}
	lookups.Wait()
	if i := slices.Index(matches, true); i >= 0 {
		return owners[i], nil
	}
	for i, err := range errs {
		if err != nil {
			return "", fmt.Errorf("%w: resolve backend %s: %w", routing.ErrUnavailable, owners[i], err)
		}
	}
	return "", fmt.Errorf("%w: auth server returned %v, which is not the address of any backend", routing.ErrUnavailable, addr)
}

// named returns what is known about the addresses of host:port, or nil if it has no number as
// port, which dialing reports.
func (x *backendIndex) named(hostPort string) *namedAddress {
	x.mu.Lock()
	defer x.mu.Unlock()
	if n := x.names[hostPort]; n != nil {
		return n
	}
	host, service, err := net.SplitHostPort(hostPort)
	port, portErr := strconv.ParseUint(service, 10, 16)
	if err != nil || portErr != nil {
		return nil
	}
	if len(x.names) >= maxNames { // those of former targets of SRV records
		clear(x.names)
	}
	n := &namedAddress{host: host, port: uint16(port)}
	x.names[hostPort] = n
	return n
}

// resolvesTo reports whether addr is one of the name's addresses. Concurrent calls all
// query the resolver: package net merges them.
func (x *backendIndex) resolvesTo(ctx context.Context, n *namedAddress, addr netip.Addr) (bool, error) {
	n.mu.Lock()
	addrs, err, fresh := n.addrs, n.err, time.Now().Before(n.expires)
	n.mu.Unlock()
	if !fresh {
		addrs, err = x.resolve(ctx, "ip", n.host)
		if errors.Is(ctx.Err(), context.Canceled) { // this client has left; not an error of the resolver
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
