// Package wire is one end of a session whose commands are framed: a socket, the Reader on top
// of it, and buffers that are held only while bytes flow.
//
// It knows neither commands nor users. A Conn belongs to one goroutine at a time. Others may
// call only OnTick, InterruptWait and Abort, to end a wait or the connection, and what reports
// its state: IsReadable, ByteCounts and LastByteTick.
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
	"imapgate/proxy/relay"
)

// Errors of reads and writes besides those of the socket.
var (
	ErrIdle    = errors.New("no input within the wait time")
	ErrStalled = errors.New("peer stalled")
)

// maxLine bounds the buffered part of a response line and, unless Resources.MaxLine is larger,
// of a command line, in bytes.
const maxLine = parking.LargeBuffer

// Conn is one connection of a session. It is valid after Open.
type Conn struct {
	imap.Reader

	// Set once.
	conn      net.Conn
	resources *Resources
	maxUnread int // bound of unread bytes

	// Owned by the goroutine that parks the session.
	ParkWaiter parking.Waiter

	mu sync.Mutex // held while the deadline that ends a wait is set or cleared

	activity          atomic.Uint32
	activitySince     atomic.Uint32 // tick at which activity began
	lastByte          atomic.Uint32 // tick of the last byte, either way
	stalled           atomic.Bool
	bytesIn, bytesOut atomic.Int64 // bytes read, written
}

// The values of activity.
const (
	noActivity       uint32 = iota
	waitingForInput         // in a read that can be interrupted
	waitInterrupted         // … and was
	readingMore             // in a read of the rest of a line or literal
	readingTLSBuffer        // in a read of bytes buffered by TLS, which does not block
	writingBytes
)

// Open initializes c as the end of conn. preread holds the bytes already read from it.
func (c *Conn) Open(conn net.Conn, preread []byte, side imap.Side, resources *Resources) {
	c.conn, c.resources, c.maxUnread = conn, resources, maxLine
	if side == imap.Commands {
		c.maxUnread = max(resources.MaxLine, maxLine)
	}
	c.Reader = *imap.NewReader(c, side, c.maxUnread)
	c.Preload(preread)
	c.bytesIn.Add(int64(len(preread)))
	c.lastByte.Store(c.resources.Clock.Now())
}

// Resources are shared by all Conns of a gateway.
type Resources struct {
	Buffers *parking.BufferPool
	Clock   *relay.Clock
	MaxLine int // bytes of a command line, with its CRLF; at least 64 KB
}

// NetConn returns the connection, for the goroutine that parks the session.
func (c *Conn) NetConn() net.Conn { return c.conn }

// ByteCounts returns the bytes read and written so far.
func (c *Conn) ByteCounts() (in, out int64) { return c.bytesIn.Load(), c.bytesOut.Load() }

// LastByteTick returns the tick of the last byte, either way.
func (c *Conn) LastByteTick() uint32 { return c.lastByte.Load() }

// AwaitInput reads once. It returns ErrIdle if the wait was interrupted or the buffer is full.
func (c *Conn) AwaitInput() error {
	if c.Buffered() >= c.maxUnread { // no space left
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

// ReadMore reads once, in the middle of a line or literal. A peer that stalls there is aborted.
func (c *Conn) ReadMore() error {
	c.beginActivity(readingMore)
	err := c.fillBuffer()
	c.endActivity()
	return c.wrapStalled(err)
}

// ReadTLSBuffered reads the bytes that TLS has buffered in this process, and returns false if
// there are none. It does not block.
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

// HasUnread reports whether unread bytes, or the end of the connection, are in the Reader, in
// TLS's buffer or in the kernel. It does not block.
func (c *Conn) HasUnread() bool {
	if c.Buffered() > 0 {
		return true
	}
	decrypted, err := c.ReadTLSBuffered()
	return decrypted || err != nil || c.hasArrived()
}

// IsReadable reports whether the kernel has bytes from the peer, or the end of the connection.
// It consumes nothing. Any goroutine may call it.
func (c *Conn) IsReadable() bool { return parking.IsReadable(c.conn) }

// hasArrived is IsReadable, or else reads for a millisecond. Bytes stay in the Reader; the next
// read returns the end of the connection again.
func (c *Conn) hasArrived() bool {
	if parking.CanTest {
		return c.IsReadable()
	}
	c.SetDeadline(time.Now().Add(time.Millisecond))
	defer c.SetDeadline(time.Time{})
	return !errors.Is(c.fillBuffer(), os.ErrDeadlineExceeded)
}

// Write sends all of p.
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

// SetDeadline makes reads and writes fail at t; zero clears the deadline.
func (c *Conn) SetDeadline(t time.Time) { _ = c.conn.SetDeadline(t) }

// ReleaseBuffers returns the buffers to their pools if nothing is unread.
func (c *Conn) ReleaseBuffers() {
	if c.Buffered() > 0 {
		return
	}
	c.releaseBuffer(c.SwapBuffer(nil))
	parking.ReleaseBuffers(c.conn)
}

// Close closes the connection, with a TLS close_notify.
func (c *Conn) Close() error {
	err := c.conn.Close()
	c.ReleaseBuffers()
	return err
}

// Abort closes the socket under TLS, without a close_notify. A peer in the middle of a literal
// can then detect that it is incomplete.
func (c *Conn) Abort() { _ = parking.TCP(c.conn).Close() }

// Detach returns the connection, which the caller now owns, and the bytes not yet consumed.
func (c *Conn) Detach() (net.Conn, []byte) {
	for more := true; more; { // a poll of the socket does not detect bytes buffered by TLS
		more, _ = c.ReadTLSBuffered() // the next reader gets the error
	}
	return c.conn, c.TakeBuffered()
}

// OnTick is called by the clock. It interrupts a wait that has lasted for maxWait, and aborts a
// peer that has stalled for maxStall in the middle of a transfer. The peer has not stalled if the
// kernel has its bytes, or takes more for it: then only this side's goroutine has not run.
func (c *Conn) OnTick(now uint32, maxWait, maxStall time.Duration) {
	activity := c.activity.Load() // first: beginActivity sets the time before it
	elapsed := relay.Elapsed(now, c.activitySince.Load())
	switch activity {
	case waitingForInput:
		if elapsed >= maxWait {
			c.InterruptWait()
		}
	case readingMore:
		if elapsed >= maxStall && !c.IsReadable() {
			c.abortStalled()
		}
	case writingBytes:
		if elapsed >= maxStall && !parking.IsWritable(c.conn) {
			c.abortStalled()
		}
	}
}

func (c *Conn) abortStalled() {
	c.stalled.Store(true)
	c.Abort()
}

// InterruptWait ends the current wait for input, if any.
func (c *Conn) InterruptWait() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.activity.CompareAndSwap(waitingForInput, waitInterrupted) {
		_ = c.conn.SetReadDeadline(time.Unix(1, 0))
	}
}

// Read is the source of the Reader.
func (c *Conn) Read(p []byte) (int, error) {
	if c.activity.Load() == readingTLSBuffer {
		n, err := parking.ReadBuffered(c.conn, p)
		c.countRead(n)
		return n, err
	}
	n, err := c.conn.Read(p)
	large := c.BufferSize() == parking.LargeBuffer // messages flow: read as much at a time as possible
	for large && err == nil && len(p)-n >= parking.MaxRecord {
		m, more := parking.ReadBuffered(c.conn, p[n:])
		n += m
		if more != nil { // the next read returns the error again
			break
		}
	}
	c.countRead(n)
	return n, err
}

// TryRead implements imap.TryReader.
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

// fillBuffer reads into a small buffer for commands and responses, or a large one for messages.
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

// releaseBuffer returns a shared buffer to its pool; others are garbage-collected.
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
