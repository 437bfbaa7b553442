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

	"imapgate/internal/audit"
	"imapgate/internal/imap"
	"imapgate/internal/metrics"
	"imapgate/internal/parking"
	"imapgate/proxy/mux/wire"
	"imapgate/proxy/upstream"
)

// What ends a goroutine without ending the session.
var (
	errParked     = errors.New("asleep")
	errHandedOver = errors.New("handed on")
)

// closeError ends a session: why, and the words of the BYE, "" for none.
type closeError struct {
	reason audit.Reason
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

// The words of a BYE. Constant: nothing that failed inside shows.
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

// stopError is the end that somebody else has ordered.
func stopError(reason audit.Reason) *closeError {
	switch reason {
	case audit.Idle:
		return &closeError{reason, "Disconnected for inactivity.", nil}
	case audit.Kicked:
		return &closeError{reason, "[UNAVAILABLE] Disconnected by the operator.", nil}
	case audit.TokenExpired:
		return &closeError{reason, byeExpired, nil}
	}
	return &closeError{reason, "[UNAVAILABLE] Server is going down.", nil}
}

// wrapClientError is the end of a session whose client failed; nil stays nil.
func (s *session) wrapClientError(err error) error {
	switch {
	case err == nil:
		return nil
	case s.stopReason.Load() != nil:
		return &closeError{reason: *s.stopReason.Load(), err: err}
	case errors.Is(err, wire.ErrStalled):
		return &closeError{reason: audit.ClientStalled, err: err}
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return &closeError{reason: audit.ClientClosed}
	}
	return &closeError{reason: audit.ClientLost, err: err}
}

// reply writes an answer of our own to the client.
func (s *session) reply(text ...string) error {
	s.outBuf = s.outBuf[:0]
	for _, t := range text {
		s.outBuf = append(s.outBuf, t...)
	}
	s.finishRecord(s.outBuf[bytes.LastIndexByte(s.outBuf, '\n')+1:]) // if that is an answer
	_, err := s.client.Write(append(s.outBuf, "\r\n"...))
	return s.wrapClientError(err)
}

// replyTagged is say with the tag of the command in hand.
func (s *session) replyTagged(text string) error { return s.reply(string(s.request.tag), " ", text) }

// Time for last words.
const (
	byeTimeout    = time.Second
	finishTimeout = time.Minute // for commands that a client has left behind, or that a session's end waits for
)

// end is the one end of a session, seen from its own goroutine.
func (s *session) end(err error) {
	e := (*closeError)(nil)
	if !errors.As(err, &e) {
		e = &closeError{reason: audit.InternalMistake, err: err}
	}
	s.abortRecords()
	if s.idleState != nil {
		s.idleState.releaseSlot()
	}
	if e.reason == audit.ClientLogout { // it has its answer, and another may wait for the connection
		s.releaseUpstream(e)
	}
	s.closeWithBye(e)
	s.releaseUpstream(e)
	s.account.Close()
	s.unregister()
	s.setStateMetric("")
	if e.bye != "" {
		s.hub.deps.Metrics.Mux.CountTermination(string(e.reason))
	}
	in, out := s.client.ByteCounts()
	s.onEnd(Result{Reason: e.reason, Err: e.err, BytesIn: in, BytesOut: out, Commands: uint64(s.commandCount)})
}

// unregister takes the session off every list.
func (s *session) unregister() {
	h := s.hub
	s.mu.Lock()
	s.isEnded, s.running = true, false
	s.mu.Unlock()
	h.poller.Disarm(&s.client.ParkWaiter)
	h.removeSession(s)
	s.reportBytes()
}

// removeSession takes a session off the Hub's lists, if it is there.
func (h *Hub) removeSession(s *session) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, found := h.sessions[s]; !found {
		return
	}
	delete(h.sessions, s)
	s.backend.sessionCount.Add(-1)
	delete(h.active, s)
	delete(h.expiries, s)
	h.wg.Done()
}

// closeWithBye closes the client's connection within byeTimeout, whatever it does. A
// client that has the beginning of a response gets nothing more: anything else
// would become part of a message.
func (s *session) closeWithBye(e *closeError) {
	if s.responsePartial {
		s.client.Abort()
		_ = s.client.Close()
		return
	}
	timer := time.AfterFunc(byeTimeout, s.client.Abort)
	defer timer.Stop()
	if e.bye != "" {
		_, _ = s.client.Write([]byte("* BYE " + e.bye + "\r\n")) // it may be gone
	}
	if e.bye != "" || e.reason == audit.ClientLogout {
		parking.Linger(s.client.NetConn())
	}
	_ = s.client.Close()
}

// releaseUpstream gives the lease back where it is as good as new. Commands that
// must not be done by half are left to finish first.
func (s *session) releaseUpstream(e *closeError) {
	if s.upstream == nil {
		return
	}
	unfinished := !s.outstanding.isEmpty() || s.idleState != nil || s.commandPartial
	if unfinished && !s.commandPartial && s.mustFinish() {
		s.finishCommands()
	}
	if unfinished || e.reason == audit.InternalMistake {
		s.account.Discard(s.unbindUpstream(), metrics.DiscardOutstanding)
		return
	}
	s.returnUpstream()
}

// returnUpstream returns the lease to those that wait, if it is in no state that the
// next session would find out about.
func (s *session) returnUpstream() {
	discard := s.pinReason != "" || s.tainted || s.mailbox != nil && s.mailbox.desynced
	switch conn := s.unbindUpstream(); {
	case discard:
		s.account.Discard(conn, metrics.DiscardPinned)
	case conn.Broken || s.awaitingContinuation || s.commandPartial || !s.outstanding.isEmpty() || !conn.AtBoundary():
		s.account.Discard(conn, metrics.DiscardOutstanding)
	default:
		s.account.Release(conn)
	}
}

// mustFinish says whether one of the outstanding commands was sent whole and is
// better not cut short.
func (s *session) mustFinish() bool {
	for _, e := range s.outstanding.all() {
		if !e.retryable {
			return true
		}
	}
	return false
}

// finishCommands reads the answers that nobody waits for any more.
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

// recoverPanic ends a session in which we broke down, and nobody else's.
func (s *session) recoverPanic() {
	panicked := recover()
	if panicked == nil {
		return
	}
	s.hub.deps.Log.Error("panic recovered", zap.String("session", s.auditClient.Session), zap.String("fault", fmt.Sprintf("%T", panicked)),
		zap.ByteString("stack", debug.Stack()))
	defer func() {
		if second := recover(); second != nil { // in the end itself: what is left of it is this session's alone
			s.hub.removeSession(s)
			s.hub.deps.Log.Error("fault in an end", zap.String("session", s.auditClient.Session), zap.ByteString("stack", debug.Stack()))
		}
	}()
	s.client.Abort()
	s.responsePartial = true // whatever it has, nothing may follow
	s.end(&closeError{reason: audit.InternalMistake})
}

// lostError is the loss of the upstream.
type lostError struct{ err error }

func (e *lostError) Error() string { return "upstream: " + e.err.Error() }
func (e *lostError) Unwrap() error { return e.err }

// wrapUpstreamError makes a loss of an error on the lease; nil stays nil.
func (s *session) wrapUpstreamError(err error) error {
	if err == nil {
		return nil
	}
	return &lostError{err}
}

// errBye is a loss that the backend has announced.
var errBye = errors.New("backend says goodbye")

// byeError is the loss that a backend announces with line, "* BYE …". Of its words the
// error has what Describe lets through.
func (s *session) byeError(line []byte) error {
	res, _ := imap.ParseResponse(bytes.TrimSuffix(line, []byte("\r\n"))) // malformed, it is a BYE without a text
	return s.wrapUpstreamError(fmt.Errorf("%w: %s", errBye, upstream.DescribeResponse(res)))
}

// lossReason is how the audit log calls a loss.
func lossReason(err error) audit.Why {
	switch {
	case errors.Is(err, errBye):
		return audit.LostBye
	case errors.Is(err, wire.ErrStalled), errors.Is(err, errSilent), errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return audit.LostTimeout
	case errors.Is(err, errProtocol):
		return audit.LostProtocol
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return audit.LostClosed
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return audit.LostReset
	}
	return audit.LostReset
}

// asLost finds the loss in an error. The end of a session is none, whatever it
// came from.
func asLost(err error) (*lostError, bool) {
	if e := (*closeError)(nil); errors.As(err, &e) {
		return nil, false
	}
	lost := (*lostError)(nil)
	ok := errors.As(err, &lost)
	return lost, ok
}
