package imap

import (
	"context"
	"net"
	"testing"
	"time"
)

// interrupted is a connection whose writes are met by the end of a context.
type interrupted struct {
	net.Conn
	cancel  func()
	stopped chan struct{}
	limit   time.Time
}

func (c *interrupted) SetDeadline(t time.Time) error { c.limit = t; return nil }

func (c *interrupted) Write(p []byte) (int, error) {
	c.cancel()
	<-c.stopped
	return len(p), nil
}

// A context that ends is noticed in two places at once, in no order.
func TestLastWordsAreSaidThoughTheContextEndsMeanwhile(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	nc := &interrupted{cancel: cancel, stopped: make(chan struct{})}
	c := NewConn(nc, Commands, 512)
	context.AfterFunc(ctx, func() {
		c.stop()
		close(nc.stopped)
	})
	c.LastWords(time.Minute, "* BYE\r\n")
	if time.Until(nc.limit) <= 0 {
		t.Error("the time for the last words was taken away")
	}
}
