// Package splice relays the bytes of logged-in sessions, both ways, as they
// are: it reads no command, adds nothing and drops nothing.
//
// A direction in which bytes flow is a goroutine (a pump). One that has been
// quiet for a while gives its goroutine and its buffer up: on Linux its socket
// waits in an epoll set of ours, and what is left of an idle session is its two
// sockets, its TLS state and a Relay. Elsewhere the goroutine stays, without a
// buffer of note.
//
// Deadlines are the clock's: it looks at all pumps every tick, asks quiet ones
// to park, and ends sessions that are idle or stuck. So the hot path sets no
// deadline. The package does not know who the user is; what a session's end
// means is told once, to the func given to Start.
package splice

import (
	"cmp"
	"maps"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"imapgate/internal/parking"
)

// Reason says why a session ended. The set is closed: it is a metric's label.
type Reason string

// The reasons.
const (
	ClientClosed   Reason = "client_closed"   // the client hung up, or logged out and the backend followed
	BackendClosed  Reason = "backend_closed"  // the backend hung up first
	ClientLost     Reason = "client_error"    // reset, time-out or TLS fault on the client's side
	BackendLost    Reason = "backend_lost"    // the same on the backend's side
	Idle           Reason = "idle"            // no byte either way for Config.IdleTimeout
	ClientStalled  Reason = "client_stalled"  // the client read nothing for Config.WriteTimeout
	BackendStalled Reason = "backend_stalled" // the backend read nothing for Config.WriteTimeout
	Drained        Reason = "drained"         // the gateway is going away
	TokenExpired   Reason = "token_expired"   // its time was over, whatever it did
)

// Config bounds the sessions of a Set.
type Config struct {
	ParkAfter         time.Duration        // a pump without bytes for this long parks
	IdleTimeout       time.Duration        // a session without bytes for this long ends
	HalfClosedTimeout time.Duration        // the same, once one side has hung up
	WriteTimeout      time.Duration        // a write that takes longer ends the session
	OnBytes           func(up, down int64) // told about relayed bytes, every second
	OnParked          func(directions int) // told how many directions hold no goroutine
}

// Result is how a session ended.
type Result struct {
	Reason   Reason
	Err      error // the socket's or TLS's, when it was not a clean end
	Up, Down int64 // bytes from the client, from the backend
}

// Side is one end of a session. First is what was already read from the other
// side and goes to this one before anything else. Pace, if not nil, is told how
// many bytes have just come from this side, and says how long to leave the next
// ones unread.
type Side struct {
	Conn     net.Conn
	Buffered []byte
	Throttle func(n int) time.Duration
}

// Set is all spliced sessions of a gateway, with the clock and, on Linux, the
// epoll set they share.
type Set struct {
	// Set once.
	cfg        Config
	poller     *parking.Poller // the sockets of parked pumps
	buffers    *parking.BufferPool
	stop       chan struct{}
	wg         sync.WaitGroup // the clock, the idle set and every pump
	ticks      atomic.Uint32  // ticks since the start, the clock's coarse time
	firstParks atomic.Uint64  // of pumps that had not parked before

	mu        sync.Mutex
	relays    map[*Relay]struct{}  // Guarded by mu.
	deadlines map[*Relay]time.Time // Guarded by mu. When those of them end that have a time.
	pumps     map[*pump]struct{}   // Guarded by mu. Those with a goroutine.
}

// NewSet starts the clock. Close ends it.
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

// Len is the number of sessions.
func (s *Set) Len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.relays)
}

// listRelays are the sessions there are now.
func (s *Set) listRelays() []*Relay {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Keys(s.relays))
}

// EndAll ends every session, and returns when the sockets are closed.
func (s *Set) EndAll(reason Reason) {
	var wg sync.WaitGroup
	for _, r := range s.listRelays() {
		wg.Go(func() { r.End(reason) })
	}
	wg.Wait()
}

// EndIdle ends sessions until no more than keep are left: of those in which no byte has
// moved for Config.ParkAfter, the ones that have been silent for longest. It does not
// wait for sockets.
func (s *Set) EndIdle(keep int, reason Reason) {
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
		s.wg.Go(func() { r.End(reason) }) // as in expire
	}
}

// Close ends every session and waits for every goroutine.
func (s *Set) Close() {
	s.EndAll(Drained)
	close(s.stop)
	s.poller.Close()
	s.wg.Wait()
}

// Relay is one session. It may live without a goroutine.
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
	endReported    bool   // Guarded by mu. ended was called.
	result         Result // Guarded by mu.
}

// Start relays between the two sides until they are done, or until a time that
// is not zero, and then calls ended, once, with both closed. It returns at once;
// the sockets are the Relay's now.
func (s *Set) Start(client, upstream Side, deadline time.Time, onEnd func(Result)) *Relay {
	r := &Relay{set: s, onEnd: onEnd, openDirections: 2}
	r.up = pump{relay: r, src: client.Conn, dst: upstream.Conn, prefix: nilIfEmpty(upstream.Buffered), throttle: client.Throttle}
	r.down = pump{relay: r, src: upstream.Conn, dst: client.Conn, prefix: nilIfEmpty(client.Buffered), throttle: upstream.Throttle}
	r.up.markProgress() // or the clock could find a session that has been silent since the Set began
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

// nilIfEmpty is b without what else its array holds; nothing, mostly.
func nilIfEmpty(b []byte) []byte {
	if len(b) == 0 {
		return nil
	}
	return b
}

// End ends the session from outside, politely: TLS says goodbye.
func (r *Relay) End(reason Reason) {
	if r.beginEnd(reason, nil) {
		_ = r.up.src.Close()
		_ = r.up.dst.Close()
		r.finish()
	}
}

// abort ends the session hard: no TLS goodbye, so that a peer that was in the
// middle of a literal can tell that it did not get all of it.
func (r *Relay) abort(reason Reason, err error) {
	if r.beginEnd(reason, err) {
		_ = parking.TCP(r.up.src).Close()
		_ = parking.TCP(r.up.dst).Close()
		r.finish()
	}
}

// beginEnd is where every end is decided, once.
func (r *Relay) beginEnd(reason Reason, err error) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return false
	}
	r.closed = true
	r.result.Reason, r.result.Err = reason, err
	return true
}

// finish tells about the end when no pump runs any more; the last one to leave
// calls it again.
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

// reportBytes passes on the bytes relayed since it was last called.
func (r *Relay) reportBytes() {
	r.mu.Lock()
	up, down := r.up.takeUnreported(), r.down.takeUnreported()
	r.mu.Unlock()
	if r.set.cfg.OnBytes != nil && (up > 0 || down > 0) {
		r.set.cfg.OnBytes(up, down)
	}
}

// isClosed says whether the end has been decided.
func (r *Relay) isClosed() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.closed
}

// setReason keeps the first reason for an end that is beginning.
func (r *Relay) setReason(reason Reason, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.result.Reason == "" {
		r.result.Reason, r.result.Err = reason, err
	}
}

// closeDirection counts a direction that is done. The other one goes on: a client may
// half-close behind LOGOUT and still wait for the BYE.
func (r *Relay) closeDirection() {
	r.mu.Lock()
	r.openDirections--
	last, reason, err := r.openDirections == 0, r.result.Reason, r.result.Err
	r.mu.Unlock()
	if last {
		r.abort(reason, err) // both have said goodbye already
	}
}

// abortLost ends the session on a fault of one side.
func (r *Relay) abortLost(conn net.Conn, err error) {
	reason := BackendLost
	if conn == r.up.src {
		reason = ClientLost
	}
	r.abort(reason, err)
}
