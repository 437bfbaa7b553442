package mux

import (
	"bytes"
	"errors"

	"imapgate/internal/audit"
	"imapgate/internal/imap"
	"imapgate/internal/metrics"
)

// A backend may say what no grammar has: an empty line behind a literal, a line end
// inside a quoted string, a quoted string that never ends, a response code without its
// response. Clients live with most of it, and where they are spliced they get it. So
// they get it here: nobody knows where the next response begins, and from that octet on
// the session is spliced. What it has had already is never asked for again.
//
// It does not count against the backend, because the oddest responses are about
// messages, and anybody may send one.

// oddError is a response that cannot be followed. What came before it the client has
// got; what is unread is the client's too.
type oddError struct {
	err    error
	unsent []byte // commands that are outstanding and that this upstream has not been sent
}

func (e *oddError) Error() string { return "response that cannot be followed: " + e.err.Error() }
func (e *oddError) Unwrap() error { return e.err }

var (
	errNoResponse = errors.New("a line that is no response")
	errUnclosed   = errors.New("a quoted string does not end")
)

// asOdd finds the response in an error. The end of a session is none, nor is a loss.
func asOdd(err error) (*oddError, bool) {
	if e := (*ending)(nil); errors.As(err, &e) || isLost(err) {
		return nil, false
	}
	odd := (*oddError)(nil)
	ok := errors.As(err, &odd)
	return odd, ok
}

// mayHandOver says whether the session can be spliced at once: not in an IDLE of ours,
// nor while the backend has the beginning of a command and not its end, nor where the
// rest of what the client says goes to no backend, or has a literal that we have asked
// for.
func (s *session) mayHandOver() bool {
	return s.isItsOwn() && s.idling == nil && !s.plus && !s.cutShort && !s.apart && !hasLiteral(s.request.unsent)
}

// isItsOwn says whether the lease has selected what the client has, and so can be the
// client's for good.
func (s *session) isItsOwn() bool {
	return s.box != nil && s.attached || s.box == nil && !s.up.Selected
}

// odd is what becomes of a session whose backend has said what cannot be followed. Where
// it cannot be handed over yet, it is as soon as it can, and errNoResponse is nil: such
// a line is one that the client has got. A lease that is not the client's for good is
// not used again instead. With any other err nobody knows where the next response
// begins, and the upstream is given up.
func (s *session) odd(err error) error {
	s.countOdd()
	switch {
	case s.mayHandOver():
		return &oddError{err: err}
	case errors.Is(err, errNoResponse) && !s.isItsOwn():
		s.doubtful = true
		return nil
	case errors.Is(err, errNoResponse):
		if s.pinning == "" {
			s.pinning = audit.PinResponse
		}
		return nil
	}
	return s.upstreamLost(errors.Join(errProtocol, err))
}

// countOdd counts it, unless the client may be the cause.
func (s *session) countOdd() {
	if !s.doubtful {
		s.hub.rooms.Metrics.Mux.InvariantBroken(metrics.ResponseSyntax)
	}
}

// followed has the session spliced where err is a response that cannot be followed. What
// is here of the command in hand goes first.
func (s *session) followed(err error) error {
	odd, ok := asOdd(err)
	switch {
	case !ok:
		return err
	case s.order.Load() != nil:
		return orderedEnd(*s.order.Load())
	}
	return s.handOver(audit.PinResponse, append(odd.unsent, s.request.unsent...))
}

// isAnswer says whether a line is "TAG OK …", NO or BAD: of a command, whosever.
func isAnswer(line []byte) bool {
	tag, rest, ok := bytes.Cut(line, []byte(" "))
	return ok && len(tag) > 0 && tag[0] != '+' && (imap.HasWord(rest, "OK") || imap.HasWord(rest, "NO") || imap.HasWord(rest, "BAD"))
}
