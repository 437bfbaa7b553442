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

// unparsableError is a response that cannot be followed. What came before it the client has
// got; what is unread is the client's too.
type unparsableError struct {
	err    error
	unsent []byte // commands that are outstanding and that this upstream has not been sent
}

func (e *unparsableError) Error() string { return "response that cannot be followed: " + e.err.Error() }
func (e *unparsableError) Unwrap() error { return e.err }

var (
	errNotResponse        = errors.New("a line that is no response")
	errUnterminatedString = errors.New("a quoted string does not end")
)

// asUnparsable finds the response in an error. The end of a session is none, nor is a loss.
func asUnparsable(err error) (*unparsableError, bool) {
	if e := (*closeError)(nil); errors.As(err, &e) || isLost(err) {
		return nil, false
	}
	unparsable := (*unparsableError)(nil)
	ok := errors.As(err, &unparsable)
	return unparsable, ok
}

// canHandOver says whether the session can be spliced at once: not in an IDLE of ours,
// nor while the backend has the beginning of a command and not its end, nor where the
// rest of what the client says goes to no backend, or has a literal that we have asked
// for.
func (s *session) canHandOver() bool {
	return s.upstreamMatchesClient() && s.idleState == nil && !s.awaitingContinuation && !s.commandPartial && !s.discardingInput && !hasLiteral(s.request.unsent)
}

// upstreamMatchesClient says whether the lease has selected what the client has, and so can be the
// client's for good.
func (s *session) upstreamMatchesClient() bool {
	return s.mailbox != nil && s.attached || s.mailbox == nil && !s.upstream.Selected
}

// onUnparsable is what becomes of a session whose backend has said what cannot be followed. Where
// it cannot be handed over yet, it is as soon as it can, and errNotResponse is nil: such
// a line is one that the client has got. A lease that is not the client's for good is
// not used again instead. With any other err nobody knows where the next response
// begins, and the upstream is given up.
func (s *session) onUnparsable(err error) error {
	s.countUnparsable()
	switch {
	case s.canHandOver():
		return &unparsableError{err: err}
	case errors.Is(err, errNotResponse) && !s.upstreamMatchesClient():
		s.tainted = true
		return nil
	case errors.Is(err, errNotResponse):
		if s.pinReason == "" {
			s.pinReason = audit.PinResponse
		}
		return nil
	}
	return s.wrapUpstreamError(errors.Join(errProtocol, err))
}

// countUnparsable counts it, unless the client may be the cause.
func (s *session) countUnparsable() {
	if !s.tainted {
		s.hub.deps.Metrics.Mux.CountViolation(metrics.ResponseSyntax)
	}
}

// handOverUnparsable has the session spliced where err is a response that cannot be followed. What
// is here of the command in hand goes first.
func (s *session) handOverUnparsable(err error) error {
	unparsable, ok := asUnparsable(err)
	switch {
	case !ok:
		return err
	case s.stopReason.Load() != nil:
		return stopError(*s.stopReason.Load())
	}
	return s.handOver(audit.PinResponse, append(unparsable.unsent, s.request.unsent...))
}

// isTaggedResponse says whether a line is "TAG OK …", NO or BAD: of a command, whosever.
func isTaggedResponse(line []byte) bool {
	tag, rest, ok := bytes.Cut(line, []byte(" "))
	return ok && len(tag) > 0 && tag[0] != '+' && (imap.HasWordPrefix(rest, "OK") || imap.HasWordPrefix(rest, "NO") || imap.HasWordPrefix(rest, "BAD"))
}
