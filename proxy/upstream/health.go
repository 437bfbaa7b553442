package upstream

import (
	"sync"
	"time"
)

const (
	downAfter  = 30 * time.Second // of nothing but failures
	probeEvery = time.Second      // one login is let through to a backend that is down
)

// health decides whether a backend is worth a try. Only what is the backend's
// own fault counts; a wrong password is a sign of life.
type health struct {
	mu sync.Mutex

	// Guarded by mu.
	since  time.Time // of the first failure behind the last success; zero: none
	probed time.Time // when a login was last let through while down
}

// allow says whether a login may be tried now.
func (h *health) allow(now time.Time) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.isDown(now) {
		return true
	}
	if now.Sub(h.probed) < probeEvery {
		return false
	}
	h.probed = now
	return true
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
	return back
}

func (h *health) failed(now time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.since.IsZero() {
		h.since = now
	}
}
