package splice

import (
	"errors"
	"io"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"imapgate/internal/event"
	"imapgate/internal/parking"
	"imapgate/proxy/relay"
)

// spliceChunk bounds the bytes moved by splice(2) before the pump counts them. It is small
// enough that a slow reader still shows progress.
const spliceChunk = 256 << 10

// pump is one direction of a session.
type pump struct {
	// Set once.
	relay    *Relay
	src, dst net.Conn
	throttle func(n int) time.Duration // nil: no throttling

	// Owned by run.
	sendFirst []byte // Side.SendFirst of dst; nil once it is sent

	waiter parking.Waiter // for src, while the pump is parked

	copiedBytes  atomic.Int64
	lastProgress atomic.Uint32 // tick of the last progress, or of the beginning of a write
	phase        atomic.Uint32 // one of the phases below
	hasParked    bool          // Owned by run. It has parked at least once.
	state        atomic.Uint32 // one of the states below
}

// The phases of a running pump.
const (
	phaseReading   uint32 = iota // waits for the source
	phaseWriting                 // waits for the destination
	phaseSplicing                // waits for either: the kernel copies
	phaseThrottled               // waits for neither
)

// The states of a pump. Only a running one can be asked to park. The clock may be late, and
// a pump without a goroutine would keep the request and count as stalled.
const (
	stateStopped       uint32 = iota // no goroutine, or one that cannot park
	stateRunning                     // has a goroutine
	stateParkRequested               // its reads fail so that it parks
)

// Wake starts the pump's goroutine to relay bytes that have arrived. Start and the poller
// call it, only while there is no goroutine.
func (p *pump) Wake() {
	p.lastProgress.Store(p.relay.set.sessions.Clock.Update()) // the clock may have slept
	p.start(stateRunning)
}

// start starts the pump's goroutine unless the session has ended.
func (p *pump) start(state uint32) {
	r := p.relay
	r.mu.Lock()
	closed := r.closed
	if !closed {
		r.socketUsers++
	}
	r.mu.Unlock()
	if closed {
		return
	}
	p.phase.Store(phaseReading)
	p.state.Store(state)
	r.session.Activate(p)
	r.set.relays.Add(1)
	go p.run()
}

// run relays until the source closes, a side fails or the pump parks after a time without
// bytes. The poller wakes a parked pump when its source is readable. A pump parks with no
// complete TLS record left unread, because the poller sees only the socket.
func (p *pump) run() {
	defer p.relay.set.relays.Done()
	conn, err := p.copyBytes()
	idle := conn == p.src && errors.Is(err, os.ErrDeadlineExceeded)
	if !idle {
		p.endDirection(conn, err)
	}
	p.relay.session.Deactivate(p)
	if idle {
		p.cancelPark(stateStopped)
		parking.ReleaseBuffers(p.src)
	} else {
		p.state.Store(stateStopped)
	}
	if closed := p.relay.releaseSockets(); idle && !closed {
		p.park() // the pump may run again from here on
	}
}

// park waits for the source without a goroutine. A closed socket needs no wait: its session
// has ended. If the kernel has no room for another socket, the pump keeps a goroutine and
// is not asked to park again.
func (p *pump) park() {
	first := !p.hasParked
	p.hasParked = true
	err := p.relay.set.poller.Arm(&p.waiter, p.src, p)
	switch {
	case err == nil && first:
		p.relay.session.CountParked(1)
	case err != nil && !errors.Is(err, net.ErrClosed):
		p.start(stateStopped)
	}
}

// endDirection ends the direction: its source closed (err is nil), or conn failed. The
// first end without a cut gives the session its reason.
func (p *pump) endDirection(conn net.Conn, err error) {
	r, reason := p.relay, event.BackendClosed
	switch {
	case err != nil && conn == r.up.src:
		r.cut(event.ClientError, err)
		return
	case err != nil && p == &r.down:
		r.cut(event.BackendLost, err)
		return
	case err != nil: // a backend that accepts no more bytes may have sent a BYE that is still to be read
		reason = event.BackendLost
	case p == &r.up:
		reason = event.ClientClosed
	}
	r.mu.Lock()
	if r.result.Reason == "" {
		r.result.Reason, r.result.Err = reason, err
	}
	r.mu.Unlock()
	if err == nil {
		p.markProgress()
		p.phase.Store(phaseWriting)   // close_notify may block on a full socket
		_ = parking.CloseWrite(p.dst) // the other direction detects a failure of dst
		p.phase.Store(phaseReading)
	}
	r.closeDirection()
}

// copyBytes copies until the source closes (nil error) or a side fails, and returns that
// side.
func (p *pump) copyBytes() (net.Conn, error) {
	if len(p.sendFirst) > 0 {
		if err := p.write(p.sendFirst); err != nil {
			return p.dst, err
		}
	}
	p.sendFirst = nil // frees its array
	buffers := p.relay.set.buffers
	buf := buffers.Small.Get().(*[parking.SmallBuffer]byte)
	conn, err := p.copySmall(buf[:])
	clear(buf[:])
	buffers.Small.Put(buf)
	if conn != nil {
		return conn, err
	}
	src, isPlain := p.src.(*net.TCPConn)
	if dst, ok := p.dst.(*net.TCPConn); ok && isPlain {
		return p.spliceBytes(src, dst)
	}
	big := buffers.Large.Get().(*[parking.LargeBuffer]byte)
	conn, err = p.copyLarge(big[:])
	clear(big[:])
	buffers.Large.Put(big)
	return conn, err
}

// copySmall relays commands and responses. It returns nil when a read fills buf.
func (p *pump) copySmall(buf []byte) (net.Conn, error) {
	for {
		n, err := p.src.Read(buf)
		if conn, err := p.forward(buf[:n], err); conn != nil || n == len(buf) {
			return conn, err
		}
	}
}

// copyLarge relays mail in large reads.
func (p *pump) copyLarge(buf []byte) (net.Conn, error) {
	p.relay.set.buffers.ReadAhead(p.src)
	for {
		n, err := p.src.Read(buf)
		if err == nil {
			n, err = p.readBuffered(buf, n)
		}
		if conn, err := p.forward(buf[:n], err); conn != nil {
			return conn, err
		}
	}
}

// readBuffered appends to the n bytes in buf the records that have been read ahead. It does
// not block: a partial record is left for later.
func (p *pump) readBuffered(buf []byte, n int) (int, error) {
	for n <= len(buf)-parking.MaxRecord {
		m, err := parking.ReadBuffered(p.src, buf[n:])
		n += m
		if errors.Is(err, parking.ErrWouldBlock) {
			return n, nil
		}
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// forward writes what was read, and returns the side that closed or failed, or nil. A TLS
// client that closes without close_notify counts as closed: IMAP frames its own messages.
func (p *pump) forward(b []byte, err error) (net.Conn, error) {
	if len(b) > 0 {
		if err := p.write(b); err != nil {
			return p.dst, err
		}
	}
	switch {
	case err == nil:
		return nil, nil
	case err == io.EOF, errors.Is(err, io.ErrUnexpectedEOF):
		return p.src, nil
	}
	return p.src, err
}

func (p *pump) write(b []byte) error {
	p.markProgress()
	p.phase.Store(phaseWriting)
	err := p.relay.set.buffers.Write(p.dst, b)
	p.markProgress()
	p.phase.Store(phaseReading)
	if err == nil {
		p.copiedBytes.Add(int64(len(b)))
		p.throttleSource(len(b))
	}
	return err
}

// throttleStep is how long a throttled pump sleeps between checks for the end of its
// session.
const throttleStep = 100 * time.Millisecond

// throttleSource sleeps after n bytes for as long as the throttle demands. The source is
// left unread, so TCP slows it down. Sleeping counts as progress, and never as a stall.
func (p *pump) throttleSource(n int) {
	if p.throttle == nil {
		return
	}
	phase := p.phase.Swap(phaseThrottled)
	for d := p.throttle(n); d > 0 && !p.relay.isClosed(); d -= throttleStep {
		time.Sleep(min(d, throttleStep))
		p.markProgress()
	}
	p.phase.Store(phase)
}

// spliceBytes relays mail between plain sockets in the kernel (splice(2), through
// net.TCPConn.ReadFrom). It uses two more descriptors, even while it waits, so commands and
// responses are copied without it.
func (p *pump) spliceBytes(src, dst *net.TCPConn) (net.Conn, error) {
	limited := io.LimitedReader{R: src}
	p.phase.Store(phaseSplicing)
	for {
		limited.N = spliceChunk
		n, err := dst.ReadFrom(&limited)
		if n > 0 {
			p.copiedBytes.Add(n)
			p.markProgress()
			p.throttleSource(int(n))
		}
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded) && n > 0:
			p.cancelPark(stateRunning) // bytes have arrived since the request
		case errors.Is(err, syscall.EPIPE):
			return p.dst, err
		case err != nil: // of either side: a reset does not identify it, and sources are reset more often
			return p.src, err
		case limited.N == spliceChunk:
			return p.src, nil
		}
	}
}

func (p *pump) markProgress() { p.lastProgress.Store(p.relay.set.sessions.Clock.Now()) }

// OnTick asks a quiet pump to park, and cuts the session of one whose destination takes
// no more bytes. The clock calls it while the pump has a goroutine.
//
// A stall is a write without progress for WriteTimeout, and a full socket: if the kernel
// takes bytes, only the goroutine has not run. A throttled pump is in no write.
func (p *pump) OnTick(now uint32) {
	cfg, phase := &p.relay.set.cfg, p.phase.Load() // first: a write sets the time before the phase
	quiet := relay.Elapsed(now, p.lastProgress.Load())
	if (phase == phaseWriting || phase == phaseSplicing) && quiet >= cfg.WriteTimeout && !parking.IsWritable(p.dst) {
		reason := event.BackendStalled
		if p == &p.relay.down {
			reason = event.ClientStalled
		}
		p.relay.cut(reason, nil)
		return
	}
	canPark := parking.CanPark && (phase == phaseReading || phase == phaseSplicing) && quiet >= cfg.ParkAfter
	if canPark && p.state.CompareAndSwap(stateRunning, stateParkRequested) {
		// The next wait for the source fails. A pump that has just become busy again parks
		// once without need.
		_ = parking.TCP(p.src).SetReadDeadline(time.Unix(1, 0))
	}
}

// cancelPark lets reads wait again, and then lets the clock request parking again.
func (p *pump) cancelPark(next uint32) {
	_ = parking.TCP(p.src).SetReadDeadline(time.Time{})
	p.state.Store(next)
}
