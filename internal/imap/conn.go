package imap

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"
)

// ErrInjected is returned when bytes stand behind a STARTTLS: they were sent in
// the clear and would be read as if TLS had protected them.
var ErrInjected = errors.New("bytes behind STARTTLS")

// expiredDeadline is a deadline that is over.
var expiredDeadline = time.Unix(1, 0)

// Conn is a connection until its login is done: a socket, the Reader in front
// of it and the one deadline for both directions. It alone sets deadlines, and
// a cancelled context beats every later Limit.
type Conn struct {
	*Reader

	// TryReadFunc, set before the first read, is the connection's Looker.TryRead; nil: it cannot be told.
	TryReadFunc func(nc net.Conn, p []byte) (int, error)

	// Owned by the goroutine of the dialogue.
	nc net.Conn

	mu       sync.Mutex
	canceled bool // Guarded by mu. A bound context has ended.
}

// NewConn begins a dialogue on nc, of which this end reads side with a buffer
// of at most size bytes.
func NewConn(nc net.Conn, side Side, size int) *Conn {
	c := &Conn{nc: nc}
	c.Reader = NewReader(c, side, size)
	return c
}

// NetConn is the connection as it is now, with TLS if that was started.
func (c *Conn) NetConn() net.Conn { return c.nc }

// Read is the Reader's source.
func (c *Conn) Read(p []byte) (int, error) { return c.nc.Read(p) }

// TryRead is the Reader's look for more.
func (c *Conn) TryRead(p []byte) (int, error) {
	if c.TryReadFunc == nil {
		return 0, nil
	}
	return c.TryReadFunc(c.nc, p)
}

// Write sends p whole.
func (c *Conn) Write(p []byte) (int, error) { return c.nc.Write(p) }

// Close closes the connection.
func (c *Conn) Close() error { return c.nc.Close() }

// SetDeadline makes every read and write fail at t, instead of the limit before.
func (c *Conn) SetDeadline(t time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.canceled {
		_ = c.nc.SetDeadline(t) // fails on a closed socket only
	}
}

// BindContext makes every read and write fail once ctx is done, until release is
// called.
func (c *Conn) BindContext(ctx context.Context) (release func() bool) {
	return context.AfterFunc(ctx, c.cancel)
}

func (c *Conn) cancel() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.canceled { // the last words are being said
		return
	}
	c.canceled = true
	_ = c.nc.SetDeadline(expiredDeadline)
}

// WriteFinal writes text within d, even when the context has ended, as the last
// thing before Close.
func (c *Conn) WriteFinal(timeout time.Duration, text string) {
	c.mu.Lock()
	c.canceled = true // no later Limit counts
	_ = c.nc.SetDeadline(time.Now().Add(timeout))
	c.mu.Unlock()
	_, _ = c.nc.Write([]byte(text)) // the peer may be gone
}

// Upgrade goes on over what wrap makes of the connection: TLS. Bytes that were
// read too far are an injection (RFC 9051 §6.2.1, §11.1): ErrInjected.
func (c *Conn) Upgrade(wrap func(net.Conn) net.Conn) error {
	if c.Buffered() > 0 {
		return ErrInjected
	}
	nc := wrap(c.nc)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.nc = nc
	c.Reader = NewReader(c, c.side, c.maxSize)
	return nil
}

// Detach ends the dialogue: the connection without a deadline, and the bytes
// that were read too far, are the caller's. A Conn whose context has ended
// keeps its deadline.
func (c *Conn) Detach() (net.Conn, []byte) {
	c.SetDeadline(time.Time{})
	return c.nc, c.TakeBuffered()
}
