package upstream

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"
	"golang.org/x/time/rate"

	"imapgate/internal/descriptors"
	"imapgate/internal/event"
	"imapgate/internal/meter"
	"imapgate/internal/sleep"
)

const (
	// failoverConnect and failoverAnswer bound the attempt at an address while there is
	// another one: for the connection, and for all before the credentials.
	failoverConnect = time.Second
	failoverAnswer  = 3 * time.Second

	// latencyShare is the share of the latest login in the mean latency.
	latencyShare = 0.1
)

// AddressSettings name an address of a backend, or the DNS records that do.
type AddressSettings struct {
	Address  string `yaml:"address" form:"backend" example:"mail-e1.internal:993" reload:"new" doc:"host:port. A host name is looked up again as resolve says."`
	SRV      string `yaml:"srv" form:"label" example:"_imaps._tcp.east.internal" reload:"new" doc:"Name of SRV records, in place of an address: their targets are the addresses, with the priorities and weights of DNS. A target must be in the domain of the name, unless server_name is set, because its certificate is verified for its own name."`
	Priority int    `yaml:"priority" default:"1" min:"1" max:"1000" reload:"new" doc:"An address is used while none with a lower number can be."`
	Weight   int    `yaml:"weight" default:"1" min:"1" max:"1000" reload:"new" doc:"Its share of the users, compared with those of the same priority."`
}

// address is one address of a backend, with what is known about its health.
type address struct {
	// Set once.
	backend  *Backend
	hostPort string
	slots    *semaphore.Weighted // of MaxUpstreamLogins logins in progress
	connRate *rate.Limiter       // of new connections; nil: unlimited
	dial     *resolver
	health   health
	circuit  circuit

	connections      atomic.Int64 // open
	logins, failures atomic.Uint64
	leaving          atomic.Bool // no connection may be used there again

	mu sync.Mutex
	// Guarded by mu.
	priority, weight int
	order            event.AddressState // by the operator; "" for none
	checked          checkResult
	reported         event.AddressState // latest state that was reported
	since            time.Time          // of reported
	why              string             // of reported
	returnedAt       time.Time          // when it came up after it was down; zero: never
	latency          float64            // mean of recent logins, in seconds
	checkLatency     float64            // of the last check, in seconds
	recent           meter.Meter        // of logins
}

func newAddress(b *Backend, cfg *Config, hostPort string) *address {
	a := &address{
		backend: b, hostPort: hostPort, slots: semaphore.NewWeighted(int64(cfg.MaxUpstreamLogins)), dial: newResolver(hostPort),
		reported: event.AddressUp, since: time.Now(), checked: checkResult{isUp: true},
	}
	if n := cfg.MaxUpstreamConnectsPerSecond; n > 0 {
		a.connRate = rate.NewLimiter(rate.Limit(n), max(1, n/10)) // a burst of a tenth of a second
	}
	return a
}

// state returns the state of the address, and why it is not up.
func (a *address) state(now time.Time) (event.AddressState, string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.stateLocked(now)
}

func (a *address) stateLocked(now time.Time) (event.AddressState, string) {
	switch {
	case a.order != "":
		return a.order, "by an operator"
	case !a.checked.isUp:
		return event.AddressDown, "health check: " + a.checked.why
	}
	if open, why := a.circuit.isOpen(now); open {
		return event.AddressDown, "logins: " + why
	}
	return event.AddressUp, ""
}

// report reports the state if it has changed.
func (a *address) report() {
	now := time.Now()
	a.mu.Lock()
	state, why := a.stateLocked(now)
	old := a.reported
	if state != old {
		a.reported, a.since, a.why = state, now, why
		if old == event.AddressDown {
			a.returnedAt = now
		}
	}
	a.mu.Unlock()
	if state != old && a.backend.hooks.OnState != nil {
		a.backend.hooks.OnState(a.hostPort, old, state, why)
	}
}

// effectiveWeight returns the weight, reduced for a while after the address has come back.
func (a *address) effectiveWeight(slowStart time.Duration, now time.Time) float64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	weight := float64(a.weight)
	if age := now.Sub(a.returnedAt); !a.returnedAt.IsZero() && age < slowStart {
		weight *= max(float64(age)/float64(slowStart), 0.05)
	}
	return weight
}

// isFull reports whether the address has as many connections as it may have.
func (a *address) isFull(cfg *Config) bool {
	return cfg.MaxSessions > 0 && a.connections.Load() >= int64(cfg.MaxSessions)
}

// recordLatency adds the time of a successful login.
func (a *address) recordLatency(d time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.latency == 0 {
		a.latency = d.Seconds()
	}
	a.latency += latencyShare * (d.Seconds() - a.latency)
}

// Hold is a place at an address that a connection occupies from its login on.
type Hold struct {
	// Set once.
	address *address
	sockets *descriptors.Counter
	leave   func() // of Places; may be nil

	released atomic.Bool
}

// Release frees the place, once the connection is closed. It is idempotent.
func (h *Hold) Release() {
	if h == nil || h.released.Swap(true) {
		return
	}
	h.sockets.RemoveBackend()
	h.address.connections.Add(-1)
	if h.leave != nil {
		h.leave()
	}
}

// Address returns host:port of the address; "" for a nil Hold.
func (h *Hold) Address() string {
	if h == nil {
		return ""
	}
	return h.address.hostPort
}

// IsLeaving reports whether the connection must not be used again: an operator evacuates or has
// disabled the address, or it is no longer configured.
func (h *Hold) IsLeaving() bool { return h != nil && h.address.leaving.Load() }

// attempt is one login at one address.
type attempt struct {
	address  *address
	cfg      *Config
	deadline time.Time
	hasOther bool // there is another address to try
}

// run logs in. canRetry is true if the credentials were not sent and the address is at fault.
func (t attempt) run(ctx context.Context, req Request, creds credentials) (conn *Conn, canRetry bool, err error) {
	a := t.address
	began := time.Now()
	trial, err := a.health.allow(ctx, t.deadline)
	if trial != nil {
		defer a.health.endTrial(trial)
	}
	if err == nil {
		err = t.awaitSlot(ctx)
	}
	if wait := time.Since(began); req.WaitTime != nil && wait >= minReportedWait {
		*req.WaitTime += wait
	}
	sent := false
	if err == nil {
		began = time.Now()
		conn, sent, err = t.loginInSlot(ctx, req, creds)
	}
	if err == nil {
		a.recordLatency(time.Since(began))
	}
	isFault := t.recordResult(ctx, trial, err)
	return conn, !sent && isFault && ctx.Err() == nil, err
}

// awaitSlot waits for MaxUpstreamConnectsPerSecond and one of the MaxUpstreamLogins slots, so
// that clients do not overload a backend that has just come back. It waits for the rate first,
// because that wait must not hold a slot.
func (t attempt) awaitSlot(ctx context.Context) error {
	a := t.address
	if a.connRate == nil && a.slots.TryAcquire(1) {
		return nil
	}
	return t.queueForSlot(ctx)
}

// loginInSlot connects and logs in, and releases the slot at its end or after maxSlotTime.
func (t attempt) loginInSlot(ctx context.Context, req Request, creds credentials) (conn *Conn, sent bool, err error) {
	a := t.address
	release := sync.OnceFunc(func() { a.slots.Release(1) })
	defer release()
	defer time.AfterFunc(maxSlotTime, release).Stop()
	hold := &Hold{address: a, sockets: t.cfg.Sockets, leave: req.leave}
	t.cfg.Sockets.AddBackend()
	a.connections.Add(1)
	nc, err := t.connect(ctx)
	if err == nil {
		conn, sent, err = t.loginOn(ctx, nc, req, creds)
	}
	if err != nil {
		hold.Release() // the connection is closed
		return nil, sent, err
	}
	conn.hold = hold
	return conn, true, nil
}

// connect tries to connect until the deadline. Without another address it makes up to
// maxConnectAttempts: nothing has been sent. An address that is down gets one attempt.
func (t attempt) connect(ctx context.Context) (net.Conn, error) {
	limit := t.cfg.UpstreamConnectTimeout
	if t.hasOther {
		limit = min(limit, failoverConnect)
	}
	deadline := t.deadline
	if end := time.Now().Add(limit); end.Before(deadline) {
		deadline = end
	}
	for attempt := 1; ; attempt++ {
		nc, err := t.address.dial.connect(ctx, deadline, t.cfg.Resolve)
		if err == nil {
			return nc, nil
		}
		left := time.Until(deadline)
		if t.hasOther || attempt == maxConnectAttempts || left <= connectRetryDelay || t.address.health.isDown() || sleep.For(ctx, connectRetryDelay) != nil {
			return nil, fmt.Errorf("%w: %w", errConnect, err)
		}
	}
}

// recordResult reports the result of a login to the metrics and to the health of its address.
// It returns whether the address is at fault. A BAD and a rejected token have no effect on
// health: clients can provoke both, and must be able neither to mark an address down nor to
// keep it up.
func (t attempt) recordResult(ctx context.Context, trial *trial, err error) (isFault bool) {
	a, now := t.address, time.Now()
	res := ResultOf(ctx, err)
	if a.backend.hooks.OnConnect != nil {
		a.backend.hooks.OnConnect(res)
	}
	a.logins.Add(1)
	a.mu.Lock()
	a.recent.Add(now)
	a.mu.Unlock()
	switch res {
	case event.ConnectOK, event.ConnectDenied, event.ConnectRefused:
		if a.health.recordSuccess(now) {
			a.backend.log.Info("backend is up again", addressField(a.hostPort))
		}
		if a.circuit.recordSuccess() {
			a.report()
		}
		return false
	case event.ConnectUnreachable, event.ConnectTLS, event.ConnectTimeout, event.ConnectClosed, event.ConnectProtocol:
		if ctx.Err() == nil { // otherwise the caller's time ran out
			a.failures.Add(1)
			a.health.recordFailure(now)
			if a.circuit.recordFailure(now, &t.cfg.Breaker, publicError(err).Error()) {
				a.report()
			}
			return true
		}
	case event.ConnectDown:
		return true
	}
	a.health.recordUnknown(trial)
	return false
}

// AddressStatus is what is known about an address.
type AddressStatus struct {
	Address          string
	State            event.AddressState
	Since            time.Time
	Why              string // "" for an address that is up
	Priority, Weight int
	Connections      int
	Logins, Failures uint64
	LoginsPerSecond  float64       // of the last minute
	Latency          time.Duration // mean of recent logins; 0: none
	CheckLatency     time.Duration // of the last health check; 0: none
}

func (a *address) status() AddressStatus {
	a.mu.Lock()
	defer a.mu.Unlock()
	return AddressStatus{
		Address: a.hostPort, State: cmp.Or(a.reported, event.AddressUp), Since: a.since, Why: a.why, Priority: a.priority, Weight: a.weight,
		Connections: int(a.connections.Load()), Logins: a.logins.Load(), Failures: a.failures.Load(), LoginsPerSecond: a.recent.PerSecond(time.Now()),
		Latency: time.Duration(a.latency * float64(time.Second)), CheckLatency: time.Duration(a.checkLatency * float64(time.Second)),
	}
}
