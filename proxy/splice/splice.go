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

	"imapgate/internal/quiet"
)

// Reason says why a session ended. The set is closed: it is a metric's label.
type Reason string

// The reasons.
const (
	ClientClosed   Reason = "client_closed"   // the client hung up, or logged out and the backend followed
	BackendClosed  Reason = "backend_closed"  // the backend hung up first
	ClientLost     Reason = "client_error"    // reset, time-out or TLS fault on the client's side
	BackendLost    Reason = "backend_lost"    // the same on the backend's side
	Idle           Reason = "idle"            // no byte either way for Config.Idle
	ClientStalled  Reason = "client_stalled"  // the client read nothing for Config.Write
	BackendStalled Reason = "backend_stalled" // the backend read nothing for Config.Write
	Drained        Reason = "drained"         // the gateway is going away
	Expired        Reason = "token_expired"   // its time was over, whatever it did
)

// Config bounds the sessions of a Set.
type Config struct {
	Quiet      time.Duration        // a pump without bytes for this long parks
	Idle       time.Duration        // a session without bytes for this long ends
	HalfClosed time.Duration        // the same, once one side has hung up
	Write      time.Duration        // a write that takes longer ends the session
	Bytes      func(up, down int64) // told about relayed bytes, every second
	Parked     func(directions int) // told how many directions hold no goroutine
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
	Conn  net.Conn
	First []byte
	Pace  func(n int) time.Duration
}

// Set is all spliced sessions of a gateway, with the clock and, on Linux, the
// epoll set they share.
type Set struct {
	// Set once.
	cfg      Config
	idle     *quiet.Set // the sockets of parked pumps
	free     *quiet.Buffers
	stop     chan struct{}
	wg       sync.WaitGroup // the clock, the idle set and every pump
	tick     atomic.Uint32  // ticks since the start, the clock's coarse time
	parkings atomic.Uint64  // of pumps that had not parked before

	mu     sync.Mutex
	relays map[*Relay]struct{}  // Guarded by mu.
	until  map[*Relay]time.Time // Guarded by mu. When those of them end that have a time.
	pumps  map[*pump]struct{}   // Guarded by mu. Those with a goroutine.
}

// NewSet starts the clock. Close ends it.
func NewSet(cfg Config) (*Set, error) {
	idle, err := quiet.NewSet()
	if err != nil {
		return nil, err
	}
	s := &Set{
		cfg: cfg, idle: idle, free: quiet.NewBuffers(), stop: make(chan struct{}),
		relays: map[*Relay]struct{}{}, until: map[*Relay]time.Time{}, pumps: map[*pump]struct{}{},
	}
	s.wg.Add(1)
	go s.clock()
	s.wg.Go(idle.Run)
	return s, nil
}

// Len is the number of sessions.
func (s *Set) Len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.relays)
}

// all are the sessions there are now.
func (s *Set) all() []*Relay {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Keys(s.relays))
}

// EndAll ends every session, and returns when the sockets are closed.
func (s *Set) EndAll(why Reason) {
	var wg sync.WaitGroup
	for _, r := range s.all() {
		wg.Go(func() { r.End(why) })
	}
	wg.Wait()
}

// EndQuiet ends sessions until no more than keep are left: of those in which no byte has
// moved for Config.Quiet, the ones that have been silent for longest. It does not
// wait for sockets.
func (s *Set) EndQuiet(keep int, why Reason) {
	now := s.tick.Load()
	silent := make(map[*Relay]time.Duration)
	live := 0
	for _, r := range s.all() {
		if r.ending() {
			continue
		}
		live++
		if d := min(r.up.silence(now), r.down.silence(now)); d >= s.cfg.Quiet {
			silent[r] = d
		}
	}
	if live <= keep {
		return
	}
	longest := slices.SortedFunc(maps.Keys(silent), func(a, b *Relay) int { return cmp.Compare(silent[b], silent[a]) })
	for _, r := range longest[:min(live-keep, len(longest))] {
		s.wg.Go(func() { r.End(why) }) // as in expire
	}
}

// Close ends every session and waits for every goroutine.
func (s *Set) Close() {
	s.EndAll(Drained)
	close(s.stop)
	s.idle.Close()
	s.wg.Wait()
}

// Relay is one session. It may live without a goroutine.
type Relay struct {
	// Set once.
	set   *Set
	ended func(Result)
	up    pump // client to backend
	down  pump // backend to client

	mu      sync.Mutex
	running int    // Guarded by mu. Pumps with a goroutine.
	open    int    // Guarded by mu. Directions whose source has not hung up.
	over    bool   // Guarded by mu. The sockets are closed, or about to be.
	told    bool   // Guarded by mu. ended was called.
	result  Result // Guarded by mu.
}

// Start relays between the two sides until they are done, or until a time that
// is not zero, and then calls ended, once, with both closed. It returns at once;
// the sockets are the Relay's now.
func (s *Set) Start(client, upstream Side, until time.Time, ended func(Result)) *Relay {
	r := &Relay{set: s, ended: ended, open: 2}
	r.up = pump{relay: r, src: client.Conn, dst: upstream.Conn, first: kept(upstream.First), pace: client.Pace}
	r.down = pump{relay: r, src: upstream.Conn, dst: client.Conn, first: kept(client.First), pace: upstream.Pace}
	r.up.progress() // or the clock could find a session that has been silent since the Set began
	r.down.progress()
	s.mu.Lock()
	s.relays[r] = struct{}{}
	if !until.IsZero() {
		s.until[r] = until
	}
	s.mu.Unlock()
	r.up.Wake()
	r.down.Wake()
	return r
}

// kept is b without what else its array holds; nothing, mostly.
func kept(b []byte) []byte {
	if len(b) == 0 {
		return nil
	}
	return b
}

// End ends the session from outside, politely: TLS says goodbye.
func (r *Relay) End(why Reason) {
	if r.begin(why, nil) {
		_ = r.up.src.Close()
		_ = r.up.dst.Close()
		r.settle()
	}
}

// cut ends the session hard: no TLS goodbye, so that a peer that was in the
// middle of a literal can tell that it did not get all of it.
func (r *Relay) cut(why Reason, err error) {
	if r.begin(why, err) {
		_ = quiet.TCP(r.up.src).Close()
		_ = quiet.TCP(r.up.dst).Close()
		r.settle()
	}
}

// begin is where every end is decided, once.
func (r *Relay) begin(why Reason, err error) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.over {
		return false
	}
	r.over = true
	r.result.Reason, r.result.Err = why, err
	return true
}

// settle tells about the end when no pump runs any more; the last one to leave
// calls it again.
func (r *Relay) settle() {
	r.mu.Lock()
	done := r.over && r.running == 0 && !r.told
	r.told = r.told || done
	result := r.result
	r.mu.Unlock()
	if !done {
		return
	}
	r.set.idle.Forget(&r.up.waiter)
	r.set.idle.Forget(&r.down.waiter)
	r.set.mu.Lock()
	delete(r.set.relays, r)
	delete(r.set.until, r)
	r.set.mu.Unlock()
	r.report()
	result.Up, result.Down = r.up.bytes.Load(), r.down.bytes.Load()
	r.ended(result)
}

// report passes on the bytes relayed since it was last called.
func (r *Relay) report() {
	r.mu.Lock()
	up, down := r.up.unreported(), r.down.unreported()
	r.mu.Unlock()
	if r.set.cfg.Bytes != nil && (up > 0 || down > 0) {
		r.set.cfg.Bytes(up, down)
	}
}

// ending says whether the end has been decided.
func (r *Relay) ending() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.over
}

// note keeps the first reason for an end that is beginning.
func (r *Relay) note(why Reason, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.result.Reason == "" {
		r.result.Reason, r.result.Err = why, err
	}
}

// shut counts a direction that is done. The other one goes on: a client may
// half-close behind LOGOUT and still wait for the BYE.
func (r *Relay) shut() {
	r.mu.Lock()
	r.open--
	last, why, err := r.open == 0, r.result.Reason, r.result.Err
	r.mu.Unlock()
	if last {
		r.cut(why, err) // both have said goodbye already
	}
}

// lost ends the session on a fault of one side.
func (r *Relay) lost(conn net.Conn, err error) {
	why := BackendLost
	if conn == r.up.src {
		why = ClientLost
	}
	r.cut(why, err)
}
