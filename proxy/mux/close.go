package mux

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"syscall"
	"time"

	"go.uber.org/zap"

	"imapgate/internal/event"
	"imapgate/internal/imap"
	"imapgate/internal/parking"
	"imapgate/proxy/mux/wire"
	"imapgate/proxy/relay"
	"imapgate/proxy/upstream"
)

// Errors that end a goroutine without ending the session.
var (
	errParked     = errors.New("parked")
	errHandedOver = errors.New("handed over")
)

// closeError ends a session with a reason and the text of the BYE; "" for none.
type closeError struct {
	reason event.Reason
	bye    string
	err    error
}

func (e *closeError) Error() string {
	if e.err != nil {
		return string(e.reason) + ": " + e.err.Error()
	}
	return string(e.reason)
}

func (e *closeError) Unwrap() error { return e.err }

// Texts of BYE. They are constant, so that they reveal no internal errors.
const (
	byeLost        = "[UNAVAILABLE] Connection to mail store lost."
	byeUnavailable = "[UNAVAILABLE] Mail store is away, please reconnect."
	byeDeleted     = "Mailbox has been deleted."
	byeChanged     = "Mailbox has changed its identity, please reconnect."
	byeMoved       = "[UNAVAILABLE] Mailbox has been moved, please reconnect."
	byeRevoked     = "[UNAVAILABLE] Please log in again."
	byeExpired     = "[EXPIRED] Token has expired, please log in again." // RFC 5530
	byeProtocol    = "Too many or too long lines that are no commands."
)

// stopError returns the end of a session for a requested stop.
func stopError(reason event.Reason) *closeError {
	switch reason {
	case event.Idle:
		return &closeError{reason, "Disconnected for inactivity.", nil}
	case event.TokenExpired:
		return &closeError{reason, byeExpired, nil}
	}
	return &closeError{reason, "[UNAVAILABLE] Server is going down.", nil}
}

// wrapClientError turns an error of the client's connection into the end of the session;
// nil stays nil.
func (s *session) wrapClientError(err error) error {
	switch {
	case err == nil:
		return nil
	case s.stopReason.Load() != nil:
		return &closeError{reason: *s.stopReason.Load(), err: err}
	case errors.Is(err, wire.ErrStalled):
		return &closeError{reason: event.ClientStalled, err: err}
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return &closeError{reason: event.ClientClosed}
	}
	return &closeError{reason: event.ClientError, err: err}
}

// reply writes a response of the gateway to the client.
func (s *session) reply(text ...string) error {
	s.outBuf = s.outBuf[:0]
	for _, t := range text {
		s.outBuf = append(s.outBuf, t...)
	}
	s.finishRecord(s.outBuf[bytes.LastIndexByte(s.outBuf, '\n')+1:]) // no-op if this is not a tagged response
	_, err := s.client.Write(append(s.outBuf, "\r\n"...))
	return s.wrapClientError(err)
}

// replyTagged is reply with the tag of the current command.
func (s *session) replyTagged(text string) error { return s.reply(string(s.request.tag), " ", text) }

// Timeouts at the end of a session.
const (
	byeTimeout    = time.Second
	finishTimeout = time.Minute // for commands of a client that is gone, and for a session that must end
)

// end ends the session. Only the session's goroutine calls it.
func (s *session) end(err error) {
	e := (*closeError)(nil)
	if !errors.As(err, &e) {
		e = &closeError{reason: event.InternalError, err: err}
	}
	s.abortRecords()
	if s.idleState != nil {
		s.idleState.releaseSlot()
	}
	if e.reason == event.ClientLogout { // the client has its answer, and another session may wait for the connection
		s.releaseUpstream(e)
	}
	s.closeWithBye(e)
	s.releaseUpstream(e)
	s.account.Close()
	s.unregister()
	s.setStateMetric("")
	if e.bye != "" {
		s.hub.deps.Metrics.Mux.CountTermination(e.reason)
	}
	s.live.Finish(relay.Result{Reason: e.reason, Err: e.err})
}

// unregister ends the wakes and ticks of the session. It is idempotent.
func (s *session) unregister() {
	s.mu.Lock()
	wasEnded := s.isEnded
	s.isEnded, s.running = true, false
	s.mu.Unlock()
	if wasEnded {
		return
	}
	if s.wakeTimer != nil {
		s.wakeTimer.Stop()
	}
	s.hub.poller.Disarm(&s.client.ParkWaiter)
	s.live.Deactivate(s)
	s.live.Commands = uint64(s.commandCount)
	s.backend.sessionCount.Add(-1)
	s.hub.wg.Done()
}

// closeWithBye closes the client's connection within byeTimeout. A client that has
// received the beginning of a response receives nothing more: anything else would become
// part of a message.
func (s *session) closeWithBye(e *closeError) {
	if s.responsePartial {
		s.client.Abort()
		_ = s.client.Close()
		return
	}
	timer := time.AfterFunc(byeTimeout, s.client.Abort)
	defer timer.Stop()
	if e.bye != "" {
		_, _ = s.client.Write([]byte("* BYE " + e.bye + "\r\n")) // the client may be gone
	}
	if e.bye != "" || e.reason == event.ClientLogout {
		parking.Linger(s.client.NetConn())
	}
	_ = s.client.Close()
}

// releaseUpstream returns the lease to the pool if it is clean. Commands that must not be
// interrupted finish first.
func (s *session) releaseUpstream(e *closeError) {
	if s.upstream == nil {
		return
	}
	unfinished := !s.outstanding.isEmpty() || s.idleState != nil || s.commandPartial
	if unfinished && !s.commandPartial && s.mustFinish() {
		s.finishCommands()
	}
	if unfinished || e.reason == event.InternalError {
		s.account.Discard(s.unbindUpstream(), event.DiscardOutstanding)
		return
	}
	s.returnUpstream()
}

// returnUpstream returns the lease to the pool, or discards it if the next session could
// notice its state.
func (s *session) returnUpstream() {
	discard := s.pinReason != "" || s.tainted || s.mailbox != nil && s.mailbox.desynced
	switch conn := s.unbindUpstream(); {
	case discard:
		s.account.Discard(conn, event.DiscardPinned)
	case conn.Broken || s.awaitingContinuation || s.commandPartial || !s.outstanding.isEmpty() || !conn.AtBoundary():
		s.account.Discard(conn, event.DiscardOutstanding)
	default:
		s.account.Release(conn)
	}
}

// mustFinish reports whether an outstanding command must not be interrupted.
func (s *session) mustFinish() bool {
	for _, e := range s.outstanding.all() {
		if !e.retryable {
			return true
		}
	}
	return false
}

// finishCommands reads and drops the answers of the outstanding commands.
func (s *session) finishCommands() {
	s.upstream.SetDeadline(time.Now().Add(finishTimeout))
	for !s.outstanding.isEmpty() {
		isFirst := s.upstream.AtBoundary()
		seg, err := s.upstream.Next()
		if err != nil {
			return
		}
		if isFirst {
			s.outstanding.takeAnswered(seg.Bytes)
		}
	}
}

// recoverPanic ends a session after a panic, and only that session.
func (s *session) recoverPanic() {
	panicked := recover()
	if panicked == nil {
		return
	}
	s.hub.deps.Log.Error("panic recovered", zap.String("session", s.auditClient.Session), zap.String("fault", fmt.Sprintf("%T", panicked)),
		zap.ByteString("stack", debug.Stack()))
	defer func() {
		if second := recover(); second != nil { // panic in end
			s.unregister()
			s.live.Finish(relay.Result{Reason: event.InternalError})
			s.hub.deps.Log.Error("panic while a session ended", zap.String("session", s.auditClient.Session), zap.ByteString("stack", debug.Stack()))
		}
	}()
	s.client.Abort()
	s.responsePartial = true // the client's state is unknown, so nothing may follow
	s.end(&closeError{reason: event.InternalError})
}

// lostError reports the loss of the upstream.
type lostError struct{ err error }

func (e *lostError) Error() string { return "upstream: " + e.err.Error() }
func (e *lostError) Unwrap() error { return e.err }

// wrapUpstreamError turns an error of the lease into a loss; nil stays nil.
func (s *session) wrapUpstreamError(err error) error {
	if err == nil {
		return nil
	}
	return &lostError{err}
}

// errBye reports a loss that the backend has announced.
var errBye = errors.New("backend sent BYE")

// byeError returns the loss that a backend announces with line, "* BYE …". The error
// contains only what DescribeResponse permits.
func (s *session) byeError(line []byte) error {
	res, _ := imap.ParseResponse(bytes.TrimSuffix(line, []byte("\r\n"))) // treat a malformed line as a BYE without a text
	return s.wrapUpstreamError(fmt.Errorf("%w: %s", errBye, upstream.DescribeResponse(res)))
}

// lossReason returns the audit reason of a loss.
func lossReason(err error) event.LossReason {
	switch {
	case errors.Is(err, errBye):
		return event.LossBye
	case errors.Is(err, wire.ErrStalled), errors.Is(err, errSilent), errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return event.LossTimeout
	case errors.Is(err, errProtocol):
		return event.LossProtocol
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return event.LossClosed
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return event.LossReset
	}
	return event.LossReset
}

// asLost finds a loss in err. The end of a session is not a loss, whatever its cause.
func asLost(err error) (*lostError, bool) {
	if e := (*closeError)(nil); errors.As(err, &e) {
		return nil, false
	}
	lost := (*lostError)(nil)
	ok := errors.As(err, &lost)
	return lost, ok
}
