package mux

import (
	"bytes"
	"errors"

	"imapgate/internal/event"
	"imapgate/internal/imap"
	"imapgate/proxy/relay"
	"imapgate/proxy/relay/mux/lease"
)

// A backend may send responses that no grammar permits: an empty line after a literal, a
// line end inside a quoted string, a quoted string that never ends, a response code
// without a response. Clients cope with most of them, and spliced clients receive them.
// So this package relays them too: the next response begins at an unknown octet, so the
// session is spliced from there on. Octets already received are never requested again.
//
// Such a response is not a violation of the backend, because the strangest ones are about
// messages, and anyone may send a message.

// unparsableError reports an unparsable response. The client has received everything
// before it, and unread input is the client's too.
type unparsableError struct {
	err    error
	unsent []byte // outstanding commands not yet sent to this upstream
}

func (e *unparsableError) Error() string { return "unparsable response: " + e.err.Error() }
func (e *unparsableError) Unwrap() error { return e.err }

var (
	errNotResponse        = errors.New("line is not a response")
	errUnterminatedString = errors.New("quoted string is not terminated")
)

// asUnparsable finds an unparsableError in err. The end of a session and a loss take
// precedence.
func asUnparsable(err error) (*unparsableError, bool) {
	if _, isEnd := errors.AsType[*relay.CloseError](err); isEnd || isLost(err) {
		return nil, false
	}
	return errors.AsType[*unparsableError](err)
}

// canHandOver reports whether the session can be spliced at once. It cannot:
//
//   - during an IDLE of the gateway;
//   - while the backend has received only the beginning of a command;
//   - while the rest of the client's command is discarded;
//   - with a literal that the gateway has requested.
func (x *exchange) canHandOver() bool {
	return x.upstreamMatchesClient() && x.client.idle == nil && !x.upstream.awaitingContinuation && !x.upstream.commandPartial && !x.client.discardingInput && !hasLiteral(x.client.request.unsent)
}

// upstreamMatchesClient reports whether the lease has the client's mailbox selected, so
// that it can be the client's permanently.
func (x *exchange) upstreamMatchesClient() bool {
	return x.mailbox != nil && x.upstream.attached || x.mailbox == nil && !x.upstream.Selected
}

// onUnparsable handles an unparsable response. It returns an unparsableError if the
// session can be handed over at once. Otherwise, errNotResponse concerns a line that the
// client has received: it returns nil, and the session is pinned later. If the lease
// cannot be the client's permanently, it is discarded after use instead. After any other
// err the start of the next response is unknown, and the upstream is lost.
func (x *exchange) onUnparsable(err error) error {
	x.upstream.countUnparsable()
	switch {
	case x.canHandOver():
		return &unparsableError{err: err}
	case errors.Is(err, errNotResponse) && !x.upstreamMatchesClient():
		x.upstream.tainted = true
		return nil
	case errors.Is(err, errNotResponse):
		if x.upstream.pinReason == "" {
			x.upstream.pinReason = event.PinResponse
		}
		return nil
	}
	return wrapLost(errors.Join(lease.ErrProtocol, err))
}

// countUnparsable counts an unparsable response, unless the client may be the cause.
func (u *upstreamSide) countUnparsable() {
	if !u.tainted {
		u.backend.hub.deps.Metrics.Mux.CountViolation(event.ResponseSyntax)
	}
}

// handOverUnparsable hands the session over if err is an unparsable response. The unsent
// part of the current command goes to the backend first.
func (s *session) handOverUnparsable(err error) error {
	unparsable, ok := asUnparsable(err)
	switch {
	case !ok:
		return err
	case s.client.stopReason.Load() != nil:
		return s.stopError(*s.client.stopReason.Load())
	}
	return s.handOver(event.PinResponse, append(unparsable.unsent, s.client.request.unsent...))
}

// isTaggedResponse reports whether a line is "TAG OK …", NO or BAD, with any tag.
func isTaggedResponse(line []byte) bool {
	tag, rest, ok := bytes.Cut(line, []byte(" "))
	return ok && len(tag) > 0 && tag[0] != '+' && (imap.HasWordPrefix(rest, "OK") || imap.HasWordPrefix(rest, "NO") || imap.HasWordPrefix(rest, "BAD"))
}
