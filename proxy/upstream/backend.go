package upstream

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"imapgate/internal/descriptors"
	"imapgate/internal/event"
	"imapgate/internal/imap"
)

// Backend connects to one backend and logs users in there. It is safe for concurrent use.
type Backend struct {
	// Set once.
	name    string
	hooks   Hooks
	log     *zap.Logger
	dns     dnsLookups
	changed chan struct{} // wakes Run; holds one element
	lookup  chan struct{} // holds one element while SRV records are looked up

	config    atomic.Pointer[Config]
	addresses atomic.Pointer[[]*address] // in use, in the order of the configuration
	isWatched atomic.Bool                // Run makes health checks
	// Which login forms the backend accepted.
	passwordForms, tokenForms formPreference
	lastCaps                  atomic.Pointer[imap.Caps] // of the last login; most are equal and share one

	mu sync.Mutex
	// Guarded by mu.
	targets map[string]srvAnswer          // of the configured SRV records, by their name
	orders  map[string]event.AddressState // by operators, by address; also of addresses that are not in use
}

// New returns a Backend. The configuration must be valid; zero fields get their defaults.
func New(cfg Config, hooks Hooks, log *zap.Logger) *Backend {
	return newBackend(cfg, hooks, log, systemDNS)
}

func newBackend(cfg Config, hooks Hooks, log *zap.Logger, dns dnsLookups) *Backend {
	b := &Backend{
		name: cfg.Name, hooks: hooks, log: log.With(zap.String("backend", cfg.Name)), dns: dns,
		changed: make(chan struct{}, 1), lookup: make(chan struct{}, 1),
		targets: make(map[string]srvAnswer), orders: make(map[string]event.AddressState),
	}
	b.addresses.Store(new([]*address))
	b.Apply(cfg)
	return b
}

// Apply makes a configuration that of all later logins. Addresses that stay keep their health,
// their counters and what the operator has ordered. The connections to others end as their
// sessions do.
func (b *Backend) Apply(cfg Config) {
	cfg.AnswerTimeout = cmp.Or(cfg.AnswerTimeout, answerTimeout)
	cfg.Sockets = cmp.Or(cfg.Sockets, descriptors.New(descriptors.Unlimited))
	cfg.Resolve, cfg.Placement = cmp.Or(cfg.Resolve, 30*time.Second), cmp.Or(cfg.Placement, event.Sticky)
	cfg.Breaker.Failures, cfg.Breaker.Within, cfg.Breaker.Hold = cmp.Or(cfg.Breaker.Failures, 5), cmp.Or(cfg.Breaker.Within, 10*time.Second), cmp.Or(cfg.Breaker.Hold, 5*time.Second)
	b.mu.Lock()
	b.config.Store(&cfg)
	b.updateAddresses()
	b.mu.Unlock()
	b.notifyRun()
}

// notifyRun makes Run look at the addresses and at DNS again.
func (b *Backend) notifyRun() {
	select {
	case b.changed <- struct{}{}:
	default: // it will
	}
}

// updateAddresses makes the addresses those of the configuration and of DNS. mu is held.
func (b *Backend) updateAddresses() {
	cfg, known := b.cfg(), b.list()
	var current []*address
	for _, t := range configuredTargets(cfg, b.targets) {
		i := slices.IndexFunc(known, func(a *address) bool { return a.hostPort == t.hostPort })
		var a *address
		if i >= 0 {
			a = known[i]
		} else {
			a = newAddress(b, t.hostPort)
		}
		a.configure(cfg, role{t.priority, t.weight, b.orders[t.hostPort]})
		current = append(current, a)
	}
	for _, a := range known {
		if !slices.Contains(current, a) {
			a.leaving.Store(true)
		}
	}
	b.addresses.Store(&current)
}

func (b *Backend) cfg() *Config       { return b.config.Load() }
func (b *Backend) list() []*address   { return *b.addresses.Load() }
func addressField(a string) zap.Field { return zap.String("address", a) }

// Name returns the backend's name in routes and logs.
func (b *Backend) Name() string { return b.name }

// UsesMasterLogin reports whether the gateway logs in with its own credentials. The backend
// then trusts the gateway about who the user is.
func (b *Backend) UsesMasterLogin() bool { return b.cfg().Login == MasterLogin }

// Maintenance returns the text with which new logins are refused; "" if they are not.
func (b *Backend) Maintenance() string { return sanitizeText(b.cfg().Maintenance) }

// Addresses returns what is known about each address in use.
func (b *Backend) Addresses() []AddressStatus {
	all := b.list()
	list := make([]AddressStatus, 0, len(all))
	for _, a := range all {
		list = append(list, a.status())
	}
	return list
}

// HostPorts returns host:port of each address in use.
func (b *Backend) HostPorts() []string { return hostPorts(b.list()) }

// SetState makes an address draining, evacuating or disabled, by an operator's order. AddressUp
// revokes the order. It returns false if the address is not in use; the order then holds as
// soon as it is.
func (b *Backend) SetState(hostPort string, state event.AddressState) bool {
	b.mu.Lock()
	if state == event.AddressUp {
		delete(b.orders, hostPort)
	} else {
		b.orders[hostPort] = state
	}
	b.updateAddresses()
	all := b.list()
	b.mu.Unlock()
	i := slices.IndexFunc(all, func(a *address) bool { return a.hostPort == hostPort })
	if i < 0 {
		return false
	}
	all[i].report()
	return true
}

// MaxLoginTime returns the longest time that Login can take.
func (b *Backend) MaxLoginTime() time.Duration {
	cfg := b.cfg()
	return cfg.UpstreamLoginTimeout + cfg.AnswerTimeout
}

// Sockets returns the counter of connections to the backend; nil without one.
func (b *Backend) Sockets() *descriptors.Counter { return b.cfg().Sockets }

// Login connects to the backend and logs the user of req in, within UpstreamLoginTimeout and ctx.
// After the credentials are sent, the backend has at least AnswerTimeout: a login abandoned
// before its answer would be a guess without a verdict.
//
// Errors are ErrDenied, *RefusedError, ErrLoop, and ErrUnavailable for all others; it may wrap a
// *MaintenanceError. Credentials are sent once: Login does not retry errors after that.
func (b *Backend) Login(ctx context.Context, req Request) (*Conn, error) {
	cfg := b.cfg()
	creds, err := cfg.buildCredentials(req)
	if err != nil {
		return nil, fmt.Errorf("log in at %s: %w", b.name, err)
	}
	var conn *Conn
	switch {
	case cfg.hopsLeft(req.Client) <= 0:
		err = b.refuse(ctx, ErrLoop)
	case cfg.Maintenance != "" && !req.HasSession:
		err = b.refuse(ctx, &MaintenanceError{sanitizeText(cfg.Maintenance)})
	default:
		conn, err = b.logInSomewhere(ctx, cfg, req, creds)
	}
	if err != nil {
		return nil, fmt.Errorf("log in at %s: %w", b.name, publicError(err))
	}
	return conn, nil
}
