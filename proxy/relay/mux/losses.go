package mux

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"imapgate/internal/event"
	"imapgate/internal/imap"
	"imapgate/proxy/relay"
	"imapgate/proxy/relay/mux/lease"
	"imapgate/proxy/relay/mux/wire"
	"imapgate/proxy/upstream"
)

// lostError reports the loss of the upstream.
type lostError struct{ err error }

func (e *lostError) Error() string { return "upstream: " + e.err.Error() }
func (e *lostError) Unwrap() error { return e.err }

// wrapLost turns an error of the lease into a loss; nil stays nil.
func wrapLost(err error) error {
	if err == nil {
		return nil
	}
	return &lostError{err}
}

// wrapRunError separates the end of the session from the loss of the upstream in an error
// of Run.
func wrapRunError(err error) error {
	if e, isEnd := errors.AsType[*relay.CloseError](err); isEnd {
		return e
	}
	return wrapLost(err)
}

// byeError returns the loss that a backend announces with line, "* BYE …". The error
// contains only what DescribeResponse permits.
func byeError(line []byte) error {
	res, _ := imap.ParseResponse(bytes.TrimSuffix(line, []byte("\r\n"))) // treat a malformed line as a BYE without a text
	return wrapLost(fmt.Errorf("%w: %s", lease.ErrBye, upstream.DescribeResponse(res)))
}

// asLost finds a loss in err. The end of a session is not a loss, whatever its cause.
func asLost(err error) (*lostError, bool) {
	if _, isEnd := errors.AsType[*relay.CloseError](err); isEnd {
		return nil, false
	}
	return errors.AsType[*lostError](err)
}

func isLost(err error) bool {
	_, lost := asLost(err)
	return lost
}

func lossReason(err error) event.LossReason {
	switch {
	case errors.Is(err, lease.ErrBye):
		return event.LossBye
	case errors.Is(err, wire.ErrStalled), errors.Is(err, errSilent), errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return event.LossTimeout
	case errors.Is(err, lease.ErrProtocol):
		return event.LossProtocol
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return event.LossClosed
	}
	return event.LossReset
}
