package upstream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"imapgate/internal/keepalive"
)

const (
	// headStart is how long the first of several IP addresses has to connect before the next
	// is tried beside it (RFC 8305).
	headStart = 250 * time.Millisecond
	// lookupTimeout bounds a question to DNS.
	lookupTimeout = 2 * time.Second
	// maxIPs bounds the IP addresses of a name, and maxTargets the targets of SRV records.
	maxIPs     = 16
	maxTargets = 64
)

// dnsLookups are the questions to DNS. Only tests replace them.
type dnsLookups struct {
	ips func(ctx context.Context, network, host string) ([]netip.Addr, error)
	srv func(ctx context.Context, service, proto, name string) (string, []*net.SRV, error)
}

var systemDNS = dnsLookups{net.DefaultResolver.LookupNetIP, net.DefaultResolver.LookupSRV} // constant

// resolver connects to host:port. It remembers the addresses of a host name, and goes on with
// them while DNS does not answer.
type resolver struct {
	// Set once.
	hostPort, host, port string
	literal              bool // the host is an IP address
	dns                  dnsLookups
	control              func(network, address string, raw syscall.RawConn) error // of new sockets

	mu sync.Mutex
	// Guarded by mu.
	ips     []netip.Addr
	askedAt time.Time
}

func newResolver(hostPort string) *resolver {
	r := &resolver{hostPort: hostPort, dns: systemDNS, control: keepalive.Control}
	r.host, r.port, _ = net.SplitHostPort(hostPort)
	_, err := netip.ParseAddr(r.host)
	r.literal = err == nil
	return r
}

// connect connects to one of the addresses.
func (r *resolver) connect(ctx context.Context, deadline time.Time, ttl time.Duration) (net.Conn, error) {
	// The keepalive detects a dead peer.
	dialer := &net.Dialer{Deadline: deadline, KeepAliveConfig: keepalive.Config(), Control: r.control}
	if r.literal {
		return dialer.DialContext(ctx, "tcp", r.hostPort)
	}
	ips, err := r.lookup(ctx, deadline, ttl)
	if err != nil {
		return nil, err
	}
	if len(ips) == 1 {
		return dialer.DialContext(ctx, "tcp", net.JoinHostPort(ips[0].String(), r.port))
	}
	return r.race(ctx, dialer, ips)
}

// lookup returns the addresses of the host, which it looks up at most every ttl.
func (r *resolver) lookup(ctx context.Context, deadline time.Time, ttl time.Duration) ([]netip.Addr, error) {
	r.mu.Lock()
	ips, isFresh := r.ips, time.Since(r.askedAt) < ttl
	if !isFresh && len(ips) > 0 {
		r.askedAt = time.Now() // the others use the old ones meanwhile
	}
	r.mu.Unlock()
	if isFresh && len(ips) > 0 {
		return ips, nil
	}
	ctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	ctx, cancelLookup := context.WithTimeout(ctx, lookupTimeout)
	defer cancelLookup()
	found, err := r.dns.ips(ctx, "ip", r.host)
	if err == nil && len(found) == 0 {
		err = errors.New("no address")
	}
	if err != nil {
		if len(ips) > 0 {
			return ips, nil
		}
		return nil, fmt.Errorf("look up %s: %w", r.host, err)
	}
	for i := range found {
		found[i] = found[i].Unmap()
	}
	found = found[:min(len(found), maxIPs)]
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ips, r.askedAt = found, time.Now()
	return found, nil
}

// race connects to the first of several addresses that accepts.
func (r *resolver) race(ctx context.Context, dialer *net.Dialer, ips []netip.Addr) (net.Conn, error) {
	type result struct {
		conn net.Conn
		err  error
	}
	ctx, cancel := context.WithCancel(ctx)
	results := make(chan result, len(ips))
	var dials sync.WaitGroup
	next, open := 0, 0
	start := func() {
		if next < len(ips) {
			target := net.JoinHostPort(ips[next].String(), r.port)
			next, open = next+1, open+1
			dials.Go(func() {
				conn, err := dialer.DialContext(ctx, "tcp", target)
				results <- result{conn, err}
			})
		}
	}
	defer func() { // the slower ones
		cancel()
		dials.Wait()
		for ; open > 0; open-- {
			if late := <-results; late.conn != nil {
				_ = late.conn.Close()
			}
		}
	}()
	timer := time.NewTicker(headStart)
	defer timer.Stop()
	var errs []error
	start()
	for open > 0 {
		select {
		case <-timer.C:
			start()
		case got := <-results:
			open--
			if got.err == nil {
				return got.conn, nil
			}
			errs = append(errs, got.err)
			start()
		}
	}
	return nil, errors.Join(errs...)
}

// target is an address that a configuration has, itself or through SRV records.
type target struct {
	hostPort         string
	priority, weight int
}

// configuredTargets returns the addresses of a configuration. known are those of SRV records
// by their name.
func configuredTargets(cfg *Config, known map[string][]target) (all []target) {
	for _, a := range cfg.AllAddresses() {
		if a.SRV != "" {
			all = append(all, known[a.SRV]...)
			continue
		}
		all = append(all, target{a.Address, max(a.Priority, 1), max(a.Weight, 1)})
	}
	seen := make(map[string]bool)
	return slices.DeleteFunc(all, func(t target) bool {
		again := seen[t.hostPort]
		seen[t.hostPort] = true
		return again
	})
}

// lookUpSRV returns the targets of SRV records. anyDomain permits those outside of the domain
// of the name.
func lookUpSRV(ctx context.Context, dns dnsLookups, name string, anyDomain bool) (targets []target, err error) {
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	_, records, err := dns.srv(ctx, "", "", name)
	if err != nil {
		return nil, fmt.Errorf("look up SRV %s: %w", name, err)
	}
	for _, record := range records {
		host := strings.TrimSuffix(record.Target, ".")
		if host == "" || !anyDomain && !isInDomain(host, serviceDomain(name)) { // "." is: no service (RFC 2782)
			continue
		}
		targets = append(targets, target{net.JoinHostPort(host, strconv.Itoa(int(record.Port))), int(record.Priority) + 1, max(int(record.Weight), 1)})
	}
	if len(targets) == 0 {
		return nil, fmt.Errorf("look up SRV %s: no target in the domain %s; set server_name to use others", name, serviceDomain(name))
	}
	return targets[:min(len(targets), maxTargets)], nil
}

// serviceDomain returns the domain in the name of SRV records: _imaps._tcp.DOMAIN.
func serviceDomain(name string) string {
	for strings.HasPrefix(name, "_") {
		_, rest, found := strings.Cut(name, ".")
		if !found {
			break
		}
		name = rest
	}
	return strings.ToLower(strings.TrimSuffix(name, "."))
}

func isInDomain(host, domain string) bool {
	host = strings.ToLower(host)
	return host == domain || strings.HasSuffix(host, "."+domain)
}
