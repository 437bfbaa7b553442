package splice

import (
	"runtime/debug"
	"time"

	"imapgate/internal/event"
	"imapgate/internal/parking"
)

// The clock's intervals. Quiet pumps are detected within a tick. Longer timeouts are
// checked, and bytes reported, every sweep.
const (
	tickInterval = 50 * time.Millisecond
	sweepTicks   = 20 // ticks: 1 s
)

func toTicks(d time.Duration) uint32 { return uint32((d + tickInterval - 1) / tickInterval) }

// runClock is the only timer of all sessions. It returns when the Set closes.
func (s *Set) runClock() {
	defer s.wg.Done()
	t := time.NewTicker(tickInterval)
	defer t.Stop()
	var burst parking.BurstDetector
	for {
		select {
		case <-s.stop:
			return
		case <-t.C:
		}
		now := s.ticks.Add(1)
		s.requestParks(now)
		if now%sweepTicks == 0 {
			s.sweepRelays(now)
			if burst.CheckOver(s.firstParks.Load(), s.Len()) {
				s.wg.Go(debug.FreeOSMemory) // takes as long as a garbage collection
			}
		}
	}
}

// requestParks asks pumps without recent progress to park.
func (s *Set) requestParks(now uint32) {
	if !parking.CanPark {
		return
	}
	var idle []*pump
	s.mu.Lock()
	for p := range s.pumps {
		if !p.writing.Load() && p.idleTime(now) >= s.cfg.ParkAfter {
			idle = append(idle, p)
		}
	}
	s.mu.Unlock()
	for _, p := range idle {
		p.requestPark()
	}
}

// sweepRelays reports bytes and ends the sessions whose deadline or timeout has passed.
func (s *Set) sweepRelays(now uint32) {
	for _, r := range s.expiredRelays(time.Now()) {
		s.wg.Go(func() { r.End(event.TokenExpired) }) // End may block on a full socket
	}
	for _, r := range s.listRelays() {
		r.reportBytes()
		r.checkTimeouts(now)
	}
	if s.cfg.OnParked != nil {
		s.cfg.OnParked(s.poller.Len())
	}
}

// expiredRelays returns the sessions whose deadline has passed.
func (s *Set) expiredRelays(now time.Time) (expired []*Relay) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for r, deadline := range s.deadlines {
		if !now.Before(deadline) {
			expired = append(expired, r)
		}
	}
	return expired
}

// backendGoneTimeout is how long a client may stay connected after its backend has closed.
// The client has received the close, and its commands get no answer.
const backendGoneTimeout = 5 * time.Second

// checkTimeouts ends the session if a write has stalled or the session is idle for too
// long.
func (r *Relay) checkTimeouts(now uint32) {
	cfg := &r.set.cfg
	for _, p := range [...]*pump{&r.up, &r.down} {
		// A pump that was asked to park and has not is in a write too.
		if (p.writing.Load() || p.state.Load() == stateParkRequested) && p.idleTime(now) >= cfg.WriteTimeout {
			reason := event.BackendStalled
			if p == &r.down {
				reason = event.ClientStalled
			}
			r.abort(reason, nil)
			return
		}
	}
	r.mu.Lock()
	limit, reason := cfg.IdleTimeout, event.Idle
	if r.openDirections == 1 {
		limit, reason = min(cfg.HalfClosedTimeout, cfg.IdleTimeout), r.result.Reason
		if reason == event.BackendClosed {
			limit = min(limit, backendGoneTimeout)
		}
	}
	r.mu.Unlock()
	if r.up.idleTime(now) >= limit && r.down.idleTime(now) >= limit {
		// End may block on a full socket; the clock must not.
		r.set.wg.Go(func() { r.End(reason) })
	}
}
