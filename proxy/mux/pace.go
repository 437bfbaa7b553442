package mux

import (
	"context"
	"time"

	"imapgate/internal/imap"
)

// Budget is what a user may use; the sessions of one user share it. Its methods
// say how long to wait before there may be more.
type Budget interface {
	Command() time.Duration
	Read(n int) time.Duration                 // bytes from the client
	Written(n int) time.Duration              // bytes to the client
	Upload(ctx context.Context, n int64) bool // whether there is room for a message of n bytes, which is counted then
	Overdraw(n int64)                         // counts bytes of messages for which nobody has asked
}

// pacer holds a session to its user's budget.
type pacer struct {
	Budget
	read, written int64 // bytes that the budget knows of
}

// breath is how long a slowed session rests before it looks whether it is to end.
const breath = 100 * time.Millisecond

// pace rests for as long as the budget demands for the bytes that have passed.
// Neither side is read meanwhile, so TCP holds both back.
func (s *session) pace() {
	p := s.pacer
	if p == nil {
		return
	}
	in, out := s.client.Counts()
	wait := max(p.Read(int(in-p.read)), p.Written(int(out-p.written)))
	p.read, p.written = in, out
	s.slow(wait)
}

// paceCommand rests for as long as the budget demands before one more command.
func (s *session) paceCommand() {
	if s.pacer != nil {
		s.slow(s.pacer.Command())
	}
}

func (s *session) slow(wait time.Duration) {
	for ; wait > 0 && s.order.Load() == nil; wait -= breath {
		time.Sleep(min(wait, breath))
	}
}

const overQuota = " NO [OVERQUOTA] Upload limit of the day is reached."

// mayUpload says whether the budget has room for the first message of a command,
// which is as far as it can be refused: the others are counted as they come.
func (s *session) mayUpload(seg imap.Segment) bool {
	return s.pacer == nil || seg.Literal.Size <= 0 || s.pacer.Upload(s.hub.ctx, seg.Literal.Size)
}

// uploads counts a further message of a command.
func (s *session) uploads(seg imap.Segment) {
	if s.pacer != nil && seg.Kind == imap.Text && seg.Literal.Size > 0 {
		s.pacer.Overdraw(seg.Literal.Size)
	}
}

// paces are the session's, as whoever takes it over has to keep them.
func (s *session) paces() (client, backend func(n int) time.Duration) {
	if s.pacer == nil {
		return nil, nil
	}
	return s.pacer.Read, s.pacer.Written
}
