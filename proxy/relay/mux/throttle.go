package mux

import (
	"context"
	"time"

	"imapgate/internal/imap"
)

// Quota is a user's quota, shared by the user's sessions. Command, Read and Written
// return how long to wait before the session may continue.
type Quota interface {
	Command() time.Duration
	Read(n int) time.Duration                 // bytes from the client
	Written(n int) time.Duration              // bytes to the client
	Upload(ctx context.Context, n int64) bool // reports whether a message of n bytes fits, and counts it if so
	ForceUpload(n int64)                      // counts a message that cannot be refused
}

// throttle applies the user's quota to a session.
type throttle struct {
	Quota
	read, written int64 // bytes already reported to the quota
}

// throttleStep is the interval at which a throttled session checks for a stop request.
const throttleStep = 100 * time.Millisecond

// throttleBytes waits as long as the quota demands for the bytes relayed since the last
// call. Neither side is read in that time, so TCP slows both down.
func (c *clientSide) throttleBytes() {
	t := c.throttle
	if t == nil {
		return
	}
	in, out := c.ByteCounts()
	wait := max(t.Read(int(in-t.read)), t.Written(int(out-t.written)))
	t.read, t.written = in, out
	c.sleepThrottled(wait)
}

// throttleCommand waits as long as the quota demands before one more command.
func (c *clientSide) throttleCommand() {
	if c.throttle != nil {
		c.sleepThrottled(c.throttle.Command())
	}
}

func (c *clientSide) sleepThrottled(wait time.Duration) {
	for ; wait > 0 && c.stopReason.Load() == nil; wait -= throttleStep {
		time.Sleep(min(wait, throttleStep))
	}
}

const refusalOverQuota = " NO [OVERQUOTA] Upload limit of the day is reached."

// mayUpload reports whether the quota has room for the first message of a command. Later
// messages cannot be refused any more and are only counted.
func (c *clientSide) mayUpload(ctx context.Context, seg imap.Segment) bool {
	return c.throttle == nil || seg.Literal.Size <= 0 || c.throttle.Upload(ctx, seg.Literal.Size)
}

// countUpload counts a later message of a command.
func (c *clientSide) countUpload(seg imap.Segment) {
	if c.throttle != nil && seg.Kind == imap.LineEnd && seg.Literal.Size > 0 {
		c.throttle.ForceUpload(seg.Literal.Size)
	}
}

// readThrottles returns the session's throttles, for the splice that takes it over.
func (c *clientSide) readThrottles() (client, backend func(n int) time.Duration) {
	if c.throttle == nil {
		return nil, nil
	}
	return c.throttle.Read, c.throttle.Written
}
