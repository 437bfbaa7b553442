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
	// maxAddresses bounds the addresses kept for one name.
	maxAddresses = 64
)

// backendIndex finds the backend for an address that an auth server returned. Names are
// resolved as needed. The address only selects a backend: logins use the backend's own
// configuration.
type backendIndex struct {
	// Set once.
	byAddr  map[netip.AddrPort]string
	byName  []*namedBackend // sorted by backend name
	ttl     time.Duration   // lifetime of a name's addresses
	resolve func(ctx context.Context, network, host string) ([]netip.Addr, error)
}

// namedBackend is a backend configured with a host name.
type namedBackend struct {
	// Set once.
	backend, host string
	port          uint16

	mu sync.Mutex
	// Guarded by mu.
	addrs   []netip.Addr // at most maxAddresses
	err     error        // error of the last lookup
	expires time.Time    // time of the next lookup
}

// newBackendIndex indexes the backends. If two have the same address, the first by name
// wins.
func newBackendIndex(backends map[string]*upstream.Backend, ttl time.Duration) *backendIndex {
	x := &backendIndex{byAddr: make(map[netip.AddrPort]string), ttl: ttl, resolve: net.DefaultResolver.LookupNetIP}
	for _, name := range slices.Sorted(maps.Keys(backends)) {
		x.add(name, backends[name])
	}
	return x
}

// add indexes the addresses of a backend.
func (x *backendIndex) add(name string, backend *upstream.Backend) {
	for _, status := range backend.Addresses() {
		address := status.Address
		if addr, err := netip.ParseAddrPort(address); err == nil {
			addr = netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())
			if _, exists := x.byAddr[addr]; !exists {
				x.byAddr[addr] = name
			}
			continue
		}
		host, service, err := net.SplitHostPort(address)
		port, portErr := strconv.ParseUint(service, 10, 16)
		if err == nil && portErr == nil { // otherwise dialing reports it
			x.byName = append(x.byName, &namedBackend{backend: name, host: host, port: uint16(port)})
		}
	}
}

// find returns the name of the backend with an address. A failed lookup of a name that
// could match makes the result unavailable.
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
	return "", fmt.Errorf("%w: auth server returned %v, which is not the address of any backend", routing.ErrUnavailable, addr)
}

// resolvesTo reports whether addr is one of the backend's addresses. Concurrent calls all
// query the resolver: package net merges them.
func (x *backendIndex) resolvesTo(ctx context.Context, n *namedBackend, addr netip.Addr) (bool, error) {
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
