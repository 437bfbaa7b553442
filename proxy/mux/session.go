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
	Conn        net.Conn
	Buffered    []byte // what was already read from it
	AuditClient *audit.Client
	Mode        Mode
	Caps        imap.Caps // as Offered
	// LoginFromRoute is true when the account's login name is the route's, and so has to be
	// again whenever the session takes another connection.
	LoginFromRoute bool

	Quota     Quota     // nil: no bound
	ExpiresAt time.Time // the session ends then, also when it is pinned; zero: whenever it likes
}

// session is one client from its login to its end. It has a goroutine while
// something happens, and is data otherwise.
type session struct {
	// Set once.
	hub            *Hub
	backend        *backend
	account        *pool.Account
	canResume      bool // its mode is Resume
	loginFromRoute bool // Client.LoginFromRoute
	auditClient    *audit.Client
	offeredCaps    imap.Caps // as the client is told
	onEnd          func(Result)
	client         wire.Conn

	// Owned by run. nil while there is no goroutine and nothing is outstanding.
	*commandState

	// Owned by run: the lease.
	upstream             *lease.Conn   // nil while there is none
	upstreamSince        time.Duration // age of the hub when it was got, or lost
	attached             bool          // it has box selected, and says of it what the client sees
	awaitingContinuation bool          // a continuation request is due
	commandPartial       bool          // it has the beginning of a command, not yet its end
	literalDeclined      bool          // it has answered a command whose literal it was not sent, and nothing since
	tainted              bool          // what it says may be the client's doing
	hadMailbox           bool          // it had a mailbox selected before the SELECT under way
	disposition          disposition   // what becomes of the response that is being read
	previousLost         bool          // the last one was lost, not given up
	violationCounted     bool          // a promise that was broken to it has counted

	// Owned by run: the client.
	responsePartial bool   // it has the beginning of a response, not yet its end
	discardingInput bool   // what it says of the command in hand goes to no backend
	wasParked       bool   // it has been quiet
	badCommands     uint8  // commands in a row that were none, at most maxBadCommands and one
	retries         uint8  // losses since something was last answered, at most maxRetries and one
	commandCount    uint32 // commands so far; 32 bits fill a gap, 64 would make each session larger
	enabled         lease.Extensions
	mailbox         *mailbox   // nil: none is selected
	idleState       *idleState // nil: it is not in IDLE
	throttle        *throttle  // nil: nothing is bounded
	pinReason       audit.Why
	metricState     string // as which the session is counted

	upstreamWire atomic.Pointer[wire.Conn]    // up's, for the clock
	stopReason   atomic.Pointer[audit.Reason] // why the session is to end
	aborted      atomic.Bool                  // it has been cut off
	wakeAt       atomic.Uint32                // tick at which to wake, 0: none
	readable     atomic.Uint32                // what woke the session: bits

	mu          sync.Mutex
	running     bool // Guarded by mu. There is a goroutine.
	wakePending bool // Guarded by mu. … which has not heard of it.
	isEnded     bool // Guarded by mu.

	reportedIn, reportedOut int64 // Guarded by mu.
}

// commandState is the command in hand, what is outstanding, and answers: what a session
// needs only while it does something.
type commandState struct {
	outstanding      outstandingQueue // on the lease
	request          request
	expungePolicy    command.ExpungePolicy // its class, until it is sent
	uidSet           string                // the UIDs that its numbers became
	commandBuf       []byte                // a command with literals
	deferred         []byte                // what goes behind an answer that waits; nil: on at once
	outBuf           []byte                // answers of our own
	commandLog       commandLog            // commands that are to be put on record
	silenceCheckedAt time.Duration         // age of the hub when a silence was last asked about
}

// What is readable.
const (
	clientReadable uint32 = 1 << iota
	upstreamReadable
)

// Start relays c's session at the backend until it is over and then calls ended,
// once. The connection and the account are the session's now.
func (h *Hub) Start(c Client, backend string, account *pool.Account, onEnd func(Result)) {
	s := &session{
		hub: h, backend: h.backends[backend], account: account, canResume: c.Mode == Resume, loginFromRoute: c.LoginFromRoute,
		auditClient: c.AuditClient, offeredCaps: c.Caps, onEnd: onEnd,
	}
	if c.Quota != nil {
		s.throttle = &throttle{Quota: c.Quota}
	}
	s.client.Open(c.Conn, c.Buffered, imap.Commands, &h.shared)
	s.setStateMetric(metrics.Unselected)
	h.mu.Lock()
	h.wg.Add(1) // until remove, so that no goroutine begins when Close has seen the last
	h.sessions[s] = struct{}{}
	s.backend.sessionCount.Add(1)
	if !c.ExpiresAt.IsZero() {
		h.expiries[s] = c.ExpiresAt
	}
	h.mu.Unlock()
	s.wake()
}

// A session, as each of its sockets wakes it.
type (
	clientWaker   session
	upstreamWaker session
)

// Wake implements quiet.Waker.
func (s *clientWaker) Wake() { (*session)(s).onReadable(clientReadable) }

// Wake implements quiet.Waker.
func (s *upstreamWaker) Wake() { (*session)(s).onReadable(upstreamReadable) }

// onReadable wakes the session for what is readable.
func (s *session) onReadable(bit uint32) {
	s.readable.Or(bit)
	s.wake()
}

// wake gives the session a goroutine, or tells the one there is.
func (s *session) wake() {
	s.mu.Lock()
	if s.running || s.isEnded {
		s.wakePending = true
		s.mu.Unlock()
		return
	}
	s.running = true
	s.mu.Unlock()
	h := s.hub
	h.mu.Lock()
	h.active[s] = struct{}{}
	h.mu.Unlock()
	h.wg.Add(1)
	go s.run()
}

// run is the goroutine of a session. It ends when nothing has been said for a
// while, and when the session is over or handed on.
func (s *session) run() {
	defer s.hub.wg.Done()
	defer s.recoverPanic()
	if s.commandState == nil {
		s.commandState = new(commandState)
	}
	err := s.handOverUnparsable(s.readReadable())
	if err == nil {
		err = s.serve()
	}
	if errors.Is(err, errParked) || errors.Is(err, errHandedOver) {
		return // s is somebody else's already
	}
	s.end(err)
}

// serve is a session turn by turn. A lost upstream is survived where it can be.
func (s *session) serve() error {
	for {
		if err := s.handOverUnparsable(s.recoverLoss(s.step())); err != nil {
			return err
		}
	}
}

// step passes on what the backend has said, does what the client has asked for,
// asks what we want to know ourselves, and waits.
func (s *session) step() error {
	if s.upstream != nil {
		if err := s.relay(); err != nil {
			return err
		}
	}
	if reason := s.stopReason.Load(); reason != nil && (s.outstanding.isEmpty() || *reason == audit.Idle) {
		return stopError(*reason)
	}
	if err := s.runCommands(); err != nil {
		return err
	}
	s.throttleBytes()
	if err := s.runHousekeeping(); err != nil {
		return err
	}
	return s.waitForInput()
}

// waitForInput waits for whoever is expected to speak: the backend while it owes an
// answer, the client otherwise. When it has been quiet for a while, both are
// waited for, without a goroutine.
func (s *session) waitForInput() error {
	if s.idleState != nil {
		return s.park() // nobody is expected
	}
	if s.upstream == nil || s.outstanding.isEmpty() {
		err := s.client.AwaitInput()
		if errors.Is(err, wire.ErrIdle) {
			return s.park()
		}
		return s.wrapClientError(err)
	}
	err := s.upstream.AwaitInput()
	if !errors.Is(err, wire.ErrIdle) {
		return s.wrapUpstreamError(err)
	}
	if err := s.checkSilence(); err != nil {
		return err
	}
	s.scheduleSilenceCheck()
	return s.park()
}

// park gives up the goroutine: errParked. It returns nil when there is something
// to do after all.
func (s *session) park() error {
	if s.upstream != nil { // what TLS holds, no kernel will tell us of
		if buffered, err := s.upstream.ReadTLSBuffered(); buffered || err != nil {
			return s.wrapUpstreamError(err)
		}
	}
	readsClient := !s.outstanding.isFull() // or the client has said enough for now
	if readsClient {
		if buffered, err := s.client.ReadTLSBuffered(); buffered || err != nil {
			return s.wrapClientError(err)
		}
	}
	s.releaseBuffers()
	s.readable.Store(0)
	poller := s.hub.poller
	var waitErr error
	if readsClient {
		waitErr = poller.Arm(&s.client.ParkWaiter, s.client.NetConn(), (*clientWaker)(s))
	}
	if waitErr == nil && s.upstream != nil {
		waitErr = poller.Arm(&s.upstream.ParkWaiter, s.upstream.NetConn(), (*upstreamWaker)(s))
	}
	if waitErr != nil { // closed, or the kernel has no room: wait here
		if err := s.client.AwaitInput(); !errors.Is(err, wire.ErrIdle) {
			return s.wrapClientError(err)
		}
		return nil
	}
	h := s.hub
	h.mu.Lock()
	delete(h.active, s)
	h.mu.Unlock()
	s.mu.Lock()
	runAgain := s.wakePending
	s.wakePending = false
	s.running = runAgain
	if !runAgain && s.outstanding.isEmpty() {
		s.commandState = nil
	}
	s.mu.Unlock()
	if !runAgain {
		return errParked
	}
	h.mu.Lock()
	h.active[s] = struct{}{}
	h.mu.Unlock()
	return s.readReadable()
}

// readReadable reads from those that have something to say.
func (s *session) readReadable() error {
	bits := s.readable.Swap(0)
	if bits&upstreamReadable != 0 && s.upstream != nil {
		if err := s.recoverLoss(s.readUpstream()); err != nil {
			return err
		}
	}
	if bits&clientReadable != 0 {
		if err := s.client.AwaitInput(); err != nil && !errors.Is(err, wire.ErrIdle) {
			return s.wrapClientError(err)
		}
	}
	return nil
}

// releaseBuffers gives back what a session at rest does not need.
func (s *session) releaseBuffers() {
	s.client.ReleaseBuffers()
	if s.upstream != nil {
		s.upstream.ReleaseBuffers()
	}
	s.commandBuf, s.outBuf = nil, nil
	if !s.wasParked { // TLS and the login leave most behind at first
		s.wasParked = true
		s.hub.parkedConns.Add(2)
	}
	s.outstanding.releaseBuffers()
	if s.mailbox != nil {
		s.mailbox.view.Compact()
	}
}

// bindUpstream makes up the session's lease.
func (s *session) bindUpstream(conn *lease.Conn) {
	s.upstream, s.upstreamSince = conn, s.hub.uptime()
	s.upstreamWire.Store(&conn.Conn)
	if s.aborted.Load() { // while it was on its way
		conn.Abort()
	}
}

// unbindUpstream parts the session from its lease, for whoever the caller gives it to.
func (s *session) unbindUpstream() *lease.Conn {
	conn := s.upstream
	s.upstream, s.attached, s.tainted, s.literalDeclined = nil, false, false, false
	s.upstreamSince = s.hub.uptime()
	s.upstreamWire.Store(nil)
	s.hub.poller.Disarm(&conn.ParkWaiter)
	s.updateStateMetric()
	return conn
}

// requestStop asks the session to end at the next boundary between commands.
func (s *session) requestStop(reason audit.Reason) {
	s.stopReason.CompareAndSwap(nil, &reason)
	s.client.InterruptWait()
	s.wake()
}

// abort ends the session now.
func (s *session) abort(reason audit.Reason) {
	s.stopReason.Store(&reason)
	s.aborted.Store(true)
	s.client.Abort()
	if w := s.upstreamWire.Load(); w != nil {
		w.Abort()
	}
	s.wake()
}

// onTick is the clock's look at a session with a goroutine.
func (s *session) onTick(parkAfter, stallAfter uint32) {
	s.client.OnTick(parkAfter, stallAfter)
	if w := s.upstreamWire.Load(); w != nil {
		w.OnTick(parkAfter, stallAfter)
	}
}

// onSecond is the clock's look at every session, once a second.
func (s *session) onSecond(now uint32) {
	s.reportBytes()
	lastActivity := s.client.LastByteTick()
	if w := s.upstreamWire.Load(); w != nil {
		lastActivity = max(lastActivity, w.LastByteTick())
	}
	if now-lastActivity > toTicks(s.hub.cfg.IdleTimeout) && now > lastActivity {
		s.requestStop(audit.Idle)
	}
	if at := s.wakeAt.Load(); at != 0 && now >= at && s.wakeAt.CompareAndSwap(at, 0) {
		s.wake()
	}
}

// scheduleWake sets the alarm, to the second, unless it rings before.
func (s *session) scheduleWake(d time.Duration) {
	at := s.hub.shared.Clock.Now() + max(toTicks(d), 1)
	if current := s.wakeAt.Load(); current == 0 || at < current {
		s.wakeAt.Store(at)
	}
}

// reportBytes passes on the bytes relayed since it was last called. The clock calls
// it, and the end, when the clock does so no more.
func (s *session) reportBytes() {
	in, out := s.client.ByteCounts()
	s.mu.Lock()
	newIn, newOut := in-s.reportedIn, out-s.reportedOut
	s.reportedIn, s.reportedOut = in, out
	s.mu.Unlock()
	if s.hub.cfg.OnBytes != nil && (newIn > 0 || newOut > 0) {
		s.hub.cfg.OnBytes(newIn, newOut)
	}
}

// updateStateMetric tells the metrics which state the session is in.
func (s *session) updateStateMetric() {
	switch {
	case s.idleState != nil:
		s.setStateMetric(metrics.Idle)
	case s.mailbox == nil:
		s.setStateMetric(metrics.Unselected)
	case s.attached:
		s.setStateMetric(metrics.Attached)
	default:
		s.setStateMetric(metrics.Detached)
	}
}

func (s *session) setStateMetric(state string) {
	if state != s.metricState {
		s.hub.deps.Metrics.Mux.ChangeState(s.metricState, state)
		s.metricState = state
	}
}
