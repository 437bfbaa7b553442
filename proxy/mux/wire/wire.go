// Package wire is one end of a session whose commands are framed: a socket, the
// Reader in front of it, and buffers that are there while bytes flow and gone
// when it is quiet.
//
// It knows neither commands nor users. A Wire belongs to one goroutine at a
// time; only the clock, through Look and Interrupt, touches it from outside, and
// only to end a wait or to close what is stuck.
package wire

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"imapgate/internal/imap"
	"imapgate/internal/quiet"
)

// What ends a read besides the socket's own errors.
var (
	ErrQuiet   = errors.New("nothing has come for a while")
	ErrStalled = errors.New("the peer has stalled")
)

// maxLine bounds what is held of a line of a response, and unless Shared says otherwise
// a line of a command.
const maxLine = quiet.LargeBuffer

// Clock is the coarse time of all Wires: ticks since the gateway began.
type Clock struct{ now atomic.Uint32 }

// Tick moves the clock on and returns the new time.
func (c *Clock) Tick() uint32 { return c.now.Add(1) }

// Now is the time in ticks.
func (c *Clock) Now() uint32 { return c.now.Load() }

// Wire is one connection of a session, once it is open.
type Wire struct {
	imap.Reader

	// Set once.
	conn   net.Conn
	shared *Shared
	room   int // bytes that may be unread

	// Owned by whoever parks the session.
	Sleeper quiet.Waiter

	mu sync.Mutex // held while a deadline is set to end a wait, or taken back

	doing   atomic.Uint32
	since   atomic.Uint32 // tick at which doing began
	last    atomic.Uint32 // tick of the last byte
	stalled atomic.Bool
	in, out atomic.Int64 // bytes read, written
}

// What a Wire is doing.
const (
	nothing uint32 = iota
	waiting        // in a read that can be asked to end
	asked          // … and has been
	reading        // in a read of something that has begun
	taking         // in a read of what TLS holds, which asks nobody
	writing
)

// Open makes w, which is part of what uses it, the end of conn. first is what was
// already read from it.
func (w *Wire) Open(conn net.Conn, first []byte, side imap.Side, shared *Shared) {
	w.conn, w.shared, w.room = conn, shared, maxLine
	if side == imap.Commands {
		w.room = max(shared.MaxLine, maxLine)
	}
	w.Reader = *imap.NewReader(w, side, w.room)
	w.Preload(first)
	w.last.Store(w.shared.Clock.Now())
}

// Shared is what all Wires of a gateway share.
type Shared struct {
	Buffers *quiet.Buffers
	Clock   *Clock
	MaxLine int // bytes of a line of a command, with its CRLF; at least 64 KB
}

// Conn is the connection, for the goroutine that parks the Wire.
func (w *Wire) Conn() net.Conn { return w.conn }

// Counts are the bytes read and written so far.
func (w *Wire) Counts() (in, out int64) { return w.in.Load(), w.out.Load() }

// Since is the tick of the last byte, either way.
func (w *Wire) Since() uint32 { return w.last.Load() }

// Wait reads once, or until it has been quiet: ErrQuiet.
func (w *Wire) Wait() error {
	if w.Buffered() >= w.room { // there is no room for more
		return ErrQuiet
	}
	w.begin(waiting)
	err := w.fill()
	w.since.Store(w.shared.Clock.Now())
	if w.doing.CompareAndSwap(waiting, nothing) {
		return w.explain(err)
	}
	w.mu.Lock()
	_ = w.conn.SetReadDeadline(time.Time{})
	w.doing.Store(nothing)
	w.mu.Unlock()
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return ErrQuiet
	}
	return w.explain(err)
}

// More reads once; the peer has begun something and has to go on.
func (w *Wire) More() error {
	w.begin(reading)
	err := w.fill()
	w.end()
	return w.explain(err)
}

// Held takes what TLS holds in this process: false when that is nothing. It
// waits for nobody.
func (w *Wire) Held() (bool, error) {
	if _, plain := w.conn.(*net.TCPConn); plain || w.Buffered() >= w.room {
		return false, nil
	}
	w.begin(taking)
	err := w.fill()
	w.end()
	if errors.Is(err, quiet.ErrNothing) {
		return false, nil
	}
	return err == nil, err
}

// Pending says whether something has come that nobody has read, or the end of
// the connection: in the Reader, in what TLS holds, at the kernel. It waits for
// nobody.
func (w *Wire) Pending() bool {
	if w.Buffered() > 0 {
		return true
	}
	held, err := w.Held()
	return held || err != nil || w.arrived()
}

// Write sends p whole.
func (w *Wire) Write(p []byte) (int, error) {
	w.begin(writing)
	err := w.shared.Buffers.Write(w.conn, p)
	w.end()
	if err != nil {
		return 0, w.explain(err)
	}
	w.out.Add(int64(len(p)))
	w.last.Store(w.shared.Clock.Now())
	return len(p), nil
}

// Limit makes reads and writes fail at t; zero lifts it.
func (w *Wire) Limit(t time.Time) { _ = w.conn.SetDeadline(t) }

// Relax gives the buffers back when nothing is unread.
func (w *Wire) Relax() {
	if w.Buffered() > 0 {
		return
	}
	w.release(w.Swap(nil))
	quiet.Trim(w.conn)
}

// Close closes the connection, with TLS's goodbye.
func (w *Wire) Close() error {
	err := w.conn.Close()
	w.Relax()
	return err
}

// Cut closes the socket under TLS: no goodbye, so that a peer in the middle of
// a literal can tell that it did not get all of it.
func (w *Wire) Cut() { _ = quiet.TCP(w.conn).Close() }

// Detach hands the connection on, with what was read too far.
func (w *Wire) Detach() (net.Conn, []byte) {
	for held := true; held; { // a socket is asked again only when memory is empty
		held, _ = w.Held() // its next reader gets the error
	}
	return w.conn, w.Rest()
}

// Look is the clock's. A wait of more than patience ticks is asked to end; a
// peer that has let us wait for limit ticks in the middle of something is cut off.
func (w *Wire) Look(patience, limit uint32) {
	took := w.shared.Clock.Now() - w.since.Load()
	switch w.doing.Load() {
	case waiting:
		if took > patience {
			w.Interrupt()
		}
	case reading, writing:
		if took > limit {
			w.stalled.Store(true)
			w.Cut()
		}
	}
}

// Interrupt asks a wait to end, if there is one.
func (w *Wire) Interrupt() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.doing.CompareAndSwap(waiting, asked) {
		_ = w.conn.SetReadDeadline(time.Unix(1, 0))
	}
}

// Read is the Reader's source.
func (w *Wire) Read(p []byte) (int, error) {
	if w.doing.Load() == taking {
		n, err := quiet.ReadNow(w.conn, p)
		w.count(n)
		return n, err
	}
	n, err := w.conn.Read(p)
	bulk := w.Size() == quiet.LargeBuffer // mail flows: as much at a time as there is
	for bulk && err == nil && len(p)-n >= quiet.MaxRecord {
		m, more := quiet.ReadNow(w.conn, p[n:])
		n += m
		if more != nil { // whatever it is, the next read finds it again
			break
		}
	}
	w.count(n)
	return n, err
}

// ReadNow is the Reader's look for more.
func (w *Wire) ReadNow(p []byte) (int, error) {
	n, err := quiet.ReadArrived(w.conn, p)
	w.count(n)
	return n, err
}

func (w *Wire) count(read int) {
	if read > 0 {
		w.in.Add(int64(read))
		w.last.Store(w.shared.Clock.Now())
	}
}

// fill reads into a buffer that suits what comes: a small one for commands and
// answers, a large one for mail.
func (w *Wire) fill() error {
	if w.Size() == 0 {
		w.Swap(w.shared.Buffers.Small.Get().(*[quiet.SmallBuffer]byte)[:])
	}
	err := w.Fill()
	if w.Buffered() == w.Size() && w.Size() < quiet.LargeBuffer {
		w.release(w.Swap(w.shared.Buffers.Large.Get().(*[quiet.LargeBuffer]byte)[:]))
		w.shared.Buffers.ReadAhead(w.conn)
	}
	return err
}

// release gives a buffer back if it is a shared one; others are the collector's.
func (w *Wire) release(b []byte) {
	switch len(b) {
	case quiet.SmallBuffer:
		clear(b)
		w.shared.Buffers.Small.Put((*[quiet.SmallBuffer]byte)(b))
	case quiet.LargeBuffer:
		clear(b)
		w.shared.Buffers.Large.Put((*[quiet.LargeBuffer]byte)(b))
	}
}

func (w *Wire) begin(doing uint32) {
	w.since.Store(w.shared.Clock.Now())
	w.doing.Store(doing)
}

func (w *Wire) end() {
	w.doing.Store(nothing)
	w.since.Store(w.shared.Clock.Now())
}

func (w *Wire) explain(err error) error {
	if err != nil && w.stalled.Load() {
		return fmt.Errorf("%w: %w", ErrStalled, err)
	}
	return err
}
