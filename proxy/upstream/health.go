package upstream

import (
	"context"
	"fmt"
	"sync"
	"time"
)

const (
	downAfter  = 30 * time.Second // of nothing but failures
	probeEvery = time.Second      // one login is let through to a backend that is down
	// maxBeside bounds the logins that wait for the outcome of such a login, and
	// besideFor how long one waits: a backend that hangs must not hold many for long.
	maxBeside = 256
	besideFor = 5 * time.Second
)

// health decides whether a backend is worth a try. Only what is the backend's
// own fault counts; a wrong password is a sign of life.
type health struct {
	mu sync.Mutex

	// Guarded by mu.
	since  time.Time     // of the first failure behind the last success; zero: none
	probed time.Time     // when a login was last let through while down
	probe  *probe        // the last of those, while it is under way
	back   chan struct{} // closed by the next success; nil: nobody waits
	beside int           // logins that wait; at most maxBeside
}

// probe is a login that was let through to a backend that is down.
type probe struct {
	ended chan struct{} // closed at its end
	up    chan struct{} // closed when the backend is up, by this or another login
}

// admit waits until it is known whether a login may be tried. While the backend is
// down, one login a second gets a probe, which its caller ends; logins that come beside
// it wait for its outcome, and go on when the backend is up. The wait ends with ctx, at
// the deadline, and after besideFor. The error is errDown, or the end of ctx.
func (h *health) admit(ctx context.Context, deadline time.Time) (*probe, error) {
	timer := time.NewTimer(min(besideFor, time.Until(deadline)))
	defer timer.Stop()
	for {
		own, beside, err := h.step(time.Now())
		if err != nil || beside == nil {
			return own, err
		}
		select {
		case <-beside.ended:
		case <-beside.up:
		case <-timer.C:
			err = errDown
		case <-ctx.Done():
			err = fmt.Errorf("%w: %w", errDown, context.Cause(ctx))
		}
		h.leave()
		if err != nil {
			return nil, err
		}
	}
}

// step is what a login may do now: go on, as a probe where own is one; wait beside
// another's; or be refused.
func (h *health) step(now time.Time) (own, beside *probe, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case !h.isDown(now):
		return nil, nil, nil
	case now.Sub(h.probed) >= probeEvery:
		if h.back == nil {
			h.back = make(chan struct{})
		}
		h.probed, h.probe = now, &probe{make(chan struct{}), h.back}
		return h.probe, nil, nil
	case h.probe == nil || h.beside == maxBeside:
		return nil, nil, errDown
	}
	h.beside++
	return nil, h.probe, nil
}

func (h *health) leave() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.beside--
}

// end is the end of a probe, whose outcome was noted before.
func (h *health) end(p *probe) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.probe == p {
		h.probe = nil
	}
	close(p.ended)
}

// down says whether the backend has failed for long.
func (h *health) down() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.isDown(time.Now())
}

func (h *health) isDown(now time.Time) bool {
	return !h.since.IsZero() && now.Sub(h.since) >= downAfter
}

// succeeded says whether that ended a time of being down.
func (h *health) succeeded(now time.Time) (back bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	back = h.isDown(now)
	h.since = time.Time{}
	if h.back != nil {
		close(h.back)
		h.back = nil
	}
	return back
}

func (h *health) failed(now time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.since.IsZero() {
		h.since = now
	}
}

// unknown notes that a login has shown nothing: where it was a probe, the next may be
// tried at once.
func (h *health) unknown(p *probe) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if p != nil && h.probe == p {
		h.probed = time.Time{}
	}
}
