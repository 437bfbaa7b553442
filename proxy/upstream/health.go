package upstream

import (
	"context"
	"fmt"
	"sync"
	"time"
)

const (
	downAfter     = 30 * time.Second // of nothing but failures
	trialInterval = time.Second      // one login is let through to a backend that is down
	// maxWaiting bounds the logins that wait for the outcome of such a login, and
	// maxTrialWait how long one waits: a backend that hangs must not hold many for long.
	maxWaiting   = 256
	maxTrialWait = 5 * time.Second
)

// health decides whether a backend is worth a try. Only what is the backend's
// own fault counts; a wrong password is a sign of life.
type health struct {
	mu sync.Mutex

	// Guarded by mu.
	failingSince time.Time     // of the first failure behind the last success; zero: none
	lastTrial    time.Time     // when a login was last let through while down
	trial        *trial        // the last of those, while it is under way
	recovered    chan struct{} // closed by the next success; nil: nobody waits
	waiting      int           // logins that wait; at most maxWaiting
}

// trial is a login that was let through to a backend that is down.
type trial struct {
	done chan struct{} // closed at its end
	up   chan struct{} // closed when the backend is up, by this or another login
}

// allow waits until it is known whether a login may be tried. While the backend is
// down, one login a second gets a probe, which its caller ends; logins that come beside
// it wait for its outcome, and go on when the backend is up. The wait ends with ctx, at
// the deadline, and after maxTrialWait. The error is errDown, or the end of ctx.
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
		h.stopWaiting()
		if err != nil {
			return nil, err
		}
	}
}

// tryAllow is what a login may do now: go on, as a probe where own is one; wait beside
// another's; or be refused.
func (h *health) tryAllow(now time.Time) (own, other *trial, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case !h.isDownLocked(now):
		return nil, nil, nil
	case now.Sub(h.lastTrial) >= trialInterval:
		if h.recovered == nil {
			h.recovered = make(chan struct{})
		}
		h.lastTrial, h.trial = now, &trial{make(chan struct{}), h.recovered}
		return h.trial, nil, nil
	case h.trial == nil || h.waiting == maxWaiting:
		return nil, nil, errDown
	}
	h.waiting++
	return nil, h.trial, nil
}

func (h *health) stopWaiting() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.waiting--
}

// endTrial is the end of a probe, whose outcome was noted before.
func (h *health) endTrial(t *trial) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.trial == t {
		h.trial = nil
	}
	close(t.done)
}

// isDown says whether the backend has failed for long.
func (h *health) isDown() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.isDownLocked(time.Now())
}

func (h *health) isDownLocked(now time.Time) bool {
	return !h.failingSince.IsZero() && now.Sub(h.failingSince) >= downAfter
}

// recordSuccess says whether that ended a time of being down.
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

// recordUnknown notes that a login has shown nothing: where it was a probe, the next may be
// tried at once.
func (h *health) recordUnknown(t *trial) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if t != nil && h.trial == t {
		h.lastTrial = time.Time{}
	}
}
