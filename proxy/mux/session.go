package mux

import (
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"imapgate/internal/audit"
	"imapgate/internal/event"
	"imapgate/internal/imap"
	"imapgate/proxy/mux/command"
	"imapgate/proxy/mux/lease"
	"imapgate/proxy/mux/mailbox"
	"imapgate/proxy/mux/pool"
	"imapgate/proxy/mux/wire"
)

// Client is a client after its login.
type Client struct {
	Conn        net.Conn
	Buffered    []byte // bytes already read from Conn
	AuditClient *audit.Client
	Mode        event.Mode
	Caps        imap.Caps // the result of OfferedCaps
	// LoginFromRoute is true if the route sets the account's login name. Each later
	// connection of the session then requires that name in the route.
	LoginFromRoute bool

	Quota     Quota     // nil: unlimited
	ExpiresAt time.Time // end of the session, also after a pin; zero: none
}

// session is one client from its login to its end. It has a goroutine while it is active,
// and none while it is parked.
type session struct {
	// Set once.
	hub            *Hub
	backend        *backend
	account        *pool.Account
	canResume      bool // the mode is Resume
	loginFromRoute bool // Client.LoginFromRoute
	auditClient    *audit.Client
	offeredCaps    imap.Caps // capabilities offered to the client
	onEnd          func(Result)
	client         wire.Conn

	// Owned by run. nil while the session is parked with nothing outstanding.
	*commandState

	// Owned by run: the lease.
	upstream             *lease.Conn   // nil: none
	upstreamSince        time.Duration // hub uptime at the attach or at the loss
	attached             bool          // the mailbox is selected on the lease, in sync with the client's view
	awaitingContinuation bool          // a continuation request is expected
	commandPartial       bool          // the lease has received the beginning of a command, but not its end
	literalDeclined      bool          // the backend answered a command without taking its literal, and has sent nothing since
	tainted              bool          // responses may be caused by the client's own octets
	hadMailbox           bool          // the lease had a mailbox selected before the current SELECT
	disposition          disposition   // of the current response
	previousLost         bool          // the last upstream was lost, not released
	violationCounted     bool          // a violation of this session has been counted

	// Owned by run: the client.
	responsePartial bool   // the client has received the beginning of a response, but not its end
	discardingInput bool   // the rest of the current command is discarded
	wasParked       bool   // has been parked at least once
	badCommands     uint8  // consecutive invalid commands, at most maxBadCommands+1
	retries         uint8  // losses since the last answer, at most maxRetries+1
	commandCount    uint32 // commands so far; 32 bits fill a gap, 64 bits would enlarge each session
	enabled         imap.Extensions
	mailbox         *mailbox.Mailbox // nil: none selected
	idleState       *idleState       // nil: not in IDLE
	throttle        *throttle        // nil: unlimited
	pinReason       event.PinReason
	metricState     event.State // state under which the session is counted

	upstreamWire atomic.Pointer[wire.Conn]    // the lease's, for the clock
	stopReason   atomic.Pointer[event.Reason] // nil: none requested
	aborted      atomic.Bool                  // abort was called
	wakeAt       atomic.Uint32                // tick of the next wake; 0: none
	readable     atomic.Uint32                // readable sockets: bits

	mu          sync.Mutex
	running     bool // Guarded by mu. The goroutine exists.
	wakePending bool // Guarded by mu. Wake not yet seen by the goroutine.
	isEnded     bool // Guarded by mu.

	reportedIn, reportedOut int64 // Guarded by mu.
}

// commandState holds the current command, the outstanding commands and the output
// buffers: the part of a session that is allocated only while it is active.
type commandState struct {
	outstanding      outstandingQueue // commands sent on the lease
	request          request
	expungePolicy    command.ExpungePolicy // the current command's, until it is sent
	uidSet           string                // UIDs translated from the command's numbers
	commandBuf       []byte                // a command with literals
	deferred         []byte                // a delayed final response, and the output after it; nil: none
	outBuf           []byte                // the gateway's own responses
	commandLog       commandLog            // commands to be recorded
	silenceCheckedAt time.Duration         // hub uptime of the last silence check
}

// The bits of session.readable.
const (
	clientReadable uint32 = 1 << iota
	upstreamReadable
)

// Start relays c's session at the backend until it ends, and then calls onEnd once. Start
// takes ownership of the connection and the account.
func (h *Hub) Start(c Client, backend string, account *pool.Account, onEnd func(Result)) {
	s := &session{
		hub: h, backend: h.backends[backend], account: account, canResume: c.Mode == event.ModeResume, loginFromRoute: c.LoginFromRoute,
		auditClient: c.AuditClient, offeredCaps: c.Caps, onEnd: onEnd,
	}
	if c.Quota != nil {
		s.throttle = &throttle{Quota: c.Quota}
	}
	s.client.Open(c.Conn, c.Buffered, imap.Commands, &h.shared)
	s.setStateMetric(event.StateUnselected)
	h.mu.Lock()
	h.wg.Add(1) // until unregister, so that no goroutine starts after Close has waited
	h.sessions[s] = struct{}{}
	s.backend.sessionCount.Add(1)
	if !c.ExpiresAt.IsZero() {
		h.expiries[s] = c.ExpiresAt
	}
	h.mu.Unlock()
	s.wake()
}

// The types through which each socket wakes its session.
type (
	clientWaker   session
	upstreamWaker session
)

// Wake implements parking.Waker.
func (s *clientWaker) Wake() { (*session)(s).onReadable(clientReadable) }

// Wake implements parking.Waker.
func (s *upstreamWaker) Wake() { (*session)(s).onReadable(upstreamReadable) }

// onReadable marks a socket as readable and wakes the session.
func (s *session) onReadable(bit uint32) {
	s.readable.Or(bit)
	s.wake()
}

// wake starts the session's goroutine, or notifies the running one.
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

// run is the goroutine of a session. It ends when the session parks, ends or is handed
// over.
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
		return // the session is no longer this goroutine's
	}
	s.end(err)
}

// serve runs the session step by step and recovers from upstream losses.
func (s *session) serve() error {
	for {
		if err := s.handOverUnparsable(s.recoverLoss(s.step())); err != nil {
			return err
		}
	}
}

// step relays pending responses, executes buffered commands, runs housekeeping commands
// and waits for input.
func (s *session) step() error {
	if s.upstream != nil {
		if err := s.relay(); err != nil {
			return err
		}
	}
	if reason := s.stopReason.Load(); reason != nil && (s.outstanding.isEmpty() || *reason == event.Idle) {
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

// waitForInput waits for the peer that is expected to send next: the backend while
// commands are outstanding, the client otherwise. After a quiet period it parks the
// session until either is readable.
func (s *session) waitForInput() error {
	if s.idleState != nil {
		return s.park() // neither is expected to send soon
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

// park gives up the goroutine and returns errParked. It returns nil if there is input to
// process.
func (s *session) park() error {
	if s.upstream != nil { // the kernel does not signal bytes that TLS has buffered
		if buffered, err := s.upstream.ReadTLSBuffered(); buffered || err != nil {
			return s.wrapUpstreamError(err)
		}
	}
	readsClient := !s.outstanding.isFull() // with a full queue the client must wait
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
	if waitErr != nil { // closed, or the epoll set has no room: wait here
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

// readReadable reads from the sockets that are readable.
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

// releaseBuffers releases the buffers that a parked session does not need.
func (s *session) releaseBuffers() {
	s.client.ReleaseBuffers()
	if s.upstream != nil {
		s.upstream.ReleaseBuffers()
	}
	s.commandBuf, s.outBuf = nil, nil
	if !s.wasParked { // TLS and the login leave the most garbage
		s.wasParked = true
		s.hub.parkedConns.Add(2)
	}
	s.outstanding.releaseBuffers()
	if s.mailbox != nil {
		s.mailbox.Compact()
	}
}

// bindUpstream makes conn the session's lease.
func (s *session) bindUpstream(conn *lease.Conn) {
	s.upstream, s.upstreamSince = conn, s.hub.uptime()
	s.upstreamWire.Store(&conn.Conn)
	if s.aborted.Load() { // the abort happened during the acquire
		conn.Abort()
	}
}

// unbindUpstream removes the session's lease and returns it to the caller.
func (s *session) unbindUpstream() *lease.Conn {
	conn := s.upstream
	s.upstream, s.attached, s.tainted, s.literalDeclined = nil, false, false, false
	s.upstreamSince = s.hub.uptime()
	s.upstreamWire.Store(nil)
	s.hub.poller.Disarm(&conn.ParkWaiter)
	s.updateStateMetric()
	return conn
}

// requestStop asks the session to end once no command is outstanding.
func (s *session) requestStop(reason event.Reason) {
	s.stopReason.CompareAndSwap(nil, &reason)
	s.client.InterruptWait()
	s.wake()
}

// abort ends the session immediately.
func (s *session) abort(reason event.Reason) {
	s.stopReason.Store(&reason)
	s.aborted.Store(true)
	s.client.Abort()
	if w := s.upstreamWire.Load(); w != nil {
		w.Abort()
	}
	s.wake()
}

// onTick updates the timers of a session with a goroutine.
func (s *session) onTick(parkAfter, stallAfter uint32) {
	s.client.OnTick(parkAfter, stallAfter)
	if w := s.upstreamWire.Load(); w != nil {
		w.OnTick(parkAfter, stallAfter)
	}
}

// onSecond updates the timers of every session, once a second.
func (s *session) onSecond(now uint32) {
	s.reportBytes()
	lastActivity := s.client.LastByteTick()
	if w := s.upstreamWire.Load(); w != nil {
		lastActivity = max(lastActivity, w.LastByteTick())
	}
	if now-lastActivity > toTicks(s.hub.cfg.IdleTimeout) && now > lastActivity {
		s.requestStop(event.Idle)
	}
	if at := s.wakeAt.Load(); at != 0 && now >= at && s.wakeAt.CompareAndSwap(at, 0) {
		s.wake()
	}
}

// scheduleWake schedules a wake after d, with a resolution of one second, unless an
// earlier one is scheduled.
func (s *session) scheduleWake(d time.Duration) {
	at := s.hub.shared.Clock.Now() + max(toTicks(d), 1)
	if current := s.wakeAt.Load(); current == 0 || at < current {
		s.wakeAt.Store(at)
	}
}

// reportBytes reports the bytes relayed since its last call. The clock calls it, and
// finally unregister.
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

// updateStateMetric updates the metric of session states.
func (s *session) updateStateMetric() {
	switch {
	case s.idleState != nil:
		s.setStateMetric(event.StateIdle)
	case s.mailbox == nil:
		s.setStateMetric(event.StateUnselected)
	case s.attached:
		s.setStateMetric(event.StateAttached)
	default:
		s.setStateMetric(event.StateDetached)
	}
}

func (s *session) setStateMetric(state event.State) {
	if state != s.metricState {
		s.hub.deps.Metrics.Mux.ChangeState(s.metricState, state)
		s.metricState = state
	}
}
