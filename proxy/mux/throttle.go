package mux

import (
	"context"
	"time"

	"imapgate/internal/imap"
)

// Quota is what a user may use; the sessions of one user share it. Its methods
// say how long to wait before there may be more.
type Quota interface {
	Command() time.Duration
	Read(n int) time.Duration                 // bytes from the client
	Written(n int) time.Duration              // bytes to the client
	Upload(ctx context.Context, n int64) bool // whether there is room for a message of n bytes, which is counted then
	ForceUpload(n int64)                      // counts bytes of messages for which nobody has asked
}

// throttle holds a session to its user's budget.
type throttle struct {
	Quota
	read, written int64 // bytes that the budget knows of
}

// throttleStep is how long a slowed session rests before it looks whether it is to end.
const throttleStep = 100 * time.Millisecond

// throttleBytes rests for as long as the budget demands for the bytes that have passed.
// Neither side is read meanwhile, so TCP holds both back.
func (s *session) throttleBytes() {
	p := s.throttle
	if p == nil {
		return
	}
	in, out := s.client.ByteCounts()
	wait := max(p.Read(int(in-p.read)), p.Written(int(out-p.written)))
	p.read, p.written = in, out
	s.sleepThrottled(wait)
}

// throttleCommand rests for as long as the budget demands before one more command.
func (s *session) throttleCommand() {
	if s.throttle != nil {
		s.sleepThrottled(s.throttle.Command())
	}
}

func (s *session) sleepThrottled(wait time.Duration) {
	for ; wait > 0 && s.stopReason.Load() == nil; wait -= throttleStep {
		time.Sleep(min(wait, throttleStep))
	}
}

const refusalOverQuota = " NO [OVERQUOTA] Upload limit of the day is reached."

// mayUpload says whether the budget has room for the first message of a command,
// which is as far as it can be refused: the others are counted as they come.
func (s *session) mayUpload(seg imap.Segment) bool {
	return s.throttle == nil || seg.Literal.Size <= 0 || s.throttle.Upload(s.hub.ctx, seg.Literal.Size)
}

// countUpload counts a further message of a command.
func (s *session) countUpload(seg imap.Segment) {
	if s.throttle != nil && seg.Kind == imap.LineEnd && seg.Literal.Size > 0 {
		s.throttle.ForceUpload(seg.Literal.Size)
	}
}

// readThrottles are the session's, as whoever takes it over has to keep them.
func (s *session) readThrottles() (client, backend func(n int) time.Duration) {
	if s.throttle == nil {
		return nil, nil
	}
	return s.throttle.Read, s.throttle.Written
}
