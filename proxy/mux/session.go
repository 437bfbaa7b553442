package mux

import (
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"imapgate/internal/audit"
	"imapgate/internal/imap"
	"imapgate/internal/metrics"
	"imapgate/proxy/mux/command"
	"imapgate/proxy/mux/lease"
	"imapgate/proxy/mux/pool"
	"imapgate/proxy/mux/wire"
)

// Client is a client that has logged in.
type Client struct {
	Conn  net.Conn
	First []byte // what was already read from it
	Who   *audit.Client
	Mode  Mode
	Caps  imap.Caps // as Offered
	// Routed is true when the account's login name is the route's, and so has to be
	// again whenever the session takes another connection.
	Routed bool

	Budget Budget    // nil: no bound
	Until  time.Time // the session ends then, also when it is pinned; zero: whenever it likes
}

// session is one client from its login to its end. It has a goroutine while
// something happens, and is data otherwise.
type session struct {
	// Set once.
	hub     *Hub
	backend *backend
	account *pool.Account
	resumes bool // its mode is Resume
	routed  bool // Client.Routed
	who     *audit.Client
	offered imap.Caps // as the client is told
	ended   func(Result)
	client  wire.Wire

	// Owned by run. nil while there is no goroutine and nothing is outstanding.
	*work

	// Owned by run: the lease.
	up         *lease.Conn   // nil while there is none
	since      time.Duration // age of the hub when it was got, or lost
	attached   bool          // it has box selected, and says of it what the client sees
	plus       bool          // a continuation request is due
	cutShort   bool          // it has the beginning of a command, not yet its end
	declined   bool          // it has answered a command whose literal it was not sent, and nothing since
	doubtful   bool          // what it says may be the client's doing
	before     bool          // it had a mailbox selected before the SELECT under way
	answering  verdict       // what becomes of the response that is being read
	lostBefore bool          // the last one was lost, not given up
	blamed     bool          // a promise that was broken to it has counted

	// Owned by run: the client.
	partial bool   // it has the beginning of a response, not yet its end
	apart   bool   // what it says of the command in hand goes to no backend
	rested  bool   // it has been quiet
	bad     uint8  // commands in a row that were none, at most maxBad and one
	tries   uint8  // losses since something was last answered, at most maxTries and one
	spoken  uint32 // commands so far; 32 bits fill a gap, 64 would make each session larger
	enabled lease.Enabled
	box     *mailbox // nil: none is selected
	idling  *idling  // nil: it is not in IDLE
	pacer   *pacer   // nil: nothing is bounded
	pinning audit.Why
	state   string // as which the session is counted

	upstream atomic.Pointer[wire.Wire]    // up's, for the clock
	order    atomic.Pointer[audit.Reason] // why the session is to end
	severed  atomic.Bool                  // it has been cut off
	alarm    atomic.Uint32                // tick at which to wake, 0: none
	readable atomic.Uint32                // what woke the session: bits

	mu      sync.Mutex
	running bool // Guarded by mu. There is a goroutine.
	woken   bool // Guarded by mu. … which has not heard of it.
	over    bool // Guarded by mu.

	reportedUp, reportedDown int64 // Guarded by mu.
}

// work is the command in hand, what is outstanding, and answers: what a session
// needs only while it does something.
type work struct {
	sent      outstanding // on the lease
	request   request
	inHand    command.Expunge // its class, until it is sent
	mapped    string          // the UIDs that its numbers became
	collected []byte          // a command with literals
	overheard []byte          // what goes behind an answer that waits; nil: on at once
	out       []byte          // answers of our own
	journal   journal         // commands that are to be put on record
	doubted   time.Duration   // age of the hub when a silence was last asked about
}

// What is readable.
const (
	clientReadable uint32 = 1 << iota
	upReadable
)

// Start relays c's session at the backend until it is over and then calls ended,
// once. The connection and the account are the session's now.
func (h *Hub) Start(c Client, backend string, account *pool.Account, ended func(Result)) {
	s := &session{
		hub: h, backend: h.backends[backend], account: account, resumes: c.Mode == Resume, routed: c.Routed,
		who: c.Who, offered: c.Caps, ended: ended,
	}
	if c.Budget != nil {
		s.pacer = &pacer{Budget: c.Budget}
	}
	s.client.Open(c.Conn, c.First, imap.Commands, &h.shared)
	s.move(metrics.Unselected)
	h.mu.Lock()
	h.wg.Add(1) // until remove, so that no goroutine begins when Close has seen the last
	h.sessions[s] = struct{}{}
	s.backend.live.Add(1)
	if !c.Until.IsZero() {
		h.until[s] = c.Until
	}
	h.mu.Unlock()
	s.wake()
}

// A session, as each of its sockets wakes it.
type (
	byClient session
	byUp     session
)

// Wake implements quiet.Waker.
func (s *byClient) Wake() { (*session)(s).stirred(clientReadable) }

// Wake implements quiet.Waker.
func (s *byUp) Wake() { (*session)(s).stirred(upReadable) }

// stirred wakes the session for what is readable.
func (s *session) stirred(bit uint32) {
	s.readable.Or(bit)
	s.wake()
}

// wake gives the session a goroutine, or tells the one there is.
func (s *session) wake() {
	s.mu.Lock()
	if s.running || s.over {
		s.woken = true
		s.mu.Unlock()
		return
	}
	s.running = true
	s.mu.Unlock()
	h := s.hub
	h.mu.Lock()
	h.awake[s] = struct{}{}
	h.mu.Unlock()
	h.wg.Add(1)
	go s.run()
}

// run is the goroutine of a session. It ends when nothing has been said for a
// while, and when the session is over or handed on.
func (s *session) run() {
	defer s.hub.wg.Done()
	defer s.recoverFault()
	if s.work == nil {
		s.work = new(work)
	}
	err := s.followed(s.readWhatWoke())
	if err == nil {
		err = s.serve()
	}
	if errors.Is(err, errAsleep) || errors.Is(err, errHandedOn) {
		return // s is somebody else's already
	}
	s.end(err)
}

// serve is a session turn by turn. A lost upstream is survived where it can be.
func (s *session) serve() error {
	for {
		if err := s.followed(s.healed(s.turn())); err != nil {
			return err
		}
	}
}

// turn passes on what the backend has said, does what the client has asked for,
// asks what we want to know ourselves, and waits.
func (s *session) turn() error {
	if s.up != nil {
		if err := s.relay(); err != nil {
			return err
		}
	}
	if why := s.order.Load(); why != nil && (s.sent.empty() || *why == audit.Idle) {
		return orderedEnd(*why)
	}
	if err := s.commands(); err != nil {
		return err
	}
	s.pace()
	if err := s.gap(); err != nil {
		return err
	}
	return s.await()
}

// await waits for whoever is expected to speak: the backend while it owes an
// answer, the client otherwise. When it has been quiet for a while, both are
// waited for, without a goroutine.
func (s *session) await() error {
	if s.idling != nil {
		return s.rest() // nobody is expected
	}
	if s.up == nil || s.sent.empty() {
		err := s.client.Wait()
		if errors.Is(err, wire.ErrQuiet) {
			return s.rest()
		}
		return s.clientLost(err)
	}
	err := s.up.Wait()
	if !errors.Is(err, wire.ErrQuiet) {
		return s.upstreamLost(err)
	}
	if err := s.doubt(); err != nil {
		return err
	}
	s.doubtLater()
	return s.rest()
}

// rest gives up the goroutine: errAsleep. It returns nil when there is something
// to do after all.
func (s *session) rest() error {
	if s.up != nil { // what TLS holds, no kernel will tell us of
		if held, err := s.up.Held(); held || err != nil {
			return s.upstreamLost(err)
		}
	}
	listens := !s.sent.full() // or the client has said enough for now
	if listens {
		if held, err := s.client.Held(); held || err != nil {
			return s.clientLost(err)
		}
	}
	s.relax()
	s.readable.Store(0)
	set := s.hub.asleep
	var armed error
	if listens {
		armed = set.Wait(&s.client.Sleeper, s.client.Conn(), (*byClient)(s))
	}
	if armed == nil && s.up != nil {
		armed = set.Wait(&s.up.Sleeper, s.up.Conn(), (*byUp)(s))
	}
	if armed != nil { // closed, or the kernel has no room: wait here
		if err := s.client.Wait(); !errors.Is(err, wire.ErrQuiet) {
			return s.clientLost(err)
		}
		return nil
	}
	h := s.hub
	h.mu.Lock()
	delete(h.awake, s)
	h.mu.Unlock()
	s.mu.Lock()
	again := s.woken
	s.woken = false
	s.running = again
	if !again && s.sent.empty() {
		s.work = nil
	}
	s.mu.Unlock()
	if !again {
		return errAsleep
	}
	h.mu.Lock()
	h.awake[s] = struct{}{}
	h.mu.Unlock()
	return s.readWhatWoke()
}

// readWhatWoke reads from those that have something to say.
func (s *session) readWhatWoke() error {
	bits := s.readable.Swap(0)
	if bits&upReadable != 0 && s.up != nil {
		if err := s.healed(s.hear()); err != nil {
			return err
		}
	}
	if bits&clientReadable != 0 {
		if err := s.client.Wait(); err != nil && !errors.Is(err, wire.ErrQuiet) {
			return s.clientLost(err)
		}
	}
	return nil
}

// relax gives back what a session at rest does not need.
func (s *session) relax() {
	s.client.Relax()
	if s.up != nil {
		s.up.Relax()
	}
	s.collected, s.out = nil, nil
	if !s.rested { // TLS and the login leave most behind at first
		s.rested = true
		s.hub.rested.Add(2)
	}
	s.sent.relax()
	if s.box != nil {
		s.box.view.Compact()
	}
}

// take makes up the session's lease.
func (s *session) take(up *lease.Conn) {
	s.up, s.since = up, s.hub.age()
	s.upstream.Store(&up.Wire)
	if s.severed.Load() { // while it was on its way
		up.Cut()
	}
}

// give parts the session from its lease, for whoever the caller gives it to.
func (s *session) give() *lease.Conn {
	up := s.up
	s.up, s.attached, s.doubtful, s.declined = nil, false, false, false
	s.since = s.hub.age()
	s.upstream.Store(nil)
	s.hub.asleep.Forget(&up.Sleeper)
	s.show()
	return up
}

// leave asks the session to end at the next boundary between commands.
func (s *session) leave(why audit.Reason) {
	s.order.CompareAndSwap(nil, &why)
	s.client.Interrupt()
	s.wake()
}

// cut ends the session now.
func (s *session) cut(why audit.Reason) {
	s.order.Store(&why)
	s.severed.Store(true)
	s.client.Cut()
	if up := s.upstream.Load(); up != nil {
		up.Cut()
	}
	s.wake()
}

// look is the clock's look at a session with a goroutine.
func (s *session) look(patience, limit uint32) {
	s.client.Look(patience, limit)
	if up := s.upstream.Load(); up != nil {
		up.Look(patience, limit)
	}
}

// sweep is the clock's look at every session, once a second.
func (s *session) sweep(now uint32) {
	s.report()
	last := s.client.Since()
	if up := s.upstream.Load(); up != nil {
		last = max(last, up.Since())
	}
	if now-last > ticks(s.hub.cfg.Idle) && now > last {
		s.leave(audit.Idle)
	}
	if at := s.alarm.Load(); at != 0 && now >= at && s.alarm.CompareAndSwap(at, 0) {
		s.wake()
	}
}

// wakeIn sets the alarm, to the second, unless it rings before.
func (s *session) wakeIn(d time.Duration) {
	at := s.hub.shared.Clock.Now() + max(ticks(d), 1)
	if set := s.alarm.Load(); set == 0 || at < set {
		s.alarm.Store(at)
	}
}

// report passes on the bytes relayed since it was last called. The clock calls
// it, and the end, when the clock does so no more.
func (s *session) report() {
	in, out := s.client.Counts()
	s.mu.Lock()
	up, down := in-s.reportedUp, out-s.reportedDown
	s.reportedUp, s.reportedDown = in, out
	s.mu.Unlock()
	if s.hub.cfg.Bytes != nil && (up > 0 || down > 0) {
		s.hub.cfg.Bytes(up, down)
	}
}

// show tells the metrics which state the session is in.
func (s *session) show() {
	switch {
	case s.idling != nil:
		s.move(metrics.Idle)
	case s.box == nil:
		s.move(metrics.Unselected)
	case s.attached:
		s.move(metrics.Attached)
	default:
		s.move(metrics.Detached)
	}
}

func (s *session) move(state string) {
	if state != s.state {
		s.hub.rooms.Metrics.Mux.Moved(s.state, state)
		s.state = state
	}
}
