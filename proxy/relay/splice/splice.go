// Package splice relays the bytes of logged-in sessions in both directions unchanged. It
// parses no command.
//
// A direction in which bytes flow has a goroutine (a pump). After a time without bytes it
// gives up its goroutine and buffer. On Linux its socket then waits in an epoll set, and an
// idle session consists of two sockets, TLS state and a Relay. On other systems the
// goroutine stays, with almost no buffer.
//
// The clock of package relay checks every running pump: it asks quiet ones to park and
// cuts the sessions of stalled ones, so that the relay itself sets no deadlines. The
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

// Side is one end of a session. SendFirst is what was already read from the other side; it
// is sent to this one first. Throttle, if not nil, receives the number of bytes just read
// from this side and returns how long to pause reading from it.
type Side struct {
	Conn      net.Conn
	SendFirst []byte
	Throttle  func(n int) time.Duration
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
	socketUsers    int          // Guarded by mu. Pumps with a goroutine, and closeSockets.
	openDirections int          // Guarded by mu. Directions whose source has not hung up.
	closed         bool         // Guarded by mu. The sockets are closed, or about to be.
	result         relay.Result // Guarded by mu.
}

// Start relays the session between the two sides until both directions end. It returns at
// once and owns the sockets from then on. After both are closed it calls onClose once, and
// then ends the session.
func (s *Set) Start(session *relay.Session, client, upstream Side, onClose func()) *Relay {
	r := &Relay{set: s, session: session, onClose: onClose, openDirections: 2}
	r.up = pump{relay: r, src: client.Conn, dst: upstream.Conn, sendFirst: upstream.SendFirst, throttle: client.Throttle}
	r.down = pump{relay: r, src: upstream.Conn, dst: client.Conn, sendFirst: client.SendFirst, throttle: upstream.Throttle}
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
		r.set.relays.Go(func() { r.closeSockets(r.up.src, r.up.dst) }) // a full socket may block
	}
}

// Abort implements relay.Relay. As nothing shows whether a command is outstanding, it is
// the same as End.
func (r *Relay) Abort(reason event.Reason) { r.End(reason) }

// cut closes the session without a TLS close_notify. A peer in the middle of a literal
// can then detect that it is incomplete.
func (r *Relay) cut(reason event.Reason, err error) {
	if r.beginEnd(reason, err) {
		r.closeSockets(parking.TCP(r.up.src), parking.TCP(r.up.dst))
	}
}

// closeSockets closes the connections of the session, or the sockets under them.
func (r *Relay) closeSockets(client, upstream net.Conn) {
	_ = client.Close()
	_ = upstream.Close()
	r.releaseSockets()
}

// beginEnd decides the end of the session. It returns true once; the caller must then call
// closeSockets.
func (r *Relay) beginEnd(reason event.Reason, err error) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return false
	}
	r.closed = true
	r.socketUsers++
	// A client often resets its connection after one side has ended the session.
	if r.result.Reason == "" || reason != event.ClientError {
		r.result.Reason, r.result.Err = reason, err
	}
	return true
}

// releaseSockets ends one use of the sockets, and reports whether the end of the session has been
// decided. After the last use it reports that end: the sockets are closed then, so a pump that
// parks meanwhile cannot arm its Waiter again.
func (r *Relay) releaseSockets() (closed bool) {
	r.mu.Lock()
	r.socketUsers--
	closed, isLast, result := r.closed, r.closed && r.socketUsers == 0, r.result
	r.mu.Unlock()
	if isLast {
		r.set.poller.Disarm(&r.up.waiter)
		r.set.poller.Disarm(&r.down.waiter)
		r.onClose()
		r.session.Finish(result)
		r.set.relays.Done()
	}
	return closed
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
		r.cut(reason, err) // both have already sent close_notify or FIN
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
