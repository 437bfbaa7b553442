package imap

import (
	"context"
	"net"
	"testing"
	"time"
)

// cancelingConn is a connection whose context is canceled during a write.
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

// WriteFinal and the cancellation of the context may happen in either order.
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
		t.Error("the cancellation overrode the deadline of WriteFinal")
	}
}
