package upstream

import (
	"context"
	"fmt"
	"sync"
	"time"

	"imapgate/internal/breaker"
)

const (
	downAfter = 30 * time.Second // without a success
	// maxTrialWait bounds the wait for a trial: a hanging backend must not hold up logins for
	// long.
	maxTrialWait = 5 * time.Second
)

// health tracks whether a backend is up. Only failures of the backend count; a wrong password
// shows that it is up. Unlike a breaker.Breaker it goes by time, not by number: logins fail
// together when a backend restarts, and most come back by themselves.
type health struct {
	mu sync.Mutex

	// Guarded by mu.
	failingSince time.Time     // first failure since the last success; zero: none
	lastTrial    time.Time     // start of the last trial
	trial        *trial        // last trial, while it runs
	recovered    chan struct{} // closed by the next success; nil: no trial since
	waiting      int           // waiting logins; at most breaker.MaxWaiting
}

// trial is a login that is let through to a backend that is down.
type trial struct {
	done chan struct{} // closed at its end
	up   chan struct{} // closed when any login finds the backend up
}

// allow waits until a login may be tried. While the backend is down, one login a second is a
// trial, and the caller must end it with endTrial. Other logins wait for its outcome, and
// proceed if the backend is up. The wait ends with ctx, at the deadline, and after
// maxTrialWait. The error is errDown, and wraps the cause of ctx if that ended.
func (h *health) allow(ctx context.Context, deadline time.Time) (*trial, error) {
	timer := time.NewTimer(min(maxTrialWait, time.Until(deadline)))
	defer timer.Stop()
	for {
		own, other, err := h.tryAllow(time.Now())
		if err != nil || other == nil {
			return own, err
		}
		select {
		case <-other.done:
		case <-other.up:
		case <-timer.C:
			err = errDown
		case <-ctx.Done():
			err = fmt.Errorf("%w: %w", errDown, context.Cause(ctx))
		}
		h.mu.Lock()
		h.waiting--
		h.mu.Unlock()
		if err != nil {
			return nil, err
		}
	}
}

// tryAllow decides on a login: it proceeds, as a trial if own is set; it waits for other; or
// it is refused with err.
func (h *health) tryAllow(now time.Time) (own, other *trial, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case !h.isDownLocked(now):
		return nil, nil, nil
	case now.Sub(h.lastTrial) >= breaker.TrialInterval:
		if h.recovered == nil {
			h.recovered = make(chan struct{})
		}
		h.lastTrial, h.trial = now, &trial{make(chan struct{}), h.recovered}
		return h.trial, nil, nil
	case h.trial == nil || h.waiting == breaker.MaxWaiting:
		return nil, nil, errDown
	}
	h.waiting++
	return nil, h.trial, nil
}

// endTrial ends a trial, whose result is already recorded.
func (h *health) endTrial(t *trial) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.trial == t {
		h.trial = nil
	}
	close(t.done)
}

// isDown reports whether the backend has failed for downAfter.
func (h *health) isDown() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.isDownLocked(time.Now())
}

func (h *health) isDownLocked(now time.Time) bool {
	return !h.failingSince.IsZero() && now.Sub(h.failingSince) >= downAfter
}

// recordSuccess marks the backend up and reports whether it was down.
func (h *health) recordSuccess(now time.Time) (wasDown bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	wasDown = h.isDownLocked(now)
	h.failingSince = time.Time{}
	if h.recovered != nil {
		close(h.recovered)
		h.recovered = nil
	}
	return wasDown
}

func (h *health) recordFailure(now time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.failingSince.IsZero() {
		h.failingSince = now
	}
}

// recordUnknown records a login that shows nothing about health. If it was a trial, the next
// may start at once.
func (h *health) recordUnknown(t *trial) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if t != nil && h.trial == t {
		h.lastTrial = time.Time{}
	}
}
