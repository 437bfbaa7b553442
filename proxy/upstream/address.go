package upstream

import (
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"
	"golang.org/x/time/rate"

	"imapgate/internal/descriptors"
	"imapgate/internal/event"
	"imapgate/internal/meter"
)

// latencyShare is the share of the latest login in the mean latency.
const latencyShare = 0.1

// AddressSettings name an address of a backend, or the DNS records that do.
type AddressSettings struct {
	Address  string `yaml:"address" form:"backend" example:"mail-e1.internal:993" reload:"new" doc:"host:port. A host name is looked up again as resolve says."`
	SRV      string `yaml:"srv" form:"srv" example:"_imaps._tcp.east.internal" reload:"new" doc:"Name of SRV records, in place of an address: their targets are the addresses, with the priorities and weights of DNS. A target must be in the domain of the name, unless server_name is set, because its certificate is verified for its own name."`
	Priority int    `yaml:"priority" default:"1" min:"1" max:"1000" reload:"new" doc:"An address is used while none with a lower number can be."`
	Weight   int    `yaml:"weight" default:"1" min:"1" max:"1000" reload:"new" doc:"Its share of the users, compared with those of the same priority."`
}

// address is one address of a backend, with what is known about its health.
type address struct {
	// Set once.
	backend  *Backend
	hostPort string
	dial     *resolver
	health   health

	role             atomic.Pointer[role]
	limits           atomic.Pointer[loginLimits]
	connections      atomic.Int64 // open, and those being opened
	logins, failures atomic.Uint64
	leaving          atomic.Bool // no connection may be used there again

	mu sync.Mutex
	// Guarded by mu.
	circuit      circuit
	checked      checkResult
	reported     event.AddressState // latest state that was reported
	reporting    bool               // a goroutine reports changes
	since        time.Time          // of reported
	why          string             // of reported
	returnedAt   time.Time          // when it came into use again; zero: never
	latency      float64            // mean of recent logins, in seconds
	checkLatency float64            // of the last check, in seconds
	recent       meter.Meter        // of logins
}

// role is what the configuration, DNS and operators say about an address.
type role struct {
	priority, weight int
	order            event.AddressState // by the operator; "" for none
}

// loginLimits are what protects an address from too many logins at once.
type loginLimits struct {
	maxLogins, perSecond int
	slots                *semaphore.Weighted // of maxLogins logins in progress
	connRate             *rate.Limiter       // of new connections; nil: unlimited
}

func newLoginLimits(cfg *Config) *loginLimits {
	l := &loginLimits{maxLogins: cfg.MaxUpstreamLogins, perSecond: cfg.MaxUpstreamConnectsPerSecond, slots: semaphore.NewWeighted(int64(cfg.MaxUpstreamLogins))}
	if n := l.perSecond; n > 0 {
		l.connRate = rate.NewLimiter(rate.Limit(n), max(1, n/10)) // a burst of a tenth of a second
	}
	return l
}

func newAddress(b *Backend, hostPort string) *address {
	return &address{
		backend: b, hostPort: hostPort, dial: newResolver(hostPort, b.dns),
		reported: event.AddressUp, since: time.Now(), checked: checkResult{isUp: true},
	}
}

// configure applies a configuration. Logins in progress keep the limits that they have.
func (a *address) configure(cfg *Config, r role) {
	if l := a.limits.Load(); l == nil || l.maxLogins != cfg.MaxUpstreamLogins || l.perSecond != cfg.MaxUpstreamConnectsPerSecond {
		a.limits.Store(newLoginLimits(cfg))
	}
	a.role.Store(&r)
	a.leaving.Store(r.order == event.AddressEvacuating || r.order == event.AddressDisabled)
}

// state returns the state of the address, and whether a login may probe it although it is down.
func (a *address) state(now time.Time) (state event.AddressState, mayProbe bool) {
	if order := a.role.Load().order; order != "" {
		return order, false
	}
	needsCheck := a.backend.isWatched.Load()
	a.mu.Lock()
	defer a.mu.Unlock()
	state, _ = a.stateLocked()
	return state, a.checked.isUp && a.circuit.mayProbe(now, needsCheck)
}

// stateLocked returns the state of the address, and why it is not up. mu is held.
func (a *address) stateLocked() (event.AddressState, string) {
	switch order := a.role.Load().order; {
	case order != "":
		return order, "by an operator"
	case !a.checked.isUp:
		return event.AddressDown, "health check: " + a.checked.why
	case a.circuit.open:
		return event.AddressDown, "logins: " + a.circuit.why
	}
	return event.AddressUp, ""
}

// report reports the state if it has changed. Changes are reported in their order, by one
// goroutine at a time.
func (a *address) report() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.reporting {
		return // the other goroutine looks again
	}
	a.reporting = true
	for {
		state, why := a.stateLocked()
		old := a.reported
		if state == old {
			a.reporting = false
			return
		}
		a.reported, a.since, a.why = state, time.Now(), why
		if state == event.AddressUp && old != event.AddressDraining {
			a.returnedAt = a.since
		}
		if hook := a.backend.hooks.OnState; hook != nil {
			a.mu.Unlock()
			hook(a.hostPort, old, state, why)
			a.mu.Lock()
		}
	}
}

// effectiveWeight returns the weight, reduced for a while after the address has come back.
func (a *address) effectiveWeight(slowStart time.Duration, now time.Time) float64 {
	weight := float64(a.role.Load().weight)
	if slowStart == 0 {
		return weight
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if age := now.Sub(a.returnedAt); !a.returnedAt.IsZero() && age < slowStart {
		weight *= max(float64(age)/float64(slowStart), 0.05)
	}
	return weight
}

// isFull reports whether the address has as many connections as it may have.
func (a *address) isFull(cfg *Config) bool {
	return cfg.MaxSessions > 0 && a.connections.Load() >= int64(cfg.MaxSessions)
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
	r := a.role.Load()
	a.mu.Lock()
	defer a.mu.Unlock()
	return AddressStatus{
		Address: a.hostPort, State: a.reported, Since: a.since, Why: a.why, Priority: r.priority, Weight: r.weight,
		Connections: int(a.connections.Load()), Logins: a.logins.Load(), Failures: a.failures.Load(), LoginsPerSecond: a.recent.PerSecond(time.Now()),
		Latency: time.Duration(a.latency * float64(time.Second)), CheckLatency: time.Duration(a.checkLatency * float64(time.Second)),
	}
}
