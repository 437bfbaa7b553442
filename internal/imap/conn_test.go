package imap

import (
	"context"
	"net"
	"testing"
	"time"
)

// cancelingConn is a connection whose writes are met by the end of a context.
type cancelingConn struct {
	net.Conn
	cancel   func()
	canceled chan struct{}
	deadline time.Time
}

func (c *cancelingConn) SetDeadline(t time.Time) error { c.deadline = t; return nil }

func (c *cancelingConn) Write(p []byte) (int, error) {
	c.cancel()
	<-c.canceled
	return len(p), nil
}

// A context that ends is noticed in two places at once, in no order.
func TestFinalWriteSurvivesContextCancellation(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	nc := &cancelingConn{cancel: cancel, canceled: make(chan struct{})}
	c := NewConn(nc, Commands, 512)
	context.AfterFunc(ctx, func() {
		c.cancel()
		close(nc.canceled)
	})
	c.WriteFinal(time.Minute, "* BYE\r\n")
	if time.Until(nc.deadline) <= 0 {
		t.Error("the time for the last words was taken away")
	}
}
