package splice

import (
	"errors"
	"io"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"imapgate/internal/quiet"
)

// chunk bounds how much a series of splice(2) calls moves before the pump counts
// it: little enough that a slow reader of it is not taken for none.
const chunk = 256 << 10

// pump is one direction of a session.
type pump struct {
	// Set once.
	relay    *Relay
	src, dst net.Conn
	pace     func(n int) time.Duration // nil: as fast as it goes

	// Owned by run.
	first []byte // to be sent before anything is read

	waiter quiet.Waiter // for src, while the pump is parked

	reported int64 // Guarded by relay.mu.

	bytes   atomic.Int64
	last    atomic.Uint32 // tick of the last progress
	writing atomic.Bool   // run is in a write, not in a read
	parked  bool          // Owned by run. Once at least.
	state   atomic.Uint32 // of run, as far as the clock asks it to park
}

// The states of a pump. Only a relaying one can be asked: the clock may be late,
// and a pump without a goroutine would stay asked, and be taken for a stuck one.
const (
	still    uint32 = iota // no goroutine, or one that cannot be spared
	relaying               // one that has not been asked
	asked                  // one whose reads fail
)

// Wake gives the pump its goroutine for something that has come. Start and the
// idle set call it, each time when there is none.
func (p *pump) Wake() {
	p.progress()
	p.start(relaying)
}

// start gives the pump its goroutine, unless the session is over.
func (p *pump) start(state uint32) {
	r := p.relay
	r.mu.Lock()
	over := r.over
	if !over {
		r.running++
	}
	r.mu.Unlock()
	if over {
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
	conn, err := p.relayBytes()
	idle := conn == p.src && errors.Is(err, os.ErrDeadlineExceeded)
	if !idle {
		p.done(conn, err)
	}
	s.mu.Lock()
	delete(s.pumps, p)
	s.mu.Unlock()
	if idle {
		p.unask(still)
		quiet.Trim(p.src)
	} else {
		p.state.Store(still)
	}
	p.relay.mu.Lock()
	p.relay.running--
	over := p.relay.over
	p.relay.mu.Unlock()
	if idle && !over {
		p.park() // from here on the pump may already run again
		return
	}
	p.relay.settle()
}

// park waits for the source without a goroutine. A socket that is closed has no
// need to: its session is over. Where the kernel has no room for another one, the
// pump keeps a goroutine, and is not asked again.
func (p *pump) park() {
	s, first := p.relay.set, !p.parked
	p.parked = true
	err := s.idle.Wait(&p.waiter, p.src, p)
	switch {
	case err == nil && first:
		s.parkings.Add(1)
	case err != nil && !errors.Is(err, net.ErrClosed):
		p.start(still)
	}
}

// done ends the direction: its source hung up (err is nil), or conn failed.
func (p *pump) done(conn net.Conn, err error) {
	r := p.relay
	if err != nil && (p == &r.down || conn == p.src) {
		r.lost(conn, err)
		return
	}
	if err != nil {
		// A backend that takes no more may have said why: its BYE is still to
		// be read.
		r.note(BackendLost, err)
		r.shut()
		return
	}
	r.note(p.hungUp(), nil)
	p.progress()
	p.writing.Store(true)   // a full socket can hold TLS's goodbye up
	_ = quiet.HangUp(p.dst) // what is wrong with dst, the other direction finds out
	p.writing.Store(false)
	r.shut()
}

func (p *pump) hungUp() Reason {
	if p == &p.relay.up {
		return ClientClosed
	}
	return BackendClosed
}

// relayBytes copies until the source ends (nil), or one side fails: which, and
// how.
func (p *pump) relayBytes() (net.Conn, error) {
	if len(p.first) > 0 {
		if err := p.write(p.first); err != nil {
			return p.dst, err
		}
		p.first = nil
	}
	free := p.relay.set.free
	buf := free.Small.Get().(*[quiet.SmallBuffer]byte)
	filled, conn, err := p.copySmall(buf[:])
	clear(buf[:])
	free.Small.Put(buf)
	if !filled {
		return conn, err
	}
	if src, dst, ok := bothTCP(p.src, p.dst); ok {
		return p.spliceBytes(src, dst)
	}
	big := free.Large.Get().(*[quiet.LargeBuffer]byte)
	conn, err = p.copyLarge(big[:])
	clear(big[:])
	free.Large.Put(big)
	return conn, err
}

// copySmall relays commands and answers. It returns early, filled, when buf is
// too small for what comes.
func (p *pump) copySmall(buf []byte) (filled bool, conn net.Conn, err error) {
	for {
		n, err := p.src.Read(buf)
		if conn, err := p.pass(buf[:n], err); conn != nil {
			return false, conn, err
		}
		if n == len(buf) {
			return true, nil, nil
		}
	}
}

// copyLarge relays mail: as much at a time as there is.
func (p *pump) copyLarge(buf []byte) (net.Conn, error) {
	p.relay.set.free.ReadAhead(p.src)
	for {
		n, err := p.src.Read(buf)
		if err == nil {
			n, err = p.readMore(buf, n)
		}
		if conn, err := p.pass(buf[:n], err); conn != nil {
			return conn, err
		}
	}
}

// readMore adds to the n bytes in buf the records that have been read ahead. It
// waits for nothing: half a record is left for the next time.
func (p *pump) readMore(buf []byte, n int) (int, error) {
	for n <= len(buf)-quiet.MaxRecord {
		m, err := quiet.ReadNow(p.src, buf[n:])
		n += m
		if errors.Is(err, quiet.ErrNothing) {
			return n, nil
		}
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// pass writes what was read, and says which side ended or failed, if one did.
func (p *pump) pass(b []byte, err error) (net.Conn, error) {
	if len(b) > 0 {
		if err := p.write(b); err != nil {
			return p.dst, err
		}
	}
	if err != nil {
		return p.src, ended(err)
	}
	return nil, nil
}

// ended is nil for a source that hung up. A TLS client that closes without a
// close_notify has hung up too: IMAP frames its own messages.
func ended(err error) error {
	if err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil
	}
	return err
}

func (p *pump) write(b []byte) error {
	p.progress()
	p.writing.Store(true)
	err := p.relay.set.free.Write(p.dst, b)
	p.writing.Store(false)
	p.progress()
	if err == nil {
		p.bytes.Add(int64(len(b)))
		p.slow(len(b))
	}
	return err
}

// breath is how long a slowed pump rests before it looks whether its session is
// over.
const breath = 100 * time.Millisecond

// slow rests after n bytes for as long as the pace demands: the source is left
// unread, and TCP holds it back. To rest is no standstill.
func (p *pump) slow(n int) {
	if p.pace == nil {
		return
	}
	for d := p.pace(n); d > 0 && !p.relay.ending(); d -= breath {
		time.Sleep(min(d, breath))
		p.progress()
	}
}

// spliceBytes relays mail between plain sockets: the kernel moves the bytes
// (splice(2), by net.TCPConn.ReadFrom), and nothing passes through here. It
// holds two descriptors more, even while it waits, so that commands and answers
// go without it.
func (p *pump) spliceBytes(src, dst *net.TCPConn) (net.Conn, error) {
	limited := io.LimitedReader{R: src}
	for {
		limited.N = chunk
		n, err := dst.ReadFrom(&limited)
		if n > 0 {
			p.bytes.Add(n)
			p.progress()
			p.slow(int(n))
		}
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded) && n > 0:
			p.unask(relaying) // not so quiet
		case err != nil:
			return p.blame(err), err
		case limited.N == chunk:
			return p.src, nil
		}
	}
}

// blame says which side of a splice failed; the kernel's word for a reset does
// not tell, and a source is reset more often.
func (p *pump) blame(err error) net.Conn {
	if errors.Is(err, syscall.EPIPE) {
		return p.dst
	}
	return p.src
}

func bothTCP(src, dst net.Conn) (s, d *net.TCPConn, ok bool) {
	s, ok1 := src.(*net.TCPConn)
	d, ok2 := dst.(*net.TCPConn)
	return s, d, ok1 && ok2
}

func (p *pump) progress() { p.last.Store(p.relay.set.tick.Load()) }

// silence is the least time since the last progress; it is negative where that came
// after now was read.
func (p *pump) silence(now uint32) time.Duration {
	return time.Duration(int32(now-p.last.Load())-1) * tick
}

// ask makes the pump's next wait for the source fail, so that it parks. Asking
// a pump that has just become busy again costs it one needless parking.
func (p *pump) ask() {
	if p.state.CompareAndSwap(relaying, asked) {
		_ = quiet.TCP(p.src).SetReadDeadline(time.Unix(1, 0))
	}
}

// unask lets reads wait again, and only then lets the clock ask again.
func (p *pump) unask(next uint32) {
	_ = quiet.TCP(p.src).SetReadDeadline(time.Time{})
	p.state.Store(next)
}

// unreported is what has been relayed since it was last called. relay.mu is held.
func (p *pump) unreported() int64 {
	n := p.bytes.Load() - p.reported
	p.reported += n
	return n
}
