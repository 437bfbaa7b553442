package mux

import (
	"errors"
	"net"
	"sync"
	"sync/atomic"

	"imapgate/internal/audit"
	"imapgate/internal/event"
	"imapgate/internal/imap"
	"imapgate/proxy/relay"
	"imapgate/proxy/relay/mux/pool"
	"imapgate/proxy/relay/mux/wire"
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

// session is one client from its login to its end: an exchange with its life. It has a
// goroutine while it is active, and none while it is parked.
type session struct {
	exchange

	readable atomic.Uint32 // readable sockets: bits

	mu          sync.Mutex
	running     bool // Guarded by mu. The goroutine exists.
	wakePending bool // Guarded by mu. Wake not yet seen by the goroutine.
	isEnded     bool // Guarded by mu.
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
	info := live.Info()
	s := &session{exchange: exchange{hub: h, live: live, isResume: info.Mode == event.ModeResume}}
	s.onWake = s.wake
	s.client.audit, s.client.offeredCaps = c.AuditClient, c.Caps
	s.upstream.backend, s.upstream.account, s.upstream.loginFromRoute = h.backends[info.Backend], account, c.LoginFromRoute
	if c.Quota != nil {
		s.client.throttle = &throttle{Quota: c.Quota}
	}
	h.shared.Clock.Update() // else the session would seem silent since the clock last ran
	s.client.Open(c.Conn, c.Buffered, imap.Commands, &h.shared)
	return s
}

func (s *session) start() {
	s.setStateMetric(event.StateUnselected)
	s.hub.wg.Add(1) // until unregister, so that no goroutine starts after Close has waited
	s.upstream.backend.sessionCount.Add(1)
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

// run is the goroutine of a session. It runs the session step by step and recovers from
// upstream losses. It ends when the session parks, ends or is handed over.
func (s *session) run() {
	defer s.hub.wg.Done()
	defer s.recoverPanic()
	if s.client.clientWork == nil {
		s.allocateWork()
	}
	err := s.handOverUnparsable(s.readReadable())
	for err == nil {
		err = s.handOverUnparsable(s.recoverLoss(s.step()))
	}
	if errors.Is(err, errParked) || errors.Is(err, errHandedOver) {
		return // the session is no longer this goroutine's
	}
	s.end(err)
}

// step relays pending responses, executes buffered commands, runs housekeeping commands
// and waits for input.
func (s *session) step() error {
	if s.upstream.Conn != nil {
		if err := s.relay(); err != nil {
			return err
		}
	}
	if reason := s.client.stopReason.Load(); reason != nil && (s.upstream.outstanding.isEmpty() || *reason == event.Idle) {
		return s.stopError(*reason)
	}
	if err := s.runCommands(); err != nil {
		return err
	}
	s.client.throttleBytes()
	if err := s.runHousekeeping(); err != nil {
		return err
	}
	return s.waitForInput()
}

// waitForInput waits for the peer that is expected to send next: the backend while
// commands are outstanding, the client otherwise. After a quiet period it parks the
// session until either is readable.
func (s *session) waitForInput() error {
	s.publishStatus()
	if s.client.idle != nil {
		return s.park() // neither is expected to send soon
	}
	if s.upstream.Conn == nil || s.upstream.outstanding.isEmpty() {
		err := s.client.AwaitInput()
		if errors.Is(err, wire.ErrIdle) {
			return s.park()
		}
		return s.client.wrapError(err)
	}
	err := s.upstream.AwaitInput()
	if !errors.Is(err, wire.ErrIdle) {
		return wrapLost(err)
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
	if s.upstream.Conn != nil { // the kernel does not signal bytes that TLS has buffered
		if buffered, err := s.upstream.ReadTLSBuffered(); buffered || err != nil {
			return wrapLost(err)
		}
	}
	readsClient := !s.mustHold()
	if readsClient {
		if buffered, err := s.client.ReadTLSBuffered(); buffered || err != nil {
			return s.client.wrapError(err)
		}
	}
	s.releaseBuffers()
	s.readable.Store(0)
	poller := s.hub.poller
	var waitErr error
	if readsClient {
		waitErr = poller.Arm(&s.client.ParkWaiter, s.client.NetConn(), (*clientWaker)(s))
	}
	if waitErr == nil && s.upstream.Conn != nil {
		waitErr = poller.Arm(&s.upstream.ParkWaiter, s.upstream.NetConn(), (*upstreamWaker)(s))
	}
	if waitErr != nil { // closed, or the epoll set has no room: wait here
		if err := s.client.AwaitInput(); !errors.Is(err, wire.ErrIdle) {
			return s.client.wrapError(err)
		}
		return nil
	}
	s.live.Deactivate(s)
	s.mu.Lock()
	runAgain := s.wakePending
	s.wakePending = false
	s.running = runAgain
	if !runAgain && s.upstream.outstanding.isEmpty() {
		s.client.clientWork, s.upstream.upstreamWork = nil, nil
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
	if bits&upstreamReadable != 0 && s.upstream.Conn != nil {
		if err := s.recoverLoss(s.upstream.read()); err != nil {
			return err
		}
	}
	if bits&clientReadable != 0 {
		if err := s.client.AwaitInput(); err != nil && !errors.Is(err, wire.ErrIdle) {
			return s.client.wrapError(err)
		}
	}
	return nil
}

// Usage implements relay.Relay.
func (s *session) Usage() relay.Usage {
	u := relay.Usage{LastByte: s.client.LastByteTick()}
	u.Up, u.Down = s.client.ByteCounts()
	u.Commands = uint64(s.client.commandCount.Load())
	if w := s.upstream.wire.Load(); w != nil && relay.Elapsed(w.LastByteTick(), u.LastByte) >= 0 {
		u.LastByte = w.LastByteTick()
	}
	return u
}

// End implements relay.Relay. The session ends once no command is outstanding.
func (s *session) End(reason event.Reason) {
	s.client.stopReason.CompareAndSwap(nil, &reason)
	s.client.InterruptWait()
	s.wake()
}

// OnMove implements relay.Mover.
func (s *session) OnMove() {
	s.client.InterruptWait()
	s.wake()
}

// Abort implements relay.Relay.
func (s *session) Abort(reason event.Reason) {
	s.client.stopReason.Store(&reason)
	s.client.aborted.Store(true)
	s.client.Abort()
	if w := s.upstream.wire.Load(); w != nil {
		w.Abort()
	}
	s.wake()
}

// OnTick interrupts waits, and aborts stalled peers, of a session with a goroutine.
func (s *session) OnTick(now uint32) {
	s.client.OnTick(now, s.hub.cfg.ParkAfter, s.hub.cfg.StallTimeout)
	if w := s.upstream.wire.Load(); w != nil {
		w.OnTick(now, s.hub.cfg.ParkAfter, s.hub.cfg.StallTimeout)
	}
}
