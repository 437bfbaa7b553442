package splice

import (
	"errors"
	"io"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"imapgate/internal/parking"
)

// spliceChunk bounds how much a series of splice(2) calls moves before the pump counts
// it: little enough that a slow reader of it is not taken for none.
const spliceChunk = 256 << 10

// pump is one direction of a session.
type pump struct {
	// Set once.
	relay    *Relay
	src, dst net.Conn
	throttle func(n int) time.Duration // nil: as fast as it goes

	// Owned by run.
	prefix []byte // to be sent before anything is read

	waiter parking.Waiter // for src, while the pump is parked

	reportedBytes int64 // Guarded by relay.mu.

	copiedBytes  atomic.Int64
	lastProgress atomic.Uint32 // tick of the last progress
	writing      atomic.Bool   // run is in a write, not in a read
	hasParked    bool          // Owned by run. Once at least.
	state        atomic.Uint32 // of run, as far as the clock asks it to park
}

// The states of a pump. Only a relaying one can be asked: the clock may be late,
// and a pump without a goroutine would stay asked, and be taken for a stuck one.
const (
	stateStopped       uint32 = iota // no goroutine, or one that cannot be spared
	stateRunning                     // one that has not been asked
	stateParkRequested               // one whose reads fail
)

// Wake gives the pump its goroutine for something that has come. Start and the
// idle set call it, each time when there is none.
func (p *pump) Wake() {
	p.markProgress()
	p.start(stateRunning)
}

// start gives the pump its goroutine, unless the session is over.
func (p *pump) start(state uint32) {
	r := p.relay
	r.mu.Lock()
	closed := r.closed
	if !closed {
		r.runningPumps++
	}
	r.mu.Unlock()
	if closed {
		return
	}
	s := r.set
	p.state.Store(state)
	s.mu.Lock()
	s.pumps[p] = struct{}{}
	s.mu.Unlock()
	s.wg.Add(1)
	go p.run()
}

// run relays until the source hangs up, a side is lost, or it has been quiet
// for a while: then it parks, and the idle set wakes it when there is something
// to read. Nothing is left unread in TLS when it parks: a record that has come
// whole is always read before the socket is asked again.
func (p *pump) run() {
	s := p.relay.set
	defer s.wg.Done()
	conn, err := p.copyBytes()
	idle := conn == p.src && errors.Is(err, os.ErrDeadlineExceeded)
	if !idle {
		p.endDirection(conn, err)
	}
	s.mu.Lock()
	delete(s.pumps, p)
	s.mu.Unlock()
	if idle {
		p.cancelPark(stateStopped)
		parking.ReleaseBuffers(p.src)
	} else {
		p.state.Store(stateStopped)
	}
	p.relay.mu.Lock()
	p.relay.runningPumps--
	closed := p.relay.closed
	p.relay.mu.Unlock()
	if idle && !closed {
		p.park() // from here on the pump may already run again
		return
	}
	p.relay.finish()
}

// park waits for the source without a goroutine. A socket that is closed has no
// need to: its session is over. Where the kernel has no room for another one, the
// pump keeps a goroutine, and is not asked again.
func (p *pump) park() {
	s, first := p.relay.set, !p.hasParked
	p.hasParked = true
	err := s.poller.Arm(&p.waiter, p.src, p)
	switch {
	case err == nil && first:
		s.firstParks.Add(1)
	case err != nil && !errors.Is(err, net.ErrClosed):
		p.start(stateStopped)
	}
}

// endDirection ends the direction: its source hung up (err is nil), or conn failed.
func (p *pump) endDirection(conn net.Conn, err error) {
	r := p.relay
	if err != nil && (p == &r.down || conn == p.src) {
		r.abortLost(conn, err)
		return
	}
	if err != nil {
		// A backend that takes no more may have said why: its BYE is still to
		// be read.
		r.setReason(BackendLost, err)
		r.closeDirection()
		return
	}
	r.setReason(p.closeReason(), nil)
	p.markProgress()
	p.writing.Store(true)         // a full socket can hold TLS's goodbye up
	_ = parking.CloseWrite(p.dst) // what is wrong with dst, the other direction finds out
	p.writing.Store(false)
	r.closeDirection()
}

func (p *pump) closeReason() Reason {
	if p == &p.relay.up {
		return ClientClosed
	}
	return BackendClosed
}

// copyBytes copies until the source ends (nil), or one side fails: which, and
// how.
func (p *pump) copyBytes() (net.Conn, error) {
	if len(p.prefix) > 0 {
		if err := p.write(p.prefix); err != nil {
			return p.dst, err
		}
		p.prefix = nil
	}
	buffers := p.relay.set.buffers
	buf := buffers.Small.Get().(*[parking.SmallBuffer]byte)
	filled, conn, err := p.copySmall(buf[:])
	clear(buf[:])
	buffers.Small.Put(buf)
	if !filled {
		return conn, err
	}
	if src, dst, ok := tcpPair(p.src, p.dst); ok {
		return p.spliceBytes(src, dst)
	}
	big := buffers.Large.Get().(*[parking.LargeBuffer]byte)
	conn, err = p.copyLarge(big[:])
	clear(big[:])
	buffers.Large.Put(big)
	return conn, err
}

// copySmall relays commands and answers. It returns early, filled, when buf is
// too small for what comes.
func (p *pump) copySmall(buf []byte) (filled bool, conn net.Conn, err error) {
	for {
		n, err := p.src.Read(buf)
		if conn, err := p.forward(buf[:n], err); conn != nil {
			return false, conn, err
		}
		if n == len(buf) {
			return true, nil, nil
		}
	}
}

// copyLarge relays mail: as much at a time as there is.
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

// readBuffered adds to the n bytes in buf the records that have been read ahead. It
// waits for nothing: half a record is left for the next time.
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

// forward writes what was read, and says which side ended or failed, if one did.
func (p *pump) forward(b []byte, err error) (net.Conn, error) {
	if len(b) > 0 {
		if err := p.write(b); err != nil {
			return p.dst, err
		}
	}
	if err != nil {
		return p.src, ignoreEOF(err)
	}
	return nil, nil
}

// ignoreEOF is nil for a source that hung up. A TLS client that closes without a
// close_notify has hung up too: IMAP frames its own messages.
func ignoreEOF(err error) error {
	if err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil
	}
	return err
}

func (p *pump) write(b []byte) error {
	p.markProgress()
	p.writing.Store(true)
	err := p.relay.set.buffers.Write(p.dst, b)
	p.writing.Store(false)
	p.markProgress()
	if err == nil {
		p.copiedBytes.Add(int64(len(b)))
		p.throttleSource(len(b))
	}
	return err
}

// throttleStep is how long a slowed pump rests before it looks whether its session is
// over.
const throttleStep = 100 * time.Millisecond

// throttleSource rests after n bytes for as long as the pace demands: the source is left
// unread, and TCP holds it back. To rest is no standstill.
func (p *pump) throttleSource(n int) {
	if p.throttle == nil {
		return
	}
	for d := p.throttle(n); d > 0 && !p.relay.isClosed(); d -= throttleStep {
		time.Sleep(min(d, throttleStep))
		p.markProgress()
	}
}

// spliceBytes relays mail between plain sockets: the kernel moves the bytes
// (splice(2), by net.TCPConn.ReadFrom), and nothing passes through here. It
// holds two descriptors more, even while it waits, so that commands and answers
// go without it.
func (p *pump) spliceBytes(src, dst *net.TCPConn) (net.Conn, error) {
	limited := io.LimitedReader{R: src}
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
			p.cancelPark(stateRunning) // not so quiet
		case err != nil:
			return p.failedSide(err), err
		case limited.N == spliceChunk:
			return p.src, nil
		}
	}
}

// failedSide says which side of a splice failed; the kernel's word for a reset does
// not tell, and a source is reset more often.
func (p *pump) failedSide(err error) net.Conn {
	if errors.Is(err, syscall.EPIPE) {
		return p.dst
	}
	return p.src
}

func tcpPair(src, dst net.Conn) (s, d *net.TCPConn, ok bool) {
	s, ok1 := src.(*net.TCPConn)
	d, ok2 := dst.(*net.TCPConn)
	return s, d, ok1 && ok2
}

func (p *pump) markProgress() { p.lastProgress.Store(p.relay.set.ticks.Load()) }

// idleTime is the least time since the last progress; it is negative where that came
// after now was read.
func (p *pump) idleTime(now uint32) time.Duration {
	return time.Duration(int32(now-p.lastProgress.Load())-1) * tickInterval
}

// requestPark makes the pump's next wait for the source fail, so that it parks. Asking
// a pump that has just become busy again costs it one needless parking.
func (p *pump) requestPark() {
	if p.state.CompareAndSwap(stateRunning, stateParkRequested) {
		_ = parking.TCP(p.src).SetReadDeadline(time.Unix(1, 0))
	}
}

// cancelPark lets reads wait again, and only then lets the clock ask again.
func (p *pump) cancelPark(next uint32) {
	_ = parking.TCP(p.src).SetReadDeadline(time.Time{})
	p.state.Store(next)
}

// takeUnreported is what has been relayed since it was last called. relay.mu is held.
func (p *pump) takeUnreported() int64 {
	n := p.copiedBytes.Load() - p.reportedBytes
	p.reportedBytes += n
	return n
}
