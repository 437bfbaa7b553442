// Package splice relays the bytes of logged-in sessions in both directions unchanged. It
// parses no command.
//
// A direction in which bytes flow has a goroutine (a pump). After a time without bytes it
// gives up its goroutine and buffer. On Linux its socket then waits in an epoll set, and an
// idle session consists of two sockets, TLS state and a Relay. On other systems the
// goroutine stays, with almost no buffer.
//
// The Set's clock enforces all timeouts. Every tick it checks all pumps, asks quiet ones to
// park and ends idle or stalled sessions, so that the relay itself sets no deadlines. The
// package does not know the user. It reports the end of a session once, to the function
// passed to Start.
package splice

import (
	"cmp"
	"maps"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"imapgate/internal/event"
	"imapgate/internal/parking"
)

// Config bounds the sessions of a Set.
type Config struct {
	ParkAfter         time.Duration        // a pump without bytes for this long parks
	IdleTimeout       time.Duration        // a session without bytes for this long ends
	HalfClosedTimeout time.Duration        // the same after one side has closed
	WriteTimeout      time.Duration        // a write that takes longer ends the session
	OnBytes           func(up, down int64) // receives the relayed bytes every second
	OnParked          func(directions int) // receives the number of parked directions every second
}

// Result is how a session ended.
type Result struct {
	Reason   event.Reason
	Err      error // of the socket or TLS; nil for a clean end
	Up, Down int64 // bytes from the client, from the backend
}

// Side is one end of a session. Buffered is what was already read from the other side; it
// is sent to this one first. Throttle, if not nil, receives the number of bytes just read
// from this side and returns how long to pause reading from it.
type Side struct {
	Conn     net.Conn
	Buffered []byte
	Throttle func(n int) time.Duration
}

// Set holds all spliced sessions of a gateway, and the clock and poller they share.
type Set struct {
	// Set once.
	cfg        Config
	poller     *parking.Poller // sockets of parked pumps
	buffers    *parking.BufferPool
	stop       chan struct{}
	wg         sync.WaitGroup // the clock, the poller and every pump
	ticks      atomic.Uint32  // ticks since the start, as a coarse clock
	firstParks atomic.Uint64  // pumps that have parked at least once

	mu        sync.Mutex
	relays    map[*Relay]struct{}  // Guarded by mu.
	deadlines map[*Relay]time.Time // Guarded by mu. Only of relays with a deadline.
	pumps     map[*pump]struct{}   // Guarded by mu. Only pumps with a goroutine.
}

// NewSet returns a Set with a running clock. Close stops it.
func NewSet(cfg Config) (*Set, error) {
	poller, err := parking.NewPoller()
	if err != nil {
		return nil, err
	}
	s := &Set{
		cfg: cfg, poller: poller, buffers: parking.NewBufferPool(), stop: make(chan struct{}),
		relays: map[*Relay]struct{}{}, deadlines: map[*Relay]time.Time{}, pumps: map[*pump]struct{}{},
	}
	s.wg.Add(1)
	go s.runClock()
	s.wg.Go(poller.Run)
	return s, nil
}

// Len returns the number of sessions.
func (s *Set) Len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.relays)
}

// listRelays returns the current sessions.
func (s *Set) listRelays() []*Relay {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Keys(s.relays))
}

// EndAll ends every session, and returns when the sockets are closed.
func (s *Set) EndAll(reason event.Reason) {
	var wg sync.WaitGroup
	for _, r := range s.listRelays() {
		wg.Go(func() { r.End(reason) })
	}
	wg.Wait()
}

// EndIdle ends idle sessions until at most keep sessions are left, the longest idle first.
// A session is idle after Config.ParkAfter without a byte. EndIdle does not wait for
// sockets.
func (s *Set) EndIdle(keep int, reason event.Reason) {
	now := s.ticks.Load()
	idle := make(map[*Relay]time.Duration)
	open := 0
	for _, r := range s.listRelays() {
		if r.isClosed() {
			continue
		}
		open++
		if d := min(r.up.idleTime(now), r.down.idleTime(now)); d >= s.cfg.ParkAfter {
			idle[r] = d
		}
	}
	if open <= keep {
		return
	}
	longest := slices.SortedFunc(maps.Keys(idle), func(a, b *Relay) int { return cmp.Compare(idle[b], idle[a]) })
	for _, r := range longest[:min(open-keep, len(longest))] {
		s.wg.Go(func() { r.End(reason) }) // End may block on a full socket
	}
}

// Close ends every session and waits for every goroutine.
func (s *Set) Close() {
	s.EndAll(event.Drained)
	close(s.stop)
	s.poller.Close()
	s.wg.Wait()
}

// Relay is one session. It may exist without a goroutine.
type Relay struct {
	// Set once.
	set   *Set
	onEnd func(Result)
	up    pump // client to backend
	down  pump // backend to client

	mu             sync.Mutex
	runningPumps   int    // Guarded by mu. Pumps with a goroutine.
	openDirections int    // Guarded by mu. Directions whose source has not hung up.
	closed         bool   // Guarded by mu. The sockets are closed, or about to be.
	endReported    bool   // Guarded by mu. onEnd was called.
	result         Result // Guarded by mu.
}

// Start relays between the two sides until both directions end or the deadline, if not
// zero, passes. It returns at once and owns the sockets from then on. onEnd is called once,
// after both are closed.
func (s *Set) Start(client, upstream Side, deadline time.Time, onEnd func(Result)) *Relay {
	r := &Relay{set: s, onEnd: onEnd, openDirections: 2}
	r.up = pump{relay: r, src: client.Conn, dst: upstream.Conn, prefix: nilIfEmpty(upstream.Buffered), throttle: client.Throttle}
	r.down = pump{relay: r, src: upstream.Conn, dst: client.Conn, prefix: nilIfEmpty(client.Buffered), throttle: upstream.Throttle}
	r.up.markProgress() // else the clock would see a session silent since the Set started
	r.down.markProgress()
	s.mu.Lock()
	s.relays[r] = struct{}{}
	if !deadline.IsZero() {
		s.deadlines[r] = deadline
	}
	s.mu.Unlock()
	r.up.Wake()
	r.down.Wake()
	return r
}

// nilIfEmpty returns nil for an empty slice, to free its array.
func nilIfEmpty(b []byte) []byte {
	if len(b) == 0 {
		return nil
	}
	return b
}

// End closes the session cleanly, with a TLS close_notify.
func (r *Relay) End(reason event.Reason) {
	if r.beginEnd(reason, nil) {
		_ = r.up.src.Close()
		_ = r.up.dst.Close()
		r.finish()
	}
}

// abort closes the session without a TLS close_notify. A peer in the middle of a literal
// can then detect that it is incomplete.
func (r *Relay) abort(reason event.Reason, err error) {
	if r.beginEnd(reason, err) {
		_ = parking.TCP(r.up.src).Close()
		_ = parking.TCP(r.up.dst).Close()
		r.finish()
	}
}

// beginEnd decides the end of the session. It returns true once.
func (r *Relay) beginEnd(reason event.Reason, err error) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return false
	}
	r.closed = true
	r.result.Reason, r.result.Err = reason, err
	return true
}

// finish reports the end of the session after all pumps have stopped. Each pump that stops
// calls it.
func (r *Relay) finish() {
	r.mu.Lock()
	done := r.closed && r.runningPumps == 0 && !r.endReported
	r.endReported = r.endReported || done
	result := r.result
	r.mu.Unlock()
	if !done {
		return
	}
	r.set.poller.Disarm(&r.up.waiter)
	r.set.poller.Disarm(&r.down.waiter)
	r.set.mu.Lock()
	delete(r.set.relays, r)
	delete(r.set.deadlines, r)
	r.set.mu.Unlock()
	r.reportBytes()
	result.Up, result.Down = r.up.copiedBytes.Load(), r.down.copiedBytes.Load()
	r.onEnd(result)
}

// reportBytes reports the bytes relayed since its last call.
func (r *Relay) reportBytes() {
	r.mu.Lock()
	up, down := r.up.takeUnreported(), r.down.takeUnreported()
	r.mu.Unlock()
	if r.set.cfg.OnBytes != nil && (up > 0 || down > 0) {
		r.set.cfg.OnBytes(up, down)
	}
}

// isClosed reports whether the end has been decided.
func (r *Relay) isClosed() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.closed
}

// setReason sets the reason of the coming end unless one is set.
func (r *Relay) setReason(reason event.Reason, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.result.Reason == "" {
		r.result.Reason, r.result.Err = reason, err
	}
}

// closeDirection counts a direction that has ended. The other one continues: a client may
// half-close after LOGOUT and still wait for the BYE.
func (r *Relay) closeDirection() {
	r.mu.Lock()
	r.openDirections--
	last, reason, err := r.openDirections == 0, r.result.Reason, r.result.Err
	r.mu.Unlock()
	if last {
		r.abort(reason, err) // both have already sent close_notify or FIN
	}
}

// abortLost aborts the session after an error on one side.
func (r *Relay) abortLost(conn net.Conn, err error) {
	reason := event.BackendLost
	if conn == r.up.src {
		reason = event.ClientError
	}
	r.abort(reason, err)
}
