package upstream

import (
	"cmp"
	"context"
	"errors"
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

const (
	maxConnectAttempts = 3           // for one login
	connectRetryDelay  = time.Second // between attempts

	// maxSlotTime is how long a login holds one of the MaxUpstreamLogins slots. A login does its
	// work in less. A backend that delays the answer to a wrong password takes longer, and a few
	// such logins must not block all others.
	maxSlotTime = time.Second
	// minReportedWait is the shortest wait that is reported; acquiring a free slot takes
	// microseconds.
	minReportedWait = time.Millisecond
)

// Backend connects to one backend and logs users in there. It is safe for concurrent use.
type Backend struct {
	// Set once.
	name    string
	hooks   Hooks
	log     *zap.Logger
	dns     dnsLookups
	changed chan struct{} // the addresses or the configuration have changed; holds one element

	config    atomic.Pointer[Config]
	addresses atomic.Pointer[[]*address] // in use, in the order of the configuration
	isWatched atomic.Bool                // Run makes health checks
	// Which login forms the backend accepted.
	passwordForms, tokenForms formPreference
	lastCaps                  atomic.Pointer[imap.Caps] // of the last login; most are equal and share one

	mu sync.Mutex
	// Guarded by mu.
	targets map[string][]target           // of SRV records, by their name
	orders  map[string]event.AddressState // by operators, by address; also of addresses that are not in use
}

// New returns a Backend. The configuration must be valid; zero fields get their defaults.
func New(cfg Config, hooks Hooks, log *zap.Logger) *Backend {
	b := &Backend{
		name: cfg.Name, hooks: hooks, log: log.With(zap.String("backend", cfg.Name)), dns: systemDNS, changed: make(chan struct{}, 1),
		targets: make(map[string][]target), orders: make(map[string]event.AddressState),
	}
	b.addresses.Store(new([]*address))
	b.Apply(cfg)
	return b
}

// Apply makes a configuration that of all later logins. Addresses that stay keep their health
// and what the operator has ordered; the connections to others end as their sessions do.
func (b *Backend) Apply(cfg Config) {
	cfg.AnswerTimeout = cmp.Or(cfg.AnswerTimeout, answerTimeout)
	cfg.Sockets = cmp.Or(cfg.Sockets, descriptors.New(descriptors.Unlimited))
	cfg.Resolve, cfg.Placement = cmp.Or(cfg.Resolve, 30*time.Second), cmp.Or(cfg.Placement, event.Sticky)
	cfg.Breaker.Failures, cfg.Breaker.Within, cfg.Breaker.Hold = cmp.Or(cfg.Breaker.Failures, 5), cmp.Or(cfg.Breaker.Within, 10*time.Second), cmp.Or(cfg.Breaker.Hold, 5*time.Second)
	b.mu.Lock()
	old := b.config.Swap(&cfg)
	b.updateAddresses(old)
	b.mu.Unlock()
	b.notifyRun()
}

// notifyRun makes Run look at the addresses again.
func (b *Backend) notifyRun() {
	select {
	case b.changed <- struct{}{}:
	default: // it will
	}
}

// updateAddresses makes the addresses those of the configuration and of DNS. mu is held.
func (b *Backend) updateAddresses(old *Config) {
	cfg, known := b.cfg(), *b.addresses.Load()
	var current []*address
	for _, t := range configuredTargets(cfg, b.targets) {
		i := slices.IndexFunc(known, func(a *address) bool { return a.hostPort == t.hostPort && hasSameLimits(cfg, old) })
		var a *address
		if i >= 0 {
			a = known[i]
		} else {
			a = newAddress(b, cfg, t.hostPort)
			a.dial.dns = b.dns
		}
		a.mu.Lock()
		a.priority, a.weight, a.order = t.priority, t.weight, b.orders[t.hostPort]
		a.leaving.Store(isLeavingOrder(a.order))
		a.mu.Unlock()
		current = append(current, a)
	}
	for _, a := range known {
		if !slices.ContainsFunc(current, func(c *address) bool { return c.hostPort == a.hostPort }) {
			a.leaving.Store(true)
		}
	}
	b.addresses.Store(&current)
}

// hasSameLimits reports whether addresses made for an old configuration have the limits of a
// new one.
func hasSameLimits(cfg, old *Config) bool {
	return old == nil || cfg.MaxUpstreamLogins == old.MaxUpstreamLogins && cfg.MaxUpstreamConnectsPerSecond == old.MaxUpstreamConnectsPerSecond
}

func isLeavingOrder(s event.AddressState) bool {
	return s == event.AddressEvacuating || s == event.AddressDisabled
}

// refreshAddresses looks up SRV records again.
func (b *Backend) refreshAddresses(ctx context.Context) error {
	cfg := b.cfg()
	var errs []error
	found := make(map[string][]target)
	for _, a := range cfg.AllAddresses() {
		if a.SRV == "" {
			continue
		}
		targets, err := lookUpSRV(ctx, b.dns, a.SRV, cfg.ServerName != "")
		if err != nil {
			errs = append(errs, err)
			continue
		}
		found[a.SRV] = targets
	}
	if len(found) > 0 {
		b.mu.Lock()
		for name, targets := range found {
			b.targets[name] = targets
		}
		b.updateAddresses(cfg)
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
	if err := b.refreshAddresses(ctx); err != nil {
		return fmt.Errorf("%w: %w", errConnect, err)
	}
	return nil
}

func (b *Backend) cfg() *Config       { return b.config.Load() }
func (b *Backend) list() []*address   { return *b.addresses.Load() }
func (b *Backend) hasSeveral() bool   { return len(b.list()) > 1 }
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
	list := make([]AddressStatus, 0, len(b.list()))
	for _, a := range b.list() {
		list = append(list, a.status())
	}
	return list
}

// SetState makes an address draining, evacuating or disabled, by an operator's order. AddressUp
// revokes the order. It returns false if the address is not in use; the order then holds as
// soon as it is.
func (b *Backend) SetState(hostPort string, state event.AddressState) bool {
	if state == event.AddressUp {
		state = ""
	}
	b.mu.Lock()
	if state == "" {
		delete(b.orders, hostPort)
	} else {
		b.orders[hostPort] = state
	}
	b.updateAddresses(b.cfg())
	i := slices.IndexFunc(b.list(), func(a *address) bool { return a.hostPort == hostPort })
	b.mu.Unlock()
	if i < 0 {
		return false
	}
	b.list()[i].report()
	return true
}

// MaxLoginTime returns the longest time that Login can take.
func (b *Backend) MaxLoginTime() time.Duration {
	return b.cfg().UpstreamLoginTimeout + b.cfg().AnswerTimeout
}

// Sockets returns the counter of connections to the backend; nil without one.
func (b *Backend) Sockets() *descriptors.Counter { return b.cfg().Sockets }

// MaintenanceError refuses a login because of maintenance.
type MaintenanceError struct{ Text string }

func (e *MaintenanceError) Error() string { return "maintenance: " + e.Text }

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
		err = ErrLoop
		if b.hooks.OnConnect != nil {
			b.hooks.OnConnect(event.ConnectLoop)
		}
	case cfg.Maintenance != "":
		err = &MaintenanceError{sanitizeText(cfg.Maintenance)}
	default:
		conn, err = b.logInSomewhere(ctx, cfg, req, creds)
	}
	if err != nil {
		return nil, fmt.Errorf("log in at %s: %w", b.name, publicError(err))
	}
	return conn, nil
}

// queueForSlot is awaitSlot if the login may have to wait.
func (t attempt) queueForSlot(ctx context.Context) error {
	a := t.address
	waitCtx, cancel := context.WithDeadline(ctx, t.deadline)
	defer cancel()
	if a.connRate != nil {
		began := time.Now()
		if err := a.connRate.Wait(waitCtx); err != nil { // at once if the wait would exceed the deadline
			a.backend.reportWait(event.LimitUpstreamRate, ctx.Err() == nil)
			return fmt.Errorf("%w: %w", errBusy, err)
		}
		if time.Since(began) >= minReportedWait {
			a.backend.reportWait(event.LimitUpstreamRate, false)
		}
	}
	if a.slots.TryAcquire(1) {
		return nil
	}
	err := a.slots.Acquire(waitCtx, 1)
	a.backend.reportWait(event.LimitUpstreamLogins, errors.Is(err, context.DeadlineExceeded))
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return fmt.Errorf("%w: %w", errBusy, context.Cause(ctx))
	}
	return errBusy
}

// reportWait reports that a limit delayed a login, or refused it.
func (b *Backend) reportWait(limit event.Limit, timedOut bool) {
	if b.hooks.OnWait != nil {
		b.hooks.OnWait(Wait{limit, timedOut})
	}
}
