package upstream

import (
	"cmp"
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

	"go.uber.org/zap"

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
	// minLookupInterval is the least time between two questions about one name, and how long a
	// failed lookup of SRV records is remembered.
	minLookupInterval = time.Second
)

// dnsLookups are the questions to DNS. Only tests replace them.
type dnsLookups struct {
	ips func(ctx context.Context, network, host string) ([]netip.Addr, error)
	srv func(ctx context.Context, service, proto, name string) (string, []*net.SRV, error)
}

var systemDNS = dnsLookups{net.DefaultResolver.LookupNetIP, net.DefaultResolver.LookupSRV} // constant

// resolver connects to host:port. It remembers the addresses of a host name, and goes on with
// them while DNS does not answer. A login waits for DNS only as long as none are known.
type resolver struct {
	// Set once.
	hostPort, host, port string
	literal              bool // the host is an IP address
	dns                  dnsLookups
	control              func(network, address string, raw syscall.RawConn) error // of new sockets

	mu sync.Mutex
	// Guarded by mu.
	ips       []netip.Addr // at most maxIPs
	askedAt   time.Time
	isSuspect bool // a connection has failed since askedAt
}

func newResolver(hostPort string, dns dnsLookups) *resolver {
	r := &resolver{hostPort: hostPort, dns: dns, control: keepalive.Control}
	r.host, r.port, _ = net.SplitHostPort(hostPort)
	_, err := netip.ParseAddr(r.host)
	r.literal = err == nil
	return r
}

// connect connects to one of the addresses.
func (r *resolver) connect(ctx context.Context, deadline time.Time) (net.Conn, error) {
	// The keepalive detects a dead peer.
	dialer := &net.Dialer{Deadline: deadline, KeepAliveConfig: keepalive.Config(), Control: r.control}
	if r.literal {
		return dialer.DialContext(ctx, "tcp", r.hostPort)
	}
	ips := r.known()
	if len(ips) == 0 {
		lookupCtx, cancel := context.WithDeadline(ctx, deadline)
		defer cancel()
		var err error
		if ips, err = r.lookUp(lookupCtx); err != nil {
			return nil, err
		}
	}
	if len(ips) == 1 {
		return dialer.DialContext(ctx, "tcp", net.JoinHostPort(ips[0].String(), r.port))
	}
	return r.race(ctx, dialer, ips)
}

func (r *resolver) known() []netip.Addr {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.ips
}

// suspect makes the known addresses due for a lookup, because a connection has failed. It
// reports whether they can be looked up.
func (r *resolver) suspect() bool {
	if r.literal {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.isSuspect = true
	return true
}

// isDue reports whether the host name should be looked up: after ttl, and soon after a failure.
func (r *resolver) isDue(now time.Time, ttl time.Duration) bool {
	if r.literal {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	age := now.Sub(r.askedAt)
	return age >= ttl || r.isSuspect && age >= minLookupInterval
}

// lookUp looks the host name up. The known addresses stay in use if that fails.
func (r *resolver) lookUp(ctx context.Context) ([]netip.Addr, error) {
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	found, err := r.dns.ips(ctx, "ip", r.host)
	if err == nil && len(found) == 0 {
		err = errors.New("no address")
	}
	found = slices.Clone(found[:min(len(found), maxIPs)])
	for i := range found {
		found[i] = found[i].Unmap()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.askedAt, r.isSuspect = time.Now(), false
	if err != nil {
		return nil, fmt.Errorf("look up %s: %w", r.host, err)
	}
	r.ips = found
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

// srvAnswer is what is known about the SRV records of a name.
type srvAnswer struct {
	targets []target // at most maxTargets
	askedAt time.Time
	err     error // of the last lookup
}

// configuredTargets returns the addresses of a configuration. known are those of SRV records
// by their name.
func configuredTargets(cfg *Config, known map[string]srvAnswer) (all []target) {
	for _, a := range cfg.AllAddresses() {
		if a.SRV != "" {
			all = append(all, known[a.SRV].targets...)
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

// refreshDNS looks up the SRV records and host names that are due, at the same time. What is
// known stays in use where DNS does not answer.
func (w *watchers) refreshDNS(b *Backend) {
	ttl := b.cfg().Resolve
	w.logLookup(b, "SRV", b.refreshSRV(w.ctx, ttl))
	var due []*address
	now := time.Now()
	for _, a := range b.list() {
		if a.dial.isDue(now, ttl) {
			due = append(due, a)
		}
	}
	errs := make([]error, len(due))
	var lookups sync.WaitGroup
	for i, a := range due {
		lookups.Go(func() { _, errs[i] = a.dial.lookUp(w.ctx) })
	}
	lookups.Wait()
	for i, a := range due {
		w.logLookup(b, a.hostPort, errs[i])
	}
}

// logLookup logs the first of several failures, and their end.
func (w *watchers) logLookup(b *Backend, what string, err error) {
	switch {
	case w.ctx.Err() != nil:
	case err != nil && !w.failing[what]:
		w.failing[what] = true
		b.log.Warn("DNS lookup failed; what is known stays in use", addressField(what), zap.String("error", sanitizeText(err.Error())))
	case err == nil && w.failing[what]:
		delete(w.failing, what)
		b.log.Info("DNS lookup succeeds again", addressField(what))
	}
}

// refreshSRV looks up the SRV records of which the answer is older than ttl. Others wait for the
// one that looks them up.
func (b *Backend) refreshSRV(ctx context.Context, ttl time.Duration) error {
	select {
	case b.lookup <- struct{}{}:
		defer func() { <-b.lookup }()
	case <-ctx.Done():
		return ctx.Err()
	}
	cfg := b.cfg()
	b.mu.Lock()
	current := make(map[string]srvAnswer)
	for _, a := range cfg.AllAddresses() {
		if a.SRV != "" {
			current[a.SRV] = b.targets[a.SRV]
		}
	}
	b.mu.Unlock()
	var errs []error
	changed := false
	for name, answer := range current {
		if time.Since(answer.askedAt) >= ttl {
			targets, err := lookUpSRV(ctx, b.dns, name, cfg.ServerName != "")
			if ctx.Err() != nil { // it is not due to DNS
				return ctx.Err()
			}
			if answer.askedAt, answer.err = time.Now(), err; err == nil {
				answer.targets = targets
			}
			current[name], changed = answer, true
		}
		errs = append(errs, answer.err)
	}
	if changed {
		b.mu.Lock()
		b.targets = current
		b.updateAddresses()
		b.mu.Unlock()
	}
	return errors.Join(errs...)
}

// awaitAddresses looks up SRV records for the first time, if Run has not.
func (b *Backend) awaitAddresses(ctx context.Context, deadline time.Time) error {
	if len(b.list()) > 0 {
		return nil
	}
	ctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	if err := b.refreshSRV(ctx, minLookupInterval); err != nil && len(b.list()) == 0 {
		return fmt.Errorf("%w: %w", errConnect, err)
	}
	return nil
}

// lookUpSRV returns the targets of SRV records. anyDomain permits those outside of the domain
// of the name.
func lookUpSRV(ctx context.Context, dns dnsLookups, name string, anyDomain bool) (targets []target, err error) {
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	_, records, err := dns.srv(ctx, "", "", name)
	if err != nil && len(records) == 0 { // with records, others are malformed
		return nil, fmt.Errorf("look up SRV %s: %w", name, err)
	}
	for _, record := range records {
		host := strings.ToLower(strings.TrimSuffix(record.Target, "."))
		if host == "" || record.Port == 0 || !anyDomain && !isInDomain(host, serviceDomain(name)) { // "." is: no service (RFC 2782)
			continue
		}
		targets = append(targets, target{net.JoinHostPort(host, strconv.Itoa(int(record.Port))), int(record.Priority) + 1, max(int(record.Weight), 1)})
	}
	if len(targets) == 0 {
		return nil, fmt.Errorf("look up SRV %s: no target in the domain %s; set server_name to use others", name, serviceDomain(name))
	}
	slices.SortFunc(targets, func(a, b target) int { // so that all gateways leave the same ones out
		return cmp.Or(cmp.Compare(a.priority, b.priority), cmp.Compare(a.hostPort, b.hostPort))
	})
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
	return host == domain || strings.HasSuffix(host, "."+domain)
}
