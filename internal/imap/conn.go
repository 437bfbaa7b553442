package imap

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"
)

// ErrInjected is returned when bytes follow STARTTLS in the clear, which would be read as if
// TLS had protected them.
var ErrInjected = errors.New("bytes after STARTTLS")

// expiredDeadline is a deadline in the past.
var expiredDeadline = time.Unix(1, 0)

// Conn is a connection before login: a socket, the Reader on top of it, and one deadline for
// both directions. Only Conn sets deadlines, so a cancelled context overrides every later
// SetDeadline.
type Conn struct {
	*Reader

	// TryReadFunc implements TryReader.TryRead for the connection. Set before the first read; nil: unsupported.
	TryReadFunc func(nc net.Conn, p []byte) (int, error)

	// Owned by the goroutine that uses the Conn.
	nc net.Conn

	mu       sync.Mutex
	canceled bool // Guarded by mu. A context bound by BindContext has ended.
}

// NewConn returns a Conn on nc that reads side with a buffer of at most size bytes.
func NewConn(nc net.Conn, side Side, size int) *Conn {
	c := &Conn{nc: nc}
	c.Reader = NewReader(c, side, size)
	return c
}

// NetConn returns the current connection, which is TLS after Upgrade.
func (c *Conn) NetConn() net.Conn { return c.nc }

// Read is the source of the Reader.
func (c *Conn) Read(p []byte) (int, error) { return c.nc.Read(p) }

// TryRead implements TryReader.
func (c *Conn) TryRead(p []byte) (int, error) {
	if c.TryReadFunc == nil {
		return 0, nil
	}
	return c.TryReadFunc(c.nc, p)
}

// Write sends all of p.
func (c *Conn) Write(p []byte) (int, error) { return c.nc.Write(p) }

// Close closes the connection.
func (c *Conn) Close() error { return c.nc.Close() }

// SetDeadline makes every read and write fail at t. It replaces the previous deadline.
func (c *Conn) SetDeadline(t time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.canceled {
		_ = c.nc.SetDeadline(t) // fails on a closed socket only
	}
}

// BindContext makes every read and write fail once ctx is done, until release is called.
func (c *Conn) BindContext(ctx context.Context) (release func() bool) {
	return context.AfterFunc(ctx, c.cancel)
}

func (c *Conn) cancel() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.canceled { // WriteFinal has begun
		return
	}
	c.canceled = true
	_ = c.nc.SetDeadline(expiredDeadline)
}

// WriteFinal writes text within timeout, even after the context has ended. Only Close may
// follow.
func (c *Conn) WriteFinal(timeout time.Duration, text string) {
	c.mu.Lock()
	c.canceled = true // later calls of SetDeadline have no effect
	_ = c.nc.SetDeadline(time.Now().Add(timeout))
	c.mu.Unlock()
	_, _ = c.nc.Write([]byte(text)) // the peer may have disconnected
}

// Upgrade replaces the connection by wrap's result, which is TLS. It returns ErrInjected if
// bytes were already read beyond STARTTLS (RFC 9051 §6.2.1, §11.1).
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

// Detach returns the connection and the buffered bytes, which the caller now owns. The deadline
// is cleared unless the context has ended.
func (c *Conn) Detach() (net.Conn, []byte) {
	c.SetDeadline(time.Time{})
	return c.nc, c.TakeBuffered()
}
