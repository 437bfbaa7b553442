package breaker

import (
	"context"
	"sync"
	"time"
)

// Monitor is a breaker for a service whose failures a client can provoke: a client's request
// may hang or break the connection although others are answered. So client requests cannot
// open it. After Threshold of them failed in a row, the next caller runs the gateway's own
// check, which decides. Some services answer client requests but never the check. So while
// open, each period also allows one client request, which closes the breaker if it is
// answered. A Monitor is safe for concurrent use.
type Monitor struct {
	// Set once.
	check    func(context.Context) error   // nil: there was an answer, of any kind
	timeout  time.Duration                 // of check
	onChange func(open bool, reason error) // called when the breaker opens or closes; reason is check's error

	// Guarded by mu.
	mu       sync.Mutex
	failures int           // consecutive failures of client requests while closed
	breaker  Breaker       // state by the results of check
	trial    chan struct{} // closed when the trial is decided; nil: no trial while open
	waiting  int           // callers waiting for trial; at most MaxWaiting
}

// NewMonitor returns a closed Monitor. check is the gateway's own request to the service.
func NewMonitor(check func(context.Context) error, timeout time.Duration, onChange func(bool, error)) *Monitor {
	return &Monitor{check: check, timeout: timeout, onChange: onChange}
}

// Allow reports whether a request may be sent now. It may run check, which takes up to timeout
// and does not end with ctx: a client that leaves must not leave the state undecided. While
// open, the one caller of a period may send its request whatever the result of check.
func (m *Monitor) Allow(ctx context.Context) bool {
	m.mu.Lock()
	open, suspected := m.breaker.IsOpen(), m.failures >= Threshold
	if suspected {
		m.failures = 0 // others are allowed until check returns
	}
	due := suspected || open && m.breaker.Allow(time.Now())
	if due && open && m.trial == nil {
		m.trial = make(chan struct{})
	}
	m.mu.Unlock()
	if !due {
		return !open
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), m.timeout)
	defer cancel()
	err := m.check(ctx)
	m.updateState(err)
	return open || err == nil
}

// AwaitTrial waits for the outcome of a running trial while the breaker is open: of check, and
// then of the client request. It reports whether the service answers again. It ends with ctx,
// and after the timeout of check. It returns false at once without a trial, and beyond
// MaxWaiting callers.
func (m *Monitor) AwaitTrial(ctx context.Context) bool {
	m.mu.Lock()
	if !m.breaker.IsOpen() || m.trial == nil || m.waiting == MaxWaiting {
		defer m.mu.Unlock()
		return !m.breaker.IsOpen()
	}
	trial := m.trial
	m.waiting++
	m.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, m.timeout)
	defer cancel()
	select {
	case <-trial:
	case <-ctx.Done():
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.waiting--
	return !m.breaker.IsOpen()
}

// endTrial wakes the callers that wait for the trial. mu is held.
func (m *Monitor) endTrial() {
	if m.trial != nil {
		close(m.trial)
		m.trial = nil
	}
}

// updateState opens or closes the breaker by the result of check.
func (m *Monitor) updateState(err error) {
	m.mu.Lock()
	wasOpen := m.breaker.IsOpen()
	m.failures = 0
	if err == nil {
		m.breaker.RecordSuccess()
		m.endTrial()
	} else {
		m.breaker.trip(time.Now())
	}
	isOpen := m.breaker.IsOpen()
	m.mu.Unlock()
	if wasOpen != isOpen {
		m.onChange(isOpen, err)
	}
}

// RecordFailure records that a client request was not answered.
func (m *Monitor) RecordFailure() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.breaker.IsOpen() {
		m.endTrial() // the client request of the trial, after check
		return
	}
	m.failures++
}

// RecordSuccess records that a client request was answered, and closes the breaker.
func (m *Monitor) RecordSuccess() { m.updateState(nil) }
