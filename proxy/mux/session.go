package mux

import (
	"errors"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"imapgate/internal/audit"
	"imapgate/internal/event"
	"imapgate/internal/imap"
	"imapgate/proxy/mux/command"
	"imapgate/proxy/mux/lease"
	"imapgate/proxy/mux/pool"
	"imapgate/proxy/mux/wire"
	"imapgate/proxy/relay"
)

// Client is a client after its login.
type Client struct {
	Conn        net.Conn
	Buffered    []byte // bytes already read from Conn
	AuditClient *audit.Client
	Caps        imap.Caps // the result of OfferedCaps
	// LoginFromRoute is true if the route sets the account's login name. Each later
	// connection of the session then requires that name in the route.
	LoginFromRoute bool

	Quota Quota // nil: unlimited
}

// session is one client from its login to its end. It has a goroutine while it is active,
// and none while it is parked.
type session struct {
	// Set once.
	hub            *Hub
	live           *relay.Session
	backend        *backend
	account        *pool.Account
	canResume      bool // the mode is Resume
	loginFromRoute bool // Client.LoginFromRoute
	auditClient    *audit.Client
	offeredCaps    imap.Caps // capabilities offered to the client
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
	enabled         lease.Extensions
	mailbox         *mailbox   // nil: none selected
	idleState       *idleState // nil: not in IDLE
	throttle        *throttle  // nil: unlimited
	pinReason       event.PinReason
	metricState     event.State   // state under which the session is counted
	wakeTimer       *time.Timer   // calls wake; nil: never scheduled
	wakeAt          time.Duration // hub uptime at which wakeTimer fires, or has fired

	upstreamWire atomic.Pointer[wire.Conn]    // the lease's, for the clock
	stopReason   atomic.Pointer[event.Reason] // nil: none requested
	aborted      atomic.Bool                  // abort was called
	readable     atomic.Uint32                // readable sockets: bits

	mu          sync.Mutex
	running     bool // Guarded by mu. The goroutine exists.
	wakePending bool // Guarded by mu. Wake not yet seen by the goroutine.
	isEnded     bool // Guarded by mu.
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

// Start relays the session of c until it ends. It takes ownership of the connection and
// the account.
func (h *Hub) Start(live *relay.Session, c Client, account *pool.Account) {
	h.newSession(live, c, account).start()
}

func (h *Hub) newSession(live *relay.Session, c Client, account *pool.Account) *session {
	s := &session{
		hub: h, live: live, backend: h.backends[live.Backend], account: account, canResume: live.Mode == event.ModeResume,
		loginFromRoute: c.LoginFromRoute, auditClient: c.AuditClient, offeredCaps: c.Caps,
	}
	if c.Quota != nil {
		s.throttle = &throttle{Quota: c.Quota}
	}
	h.shared.Clock.Update() // else the session would seem silent since the clock last ran
	s.client.Open(c.Conn, c.Buffered, imap.Commands, &h.shared)
	return s
}

func (s *session) start() {
	s.setStateMetric(event.StateUnselected)
	s.hub.wg.Add(1) // until unregister, so that no goroutine starts after Close has waited
	s.backend.sessionCount.Add(1)
	s.live.Start(s)
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
	s.live.Activate(s)
	s.hub.wg.Add(1)
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
	s.live.Deactivate(s)
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
	s.live.Activate(s)
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
		s.live.CountParked(2)
	}
	s.outstanding.releaseBuffers()
	if s.mailbox != nil {
		s.mailbox.view.Compact()
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

// Usage implements relay.Relay.
func (s *session) Usage() relay.Usage {
	u := relay.Usage{LastByte: s.client.LastByteTick()}
	u.Up, u.Down = s.client.ByteCounts()
	if w := s.upstreamWire.Load(); w != nil && relay.Elapsed(w.LastByteTick(), u.LastByte) >= 0 {
		u.LastByte = w.LastByteTick()
	}
	return u
}

// End implements relay.Relay. The session ends once no command is outstanding.
func (s *session) End(reason event.Reason) {
	s.stopReason.CompareAndSwap(nil, &reason)
	s.client.InterruptWait()
	s.wake()
}

// Abort implements relay.Relay.
func (s *session) Abort(reason event.Reason) {
	s.stopReason.Store(&reason)
	s.aborted.Store(true)
	s.client.Abort()
	if w := s.upstreamWire.Load(); w != nil {
		w.Abort()
	}
	s.wake()
}

// OnTick interrupts waits, and aborts stalled peers, of a session with a goroutine.
func (s *session) OnTick(now uint32) {
	s.client.OnTick(now, s.hub.cfg.ParkAfter, s.hub.cfg.StallTimeout)
	if w := s.upstreamWire.Load(); w != nil {
		w.OnTick(now, s.hub.cfg.ParkAfter, s.hub.cfg.StallTimeout)
	}
}

// scheduleWake schedules a wake after d and up to a second more, unless an earlier one is
// scheduled. So the sessions that lose their upstreams together wake one by one.
func (s *session) scheduleWake(d time.Duration) {
	now := s.hub.uptime()
	d += rand.N(time.Second)
	if s.wakeAt > now && s.wakeAt <= now+d {
		return
	}
	s.wakeAt = now + d
	if s.wakeTimer == nil {
		s.wakeTimer = time.AfterFunc(d, s.wake)
		return
	}
	s.wakeTimer.Reset(d)
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
