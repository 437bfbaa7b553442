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
	"imapgate/internal/parking"
)

// What ends a read besides the socket's own errors.
var (
	ErrIdle    = errors.New("nothing has come for a while")
	ErrStalled = errors.New("the peer has stalled")
)

// maxLine bounds what is held of a line of a response, and unless Shared says otherwise
// a line of a command.
const maxLine = parking.LargeBuffer

// Clock is the coarse time of all Wires: ticks since the gateway began.
type Clock struct{ now atomic.Uint32 }

// Tick moves the clock on and returns the new time.
func (c *Clock) Tick() uint32 { return c.now.Add(1) }

// Now is the time in ticks.
func (c *Clock) Now() uint32 { return c.now.Load() }

// Conn is one connection of a session, once it is open.
type Conn struct {
	imap.Reader

	// Set once.
	conn      net.Conn
	resources *Resources
	maxUnread int // bytes that may be unread

	// Owned by whoever parks the session.
	ParkWaiter parking.Waiter

	mu sync.Mutex // held while a deadline is set to end a wait, or taken back

	activity          atomic.Uint32
	activitySince     atomic.Uint32 // tick at which doing began
	lastByte          atomic.Uint32 // tick of the last byte
	stalled           atomic.Bool
	bytesIn, bytesOut atomic.Int64 // bytes read, written
}

// What a Wire is doing.
const (
	noActivity       uint32 = iota
	waitingForInput         // in a read that can be asked to end
	waitInterrupted         // … and has been
	readingMore             // in a read of something that has begun
	readingTLSBuffer        // in a read of what TLS holds, which asks nobody
	writingBytes
)

// Open makes w, which is part of what uses it, the end of conn. first is what was
// already read from it.
func (c *Conn) Open(conn net.Conn, preread []byte, side imap.Side, resources *Resources) {
	c.conn, c.resources, c.maxUnread = conn, resources, maxLine
	if side == imap.Commands {
		c.maxUnread = max(resources.MaxLine, maxLine)
	}
	c.Reader = *imap.NewReader(c, side, c.maxUnread)
	c.Preload(preread)
	c.lastByte.Store(c.resources.Clock.Now())
}

// Resources is what all Wires of a gateway share.
type Resources struct {
	Buffers *parking.BufferPool
	Clock   *Clock
	MaxLine int // bytes of a line of a command, with its CRLF; at least 64 KB
}

// NetConn is the connection, for the goroutine that parks the Wire.
func (c *Conn) NetConn() net.Conn { return c.conn }

// ByteCounts are the bytes read and written so far.
func (c *Conn) ByteCounts() (in, out int64) { return c.bytesIn.Load(), c.bytesOut.Load() }

// LastByteTick is the tick of the last byte, either way.
func (c *Conn) LastByteTick() uint32 { return c.lastByte.Load() }

// AwaitInput reads once, or until it has been quiet: ErrIdle.
func (c *Conn) AwaitInput() error {
	if c.Buffered() >= c.maxUnread { // there is no room for more
		return ErrIdle
	}
	c.beginActivity(waitingForInput)
	err := c.fillBuffer()
	c.activitySince.Store(c.resources.Clock.Now())
	if c.activity.CompareAndSwap(waitingForInput, noActivity) {
		return c.wrapStalled(err)
	}
	c.mu.Lock()
	_ = c.conn.SetReadDeadline(time.Time{})
	c.activity.Store(noActivity)
	c.mu.Unlock()
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return ErrIdle
	}
	return c.wrapStalled(err)
}

// ReadMore reads once; the peer has begun something and has to go on.
func (c *Conn) ReadMore() error {
	c.beginActivity(readingMore)
	err := c.fillBuffer()
	c.endActivity()
	return c.wrapStalled(err)
}

// ReadTLSBuffered takes what TLS holds in this process: false when that is nothing. It
// waits for nobody.
func (c *Conn) ReadTLSBuffered() (bool, error) {
	if _, plain := c.conn.(*net.TCPConn); plain || c.Buffered() >= c.maxUnread {
		return false, nil
	}
	c.beginActivity(readingTLSBuffer)
	err := c.fillBuffer()
	c.endActivity()
	if errors.Is(err, parking.ErrWouldBlock) {
		return false, nil
	}
	return err == nil, err
}

// HasUnread says whether something has come that nobody has read, or the end of
// the connection: in the Reader, in what TLS holds, at the kernel. It waits for
// nobody.
func (c *Conn) HasUnread() bool {
	if c.Buffered() > 0 {
		return true
	}
	decrypted, err := c.ReadTLSBuffered()
	return decrypted || err != nil || c.hasArrived()
}

// Write sends p whole.
func (c *Conn) Write(p []byte) (int, error) {
	c.beginActivity(writingBytes)
	err := c.resources.Buffers.Write(c.conn, p)
	c.endActivity()
	if err != nil {
		return 0, c.wrapStalled(err)
	}
	c.bytesOut.Add(int64(len(p)))
	c.lastByte.Store(c.resources.Clock.Now())
	return len(p), nil
}

// SetDeadline makes reads and writes fail at t; zero lifts it.
func (c *Conn) SetDeadline(t time.Time) { _ = c.conn.SetDeadline(t) }

// ReleaseBuffers gives the buffers back when nothing is unread.
func (c *Conn) ReleaseBuffers() {
	if c.Buffered() > 0 {
		return
	}
	c.releaseBuffer(c.SwapBuffer(nil))
	parking.ReleaseBuffers(c.conn)
}

// Close closes the connection, with TLS's goodbye.
func (c *Conn) Close() error {
	err := c.conn.Close()
	c.ReleaseBuffers()
	return err
}

// Abort closes the socket under TLS: no goodbye, so that a peer in the middle of
// a literal can tell that it did not get all of it.
func (c *Conn) Abort() { _ = parking.TCP(c.conn).Close() }

// Detach hands the connection on, with what was read too far.
func (c *Conn) Detach() (net.Conn, []byte) {
	for more := true; more; { // a socket is asked again only when memory is empty
		more, _ = c.ReadTLSBuffered() // its next reader gets the error
	}
	return c.conn, c.TakeBuffered()
}

// OnTick is the clock's. A wait of more than patience ticks is asked to end; a
// peer that has let us wait for limit ticks in the middle of something is cut off.
func (c *Conn) OnTick(maxWait, maxStall uint32) {
	elapsed := c.resources.Clock.Now() - c.activitySince.Load()
	switch c.activity.Load() {
	case waitingForInput:
		if elapsed > maxWait {
			c.InterruptWait()
		}
	case readingMore, writingBytes:
		if elapsed > maxStall {
			c.stalled.Store(true)
			c.Abort()
		}
	}
}

// InterruptWait asks a wait to end, if there is one.
func (c *Conn) InterruptWait() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.activity.CompareAndSwap(waitingForInput, waitInterrupted) {
		_ = c.conn.SetReadDeadline(time.Unix(1, 0))
	}
}

// Read is the Reader's source.
func (c *Conn) Read(p []byte) (int, error) {
	if c.activity.Load() == readingTLSBuffer {
		n, err := parking.ReadBuffered(c.conn, p)
		c.countRead(n)
		return n, err
	}
	n, err := c.conn.Read(p)
	large := c.BufferSize() == parking.LargeBuffer // mail flows: as much at a time as there is
	for large && err == nil && len(p)-n >= parking.MaxRecord {
		m, more := parking.ReadBuffered(c.conn, p[n:])
		n += m
		if more != nil { // whatever it is, the next read finds it again
			break
		}
	}
	c.countRead(n)
	return n, err
}

// TryRead is the Reader's look for more.
func (c *Conn) TryRead(p []byte) (int, error) {
	n, err := parking.ReadAvailable(c.conn, p)
	c.countRead(n)
	return n, err
}

func (c *Conn) countRead(read int) {
	if read > 0 {
		c.bytesIn.Add(int64(read))
		c.lastByte.Store(c.resources.Clock.Now())
	}
}

// fillBuffer reads into a buffer that suits what comes: a small one for commands and
// answers, a large one for mail.
func (c *Conn) fillBuffer() error {
	if c.BufferSize() == 0 {
		c.SwapBuffer(c.resources.Buffers.Small.Get().(*[parking.SmallBuffer]byte)[:])
	}
	err := c.Fill()
	if c.Buffered() == c.BufferSize() && c.BufferSize() < parking.LargeBuffer {
		c.releaseBuffer(c.SwapBuffer(c.resources.Buffers.Large.Get().(*[parking.LargeBuffer]byte)[:]))
		c.resources.Buffers.ReadAhead(c.conn)
	}
	return err
}

// releaseBuffer gives a buffer back if it is a shared one; others are the collector's.
func (c *Conn) releaseBuffer(b []byte) {
	switch len(b) {
	case parking.SmallBuffer:
		clear(b)
		c.resources.Buffers.Small.Put((*[parking.SmallBuffer]byte)(b))
	case parking.LargeBuffer:
		clear(b)
		c.resources.Buffers.Large.Put((*[parking.LargeBuffer]byte)(b))
	}
}

func (c *Conn) beginActivity(activity uint32) {
	c.activitySince.Store(c.resources.Clock.Now())
	c.activity.Store(activity)
}

func (c *Conn) endActivity() {
	c.activity.Store(noActivity)
	c.activitySince.Store(c.resources.Clock.Now())
}

func (c *Conn) wrapStalled(err error) error {
	if err != nil && c.stalled.Load() {
		return fmt.Errorf("%w: %w", ErrStalled, err)
	}
	return err
}
