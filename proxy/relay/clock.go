package relay

import (
	"maps"
	"runtime/debug"
	"sync/atomic"
	"time"

	"imapgate/internal/event"
)

// Tick is the unit of the clock. Quiet and stalled connections are found within a tick or
// two.
const Tick = 50 * time.Millisecond

// Elapsed returns a lower bound of the time between two ticks. It is negative if since is
// not before now.
func Elapsed(now, since uint32) time.Duration { return time.Duration(int32(now-since)-1) * Tick }

// Clock is the coarse time of all sessions, for time stamps on the path of every byte. It
// is right to a tick while any Ticker is active. At rest it does not advance: what wakes a
// session first updates it, so that no time stamp is from before the rest.
type Clock struct {
	startedAt time.Time // Set once.
	now       atomic.Uint32
}

// NewClock returns a Clock at 0.
func NewClock() *Clock { return &Clock{startedAt: time.Now()} }

// Now returns the time in ticks, as of the last Update.
func (c *Clock) Now() uint32 { return c.now.Load() }

// Update sets the clock to the present and returns it. It never goes back.
func (c *Clock) Update() uint32 {
	present := uint32(time.Since(c.startedAt) / Tick)
	for {
		now := c.now.Load()
		if int32(present-now) <= 0 {
			return now
		}
		if c.now.CompareAndSwap(now, present) {
			return present
		}
	}
}

// Ticker is checked by the clock on every tick while it is active. OnTick must not block.
type Ticker interface{ OnTick(now uint32) }

// Activate lets the clock check t, which belongs to the session, until Deactivate. The
// clock is then up to date.
func (s *Session) Activate(t Ticker) {
	r := s.registry
	r.Clock.Update()
	r.mu.Lock()
	r.active[t] = s
	r.settled = false
	wake := r.sleeping
	r.sleeping = false
	r.mu.Unlock()
	if wake {
		r.wakes <- struct{}{}
	}
}

// Deactivate ends the checks of t.
func (s *Session) Deactivate(t Ticker) {
	s.registry.mu.Lock()
	delete(s.registry.active, t)
	s.registry.mu.Unlock()
	s.reportBytes() // the clock reports only those of active sessions
}

// CountParked counts connections that have parked for the first time. After a burst of
// them, memory is returned to the system.
func (s *Session) CountParked(n int) {
	s.registry.mu.Lock()
	defer s.registry.mu.Unlock()
	s.registry.parked += uint64(n)
}

// runClock checks the active Tickers. It sleeps while there is none, and returns when the
// Registry closes.
func (r *Registry) runClock() {
	defer r.wg.Done()
	ticker := time.NewTicker(Tick)
	defer ticker.Stop()
	for {
		if r.trySleep() {
			ticker.Stop()
			select {
			case <-r.stop:
				return
			case <-r.wakes:
				ticker.Reset(Tick)
			}
		}
		select {
		case <-r.stop:
			return
		case <-ticker.C:
		}
		r.tick()
	}
}

// trySleep reports whether the clock may sleep until the next activity.
func (r *Registry) trySleep() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sleeping = r.settled && len(r.active) == 0
	return r.sleeping
}

// tick checks the active Tickers. Every second, and once more before the clock sleeps, it
// also reports the bytes of their sessions and looks for the end of a burst.
func (r *Registry) tick() {
	now := r.Clock.Update()
	isSecond := now-r.lastSecond >= uint32(time.Second/Tick)
	r.mu.Lock()
	active, parked := maps.Clone(r.active), r.parked
	if isSecond {
		r.settled = len(active) == 0 && parked == r.burst.lastParkings // otherwise a burst may end in the next second
	}
	r.mu.Unlock()
	for t := range active {
		t.OnTick(now)
	}
	if !isSecond {
		return
	}
	r.lastSecond = now
	for _, s := range active {
		s.reportBytes()
	}
	if r.burst.isOver(parked, r.Len()) {
		r.wg.Go(debug.FreeOSMemory) // takes as long as a garbage collection
	}
}

// burstDetector detects the end of a burst of logins, when memory should be returned to the
// system. An idle session needs a fraction of the memory of its login. The garbage
// collector would keep the difference, because it waits for the heap to grow.
type burstDetector struct {
	lastEnd      uint64 // parkings at the end of the last burst
	lastParkings uint64 // parkings at the last check
}

const (
	minParkings   = 512 // make a collection worthwhile
	quietParkings = 50  // in a second, at most: no burst
)

// isOver reports whether a burst has just ended. It is called about once a second with the
// number of connections that have parked so far. A burst has ended when many have parked
// since the last one but few since the last call.
func (b *burstDetector) isOver(parkings uint64, sessions int) bool {
	recent, since := parkings-b.lastParkings, parkings-b.lastEnd
	b.lastParkings = parkings
	if since < max(minParkings, uint64(sessions/2)) || recent > quietParkings { // bounded by its type
		return false
	}
	b.lastEnd = parkings
	return true
}

// FinishTimeout bounds the outstanding commands of a session that must end, or whose client is
// gone.
const FinishTimeout = time.Minute

// maxCheckInterval bounds the time between two checks of an expiry, because the system's
// clock may be set.
const maxCheckInterval = time.Minute

// checkTimes ends the session if it has expired or is idle. Its timer calls it.
func (s *Session) checkTimes() {
	s.mu.Lock()
	if s.timer == nil { // it has ended
		s.mu.Unlock()
		return
	}
	next, reason := s.due()
	s.timer.Reset(next)
	expiresAt := s.info.ExpiresAt
	s.mu.Unlock()
	switch {
	case reason == event.TokenExpired && time.Since(expiresAt) >= FinishTimeout:
		s.Abort(reason)
	case reason != "":
		s.End(reason)
	}
}

// due returns the time until the next check, and why the session must end now; "" if it
// need not. mu is held.
func (s *Session) due() (next time.Duration, reason event.Reason) {
	next = time.Hour
	if s.idleTimeout > 0 && s.relay != nil {
		if next = s.idleTimeout - Elapsed(s.registry.Clock.Update(), s.usage().LastByte); next <= 0 {
			reason = s.idleReason
		}
	}
	if !s.info.ExpiresAt.IsZero() {
		left := time.Until(s.info.ExpiresAt)
		if left <= 0 {
			reason = event.TokenExpired
		}
		next = min(next, left, maxCheckInterval)
	}
	if reason != "" {
		next = time.Second // check that it has ended
	}
	return max(next, Tick), reason
}
