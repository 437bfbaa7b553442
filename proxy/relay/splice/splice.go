// Package splice relays the bytes of logged-in sessions in both directions unchanged. It
// parses no command.
//
// A direction in which bytes flow has a goroutine (a pump). After a time without bytes it
// gives up its goroutine and buffer. On Linux its socket then waits in an epoll set, and an
// idle session consists of two sockets, TLS state and a Relay. On other systems the
// goroutine stays, with almost no buffer.
//
// The clock of package relay checks every running pump: it asks quiet ones to park and
// aborts the sessions of stalled ones, so that the relay itself sets no deadlines. The
// package does not know the user. It reports the end of a session once, to its
// relay.Session.
package splice

import (
	"net"
	"sync"
	"time"

	"imapgate/internal/event"
	"imapgate/internal/parking"
	"imapgate/proxy/relay"
)

// Config bounds the sessions of a Set.
type Config struct {
	ParkAfter         time.Duration // a pump without bytes for this long parks
	HalfClosedTimeout time.Duration // a session without bytes for this long ends after one side has closed
	WriteTimeout      time.Duration // a write that takes longer ends the session
}

// Side is one end of a session. Buffered is what was already read from the other side; it
// is sent to this one first. Throttle, if not nil, receives the number of bytes just read
// from this side and returns how long to pause reading from it.
type Side struct {
	Conn     net.Conn
	Buffered []byte
	Throttle func(n int) time.Duration
}

// Set relays all spliced sessions of a gateway, and holds the poller they share.
type Set struct {
	// Set once.
	cfg      Config
	sessions *relay.Registry
	poller   *parking.Poller // sockets of parked pumps
	buffers  *parking.BufferPool

	relays     sync.WaitGroup // relays and their goroutines
	pollerDone sync.WaitGroup
}

// NewSet returns a Set. Close ends its goroutines.
func NewSet(cfg Config, sessions *relay.Registry) (*Set, error) {
	poller, err := parking.NewPoller()
	if err != nil {
		return nil, err
	}
	s := &Set{cfg: cfg, sessions: sessions, poller: poller, buffers: parking.NewBufferPool()}
	s.pollerDone.Go(poller.Run)
	return s, nil
}

// Parked returns the number of directions without a goroutine.
func (s *Set) Parked() int { return s.poller.Len() }

// Close ends every session and waits for every goroutine.
func (s *Set) Close() {
	s.sessions.AbortAll(event.Drained)
	s.relays.Wait()
	s.poller.Close()
	s.pollerDone.Wait()
}

// Relay is one session. It may exist without a goroutine.
type Relay struct {
	// Set once.
	set     *Set
	session *relay.Session
	onClose func()
	up      pump // client to backend
	down    pump // backend to client

	mu             sync.Mutex
	runningPumps   int          // Guarded by mu. Pumps with a goroutine.
	openDirections int          // Guarded by mu. Directions whose source has not hung up.
	closed         bool         // Guarded by mu. The sockets are closed, or about to be.
	endReported    bool         // Guarded by mu. onClose was called.
	result         relay.Result // Guarded by mu.
}

// Start relays the session between the two sides until both directions end. It returns at
// once and owns the sockets from then on. After both are closed it calls onClose once, and
// then ends the session.
func (s *Set) Start(session *relay.Session, client, upstream Side, onClose func()) *Relay {
	r := &Relay{set: s, session: session, onClose: onClose, openDirections: 2}
	r.up = pump{relay: r, src: client.Conn, dst: upstream.Conn, prefix: upstream.Buffered, throttle: client.Throttle}
	r.down = pump{relay: r, src: upstream.Conn, dst: client.Conn, prefix: client.Buffered, throttle: upstream.Throttle}
	s.relays.Add(1)
	now := s.sessions.Clock.Update() // else the session would seem silent since the clock started
	r.up.lastProgress.Store(now)
	r.down.lastProgress.Store(now)
	session.Start(r)
	r.up.Wake()
	r.down.Wake()
	return r
}

// Usage implements relay.Relay.
func (r *Relay) Usage() relay.Usage {
	up, down := r.up.lastProgress.Load(), r.down.lastProgress.Load()
	if relay.Elapsed(up, down) >= 0 {
		down = up
	}
	return relay.Usage{Up: r.up.copiedBytes.Load(), Down: r.down.copiedBytes.Load(), LastByte: down, Spliced: true}
}

// End implements relay.Relay. It closes the session cleanly, with a TLS close_notify.
func (r *Relay) End(reason event.Reason) {
	if r.beginEnd(reason, nil) {
		r.set.relays.Go(func() { // a full socket may block
			_ = r.up.src.Close()
			_ = r.up.dst.Close()
			r.finish()
		})
	}
}

// Abort implements relay.Relay. As nothing shows whether a command is outstanding, it is
// the same as End.
func (r *Relay) Abort(reason event.Reason) { r.End(reason) }

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
	r.onClose()
	r.session.Finish(result)
	r.set.relays.Done()
}

// isClosed reports whether the end has been decided.
func (r *Relay) isClosed() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.closed
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
		return
	}
	timeout := r.set.cfg.HalfClosedTimeout
	if reason == event.BackendClosed {
		timeout = min(timeout, backendGoneTimeout)
	}
	r.session.ShortenIdleTimeout(timeout, reason)
}

// backendGoneTimeout is how long a client may stay connected after its backend has closed.
// The client has received the close, and its commands get no answer.
const backendGoneTimeout = 5 * time.Second
