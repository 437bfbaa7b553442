package breaker

import (
	"context"
	"sync"
	"time"
)

// Monitor is a breaker for a service whose time a client can waste: what a
// client asks may hang or break the connection where other questions are
// answered. So no client's question opens it. After that many of them in a row
// had no answer, the next caller asks a question of the gateway's own first,
// and that one decides. A service may answer clients' questions and never the
// gateway's own; so while the breaker is open, each period lets one question of a
// client through all the same, whose answer closes it. It is safe for concurrent use.
type Monitor struct {
	// Set once.
	check    func(context.Context) error   // nil: there was an answer, whatever it says
	timeout  time.Duration                 // of ask
	onChange func(open bool, reason error) // called when the breaker opens or closes; reason is of ask

	// Guarded by mu.
	mu       sync.Mutex
	failures int           // of clients' questions, in a row, while it is closed
	breaker  Breaker       // of the gateway's own
	trial    chan struct{} // closed when it is decided; nil: nobody probes while it is open
	waiting  int           // callers that wait for that; at most MaxWaiting
}

// NewMonitor makes a closed breaker. ask is the gateway's own question.
func NewMonitor(check func(context.Context) error, timeout time.Duration, onChange func(bool, error)) *Monitor {
	return &Monitor{check: check, timeout: timeout, onChange: onChange}
}

// Allow reports whether the service may be asked now. It may take the time of
// one question of the gateway's own, which does not end with ctx: a client that
// leaves must not leave the question undecided. While open, the one caller of a
// period may ask whatever becomes of that question.
func (m *Monitor) Allow(ctx context.Context) bool {
	m.mu.Lock()
	open, suspected := m.breaker.IsOpen(), m.failures >= Threshold
	if suspected {
		m.failures = 0 // the others go on asking until there is a verdict
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

// AwaitTrial waits for the outcome of the question that somebody else asks at this moment,
// while the service is left alone: the gateway's own, and then the one of a client. It
// reports whether the service answers again. It ends with ctx, and after the time of one
// question; it is false at once while nobody asks, and for more than MaxWaiting callers.
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

// endTrial ends the wait of those beside a probe. mu is held.
func (m *Monitor) endTrial() {
	if m.trial != nil {
		close(m.trial)
		m.trial = nil
	}
}

// updateState opens or closes the breaker by the answer to the gateway's own question.
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

// RecordFailure notes that a client's question had no answer.
func (m *Monitor) RecordFailure() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.breaker.IsOpen() {
		m.endTrial() // a client's question, behind the gateway's own
		return
	}
	m.failures++
}

// RecordSuccess notes that the service gave an answer.
func (m *Monitor) RecordSuccess() { m.updateState(nil) }
