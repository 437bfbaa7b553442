// Package relay holds the live sessions of a gateway: clients from their login to the end
// of their connection, and packages proxy/relay/splice and proxy/relay/mux relay them.
//
// The Registry finds sessions, and drains or aborts them. It has the one clock of both
// relays. A Session has one end: the relay reports it once, and Finish adds the bytes and
// calls the function that records it. The package knows neither logins nor routes.
package relay

import (
	"cmp"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"imapgate/internal/event"
	"imapgate/internal/identity"
	"imapgate/internal/meter"
)

// Relay carries the bytes or commands of a session.
type Relay interface {
	// End ends the session when its protocol permits. It does not block.
	End(event.Reason)
	// Abort ends the session, whatever it is doing. It does not block.
	Abort(event.Reason)
	// Usage returns what has been relayed. It takes no locks.
	Usage() Usage
}

// Reporter is a Relay that knows what its session is doing.
type Reporter interface {
	Relay
	// Status returns what the session is doing, as of the last time that it waited. It takes
	// no locks.
	Status() Status
}

// Usage is what a Relay has carried so far.
type Usage struct {
	Up, Down int64  // bytes from and to the client
	LastByte uint32 // tick of the last byte, either way
	Commands uint64 // commands of the client, as far as they were seen
	Spliced  bool   // commands are not seen, so only silence shows that none is in progress
}

// Status is what a session is doing, and what the loss of its backend connection would mean.
type Status struct {
	Activity event.Activity
	Survival event.Survival
	Obstacle event.Obstacle // if it would not survive; else ""
	Mailbox  string         // the selected mailbox as the client has named it; "" for none or unknown
}

// Result is how a session ended.
type Result struct {
	Reason   event.Reason
	Err      error  // of a connection; nil for a clean end
	Up, Down int64  // bytes from and to the client; set by Finish
	Commands uint64 // commands of the client, as far as they were seen; set by Finish
}

// CloseError ends a connection, before its login or relayed by mux, with a reason for the
// records and the text of a BYE for the client.
type CloseError struct {
	Reason event.Reason
	Bye    string // "" for none
	Err    error  // the cause, if it is an error
}

func (e *CloseError) Error() string {
	if e.Err != nil {
		return string(e.Reason) + ": " + e.Err.Error()
	}
	return string(e.Reason)
}

func (e *CloseError) Unwrap() error { return e.Err }

// Info identifies a session. Backend, Address and Login change when the session moves; the rest
// does not, also when the session is pinned.
type Info struct {
	ID        string
	User      identity.User
	Backend   string
	Address   string         // host:port at the backend, of the latest connection
	Login     string         // login name at the backend
	Mode      event.Mode     // the mode of its admission
	Client    netip.AddrPort // the client's address
	StartedAt time.Time
	ExpiresAt time.Time // when the session must end; zero: never
}

// Config has the settings of all sessions.
type Config struct {
	IdleTimeout time.Duration        // silence after which a session ends; 0: none
	OnBytes     func(up, down int64) // receives the relayed bytes every second; nil: not reported
}

// Registry holds the live sessions of a gateway.
type Registry struct {
	// Set once.
	Clock *Clock
	cfg   Config
	stop  chan struct{}  // closed by Close
	wakes chan struct{}  // wakes a sleeping clock; holds one element
	wg    sync.WaitGroup // the clock and its goroutines

	// Owned by runClock.
	lastSecond uint32 // the last tick that was a second after the one before it
	burst      burstDetector

	mu       sync.Mutex
	sessions index               // Guarded by mu.
	lastSeq  uint64              // Guarded by mu. Session.seq of the latest session.
	logins   meter.Meter         // Guarded by mu.
	active   map[Ticker]*Session // Guarded by mu. Tickers with a goroutine, and their sessions.
	parked   uint64              // Guarded by mu. Connections that have parked for the first time.
	settled  bool                // Guarded by mu. A check each second has found no activity and no parking.
	sleeping bool                // Guarded by mu. The clock waits for the next activity.
}

// NewRegistry returns a Registry with a running clock. Close stops it.
func NewRegistry(cfg Config) *Registry {
	r := &Registry{
		Clock: NewClock(), cfg: cfg, stop: make(chan struct{}), wakes: make(chan struct{}, 1),
		sessions: newIndex(), active: map[Ticker]*Session{}, settled: true,
	}
	r.wg.Add(1)
	go r.runClock()
	return r
}

// Close stops the clock. All sessions must have ended.
func (r *Registry) Close() {
	close(r.stop)
	r.wg.Wait()
}

// Owner is what the creator of a session knows about it.
type Owner interface {
	// OnEnd is called once, by Finish.
	OnEnd(Result)
}

// OwnerFunc is an Owner that is only a function.
type OwnerFunc func(Result)

// OnEnd implements Owner.
func (f OwnerFunc) OnEnd(r Result) { f(r) }

// Add registers a session, which has no relay yet.
func (r *Registry) Add(info Info, owner Owner) *Session {
	s := &Session{info: info, registry: r, owner: owner, idleTimeout: r.cfg.IdleTimeout, idleReason: event.Idle}
	s.place = place{info.Backend, info.Address}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.logins.Add(time.Now())
	r.lastSeq++
	s.seq = r.lastSeq
	r.sessions.add(s)
	return s
}

// AbortAll aborts all sessions.
func (r *Registry) AbortAll(reason event.Reason) {
	for _, s := range r.Sessions() {
		s.Abort(reason)
	}
}

// Session is a client after its login.
type Session struct {
	// Set once.
	registry *Registry
	owner    Owner
	seq      uint64 // order of Add; unique in the registry

	place place // Guarded by registry.mu. Where the index has the session.

	leaving atomic.Bool           // set by Move and Pause, cleared by ReportLeft
	pause   atomic.Pointer[pause] // nil: not paused

	mu          sync.Mutex
	info        Info          // Guarded by mu.
	relay       Relay         // Guarded by mu. nil before Start, after Detach, and at the end.
	idleTimeout time.Duration // Guarded by mu. 0: none.
	idleReason  event.Reason  // Guarded by mu.
	timer       *time.Timer   // Guarded by mu. It calls checkTimes; nil before Start and at the end.
	base        Usage         // Guarded by mu. Bytes of the relay before a Detach.
	reported    Usage         // Guarded by mu. Bytes passed to Config.OnBytes.
	endReason   event.Reason  // Guarded by mu. The reason of the first End or Abort; "": none.
	endText     string        // Guarded by mu. Of EndWith.
	ended       bool          // Guarded by mu. Finish was called.
}

// Owner returns the Owner that the session was added with.
func (s *Session) Owner() Owner { return s.owner }

// Info returns what identifies the session.
func (s *Session) Info() Info {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.info
}

// Start makes relay the session's. An end that was requested before applies to it. So does a
// move or a pause: a relay that cannot move ends.
func (s *Session) Start(relay Relay) {
	s.mu.Lock()
	s.relay = relay
	if _, ok := s.mover(); !ok && (s.IsLeaving() || s.Paused() != nil) {
		s.endReason = cmp.Or(s.endReason, event.Moved)
	}
	if s.timer == nil {
		next, _ := s.due()
		s.timer = time.AfterFunc(next, s.checkTimes)
	}
	reason := s.endReason
	s.mu.Unlock()
	if reason != "" {
		relay.End(reason)
	}
}

// Detach takes the session from its relay, for the Start of another one. The next relay
// counts the last unread bytes of the client again.
func (s *Session) Detach(unread int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.base = s.usage()
	s.base.Up -= int64(unread)
	s.relay = nil
}

// End asks the session to end as soon as its protocol permits.
func (s *Session) End(reason event.Reason) {
	if relay := s.requestEnd(reason); relay != nil {
		relay.End(reason)
	}
}

// EndWith is End with a text for the client, where the mode has a way to send it. The text is
// what follows "* BYE ". It returns false if the session was already asked to end.
func (s *Session) EndWith(reason event.Reason, text string) bool {
	s.mu.Lock()
	isFirst := s.endReason == ""
	if isFirst {
		s.endText = text
	}
	s.mu.Unlock()
	s.End(reason)
	return isFirst
}

// EndText returns the text of EndWith; "" for none.
func (s *Session) EndText() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.endText
}

// Abort ends the session, whatever it is doing.
func (s *Session) Abort(reason event.Reason) {
	if relay := s.requestEnd(reason); relay != nil {
		relay.Abort(reason)
	}
}

// requestEnd notes that the session must end, and returns its relay.
func (s *Session) requestEnd(reason event.Reason) Relay {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.endReason = cmp.Or(s.endReason, reason)
	return s.relay
}

// Finish records the end of the session. The relay calls it when both connections are
// closed. Further calls do nothing.
func (s *Session) Finish(r Result) {
	s.reportBytes()
	s.mu.Lock()
	u := s.usage()
	r.Up, r.Down, r.Commands = u.Up, u.Down, u.Commands
	s.base, s.relay, s.ended = u, nil, true
	s.leaving.Store(false)
	if s.timer != nil {
		s.timer.Stop()
		s.timer = nil
	}
	s.mu.Unlock()
	s.registry.mu.Lock()
	isLive := s.registry.sessions.remove(s)
	s.registry.mu.Unlock()
	if isLive {
		s.owner.OnEnd(r)
	}
}

// ShortenIdleTimeout makes the session end after d of silence, if it would not end before,
// and for reason.
func (s *Session) ShortenIdleTimeout(d time.Duration, reason event.Reason) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.idleTimeout == 0 || d < s.idleTimeout {
		s.idleTimeout = d
	}
	s.idleReason = reason
	if s.timer != nil {
		next, _ := s.due()
		s.timer.Reset(next)
	}
}

// usage returns what all relays of the session have carried. mu is held.
func (s *Session) usage() Usage {
	u := s.base
	if s.relay != nil {
		u = s.relay.Usage()
		u.Up, u.Down, u.Commands = u.Up+s.base.Up, u.Down+s.base.Down, u.Commands+s.base.Commands
	}
	return u
}

// reportBytes passes the bytes relayed since its last call to Config.OnBytes.
func (s *Session) reportBytes() {
	s.mu.Lock()
	u := s.usage()
	up, down := max(u.Up-s.reported.Up, 0), max(u.Down-s.reported.Down, 0) // a Detach uncounts bytes
	s.reported.Up, s.reported.Down = s.reported.Up+up, s.reported.Down+down
	s.mu.Unlock()
	if s.registry.cfg.OnBytes != nil && (up > 0 || down > 0) {
		s.registry.cfg.OnBytes(up, down)
	}
}

// activeTicks is how long after its last byte a spliced session counts as active.
const activeTicks = uint32(time.Second / Tick)

// Status returns what the session is doing. Of a spliced one only the bytes are seen.
func (s *Session) Status() Status {
	s.mu.Lock()
	relay, u, mode := s.relay, s.usage(), s.info.Mode
	s.mu.Unlock()
	if reporter, ok := relay.(Reporter); ok {
		return reporter.Status()
	}
	status := Status{Activity: event.Active, Survival: event.SurvivalNo, Obstacle: event.ObstacleSpliced}
	switch {
	case relay != nil && mode != event.ModeSplice:
		status.Activity, status.Obstacle = event.Pinned, event.ObstaclePinned
	case relay != nil && s.registry.Clock.Update()-u.LastByte > activeTicks:
		status.Activity = event.Resting
	}
	return status
}

// Usage returns what all relays of the session have carried, and the time since the last byte.
func (s *Session) Usage() (u Usage, silence time.Duration) {
	s.mu.Lock()
	u = s.usage()
	s.mu.Unlock()
	return u, max(Elapsed(s.registry.Clock.Update(), u.LastByte), 0)
}

// LoginsPerSecond returns how many sessions have begun per second in the last minute.
func (r *Registry) LoginsPerSecond() float64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.logins.PerSecond(time.Now())
}
