package mux

import (
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"slices"
	"time"

	"go.uber.org/zap"

	"imapgate/internal/event"
	"imapgate/internal/parking"
	"imapgate/proxy/relay"
	"imapgate/proxy/relay/mux/wire"
)

// Errors that end a goroutine without ending the session.
var (
	errParked     = errors.New("parked")
	errHandedOver = errors.New("handed over")
)

// Texts of BYE. They are constant, so that they reveal no internal errors.
const (
	byeLost        = "[UNAVAILABLE] Connection to mail store lost."
	byeUnavailable = "[UNAVAILABLE] Mail store is away, please reconnect."
	byeDeleted     = "Mailbox has been deleted."
	byeChanged     = "Mailbox has changed its identity, please reconnect."
	byeMoved       = "[UNAVAILABLE] Mailbox has been moved, please reconnect."
	byeKicked      = "[UNAVAILABLE] Session ended by an administrator."
	byeRevoked     = "[UNAVAILABLE] Please log in again."
	byeExpired     = "[EXPIRED] Token has expired, please log in again." // RFC 5530
	byeProtocol    = "Too many or too long lines that are no commands."
)

// stopError returns the end of a session for a requested stop.
func (x *exchange) stopError(reason event.Reason) *relay.CloseError {
	text := x.live.EndText()
	switch {
	case text != "":
		return &relay.CloseError{Reason: reason, Bye: text}
	case reason == event.Kicked:
		return &relay.CloseError{Reason: reason, Bye: byeKicked}
	case reason == event.Idle:
		return &relay.CloseError{Reason: reason, Bye: "Disconnected for inactivity."}
	case reason == event.TokenExpired:
		return &relay.CloseError{Reason: reason, Bye: byeExpired}
	}
	return &relay.CloseError{Reason: reason, Bye: "[UNAVAILABLE] Server is going down."}
}

// wrapError turns an error of the client's connection into the end of the session;
// nil stays nil.
func (c *clientSide) wrapError(err error) error {
	switch {
	case err == nil:
		return nil
	case c.stopReason.Load() != nil:
		return &relay.CloseError{Reason: *c.stopReason.Load(), Err: err}
	case errors.Is(err, wire.ErrStalled):
		return &relay.CloseError{Reason: event.ClientStalled, Err: err}
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return &relay.CloseError{Reason: event.ClientClosed}
	}
	return &relay.CloseError{Reason: event.ClientError, Err: err}
}

// byeTimeout bounds the last writes to a client.
const byeTimeout = time.Second

// end ends the session. Only the session's goroutine calls it.
func (s *session) end(err error) {
	e := (*relay.CloseError)(nil)
	if !errors.As(err, &e) {
		e = &relay.CloseError{Reason: event.InternalError, Err: err}
	}
	s.client.abortRecords(s.mailbox)
	if s.client.idle != nil {
		s.client.idle.releaseSlot()
	}
	if e.Reason == event.ClientLogout { // the client has its answer, and another session may wait for the connection
		s.releaseUpstream(e)
	}
	s.client.closeWithBye(e)
	s.releaseUpstream(e)
	s.upstream.account.Close()
	s.unregister()
	s.setStateMetric("")
	if e.Bye != "" {
		s.hub.deps.Metrics.Mux.CountTermination(e.Reason)
	}
	s.live.Finish(relay.Result{Reason: e.Reason, Err: e.Err})
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
	s.upstream.backend.sessionCount.Add(-1)
	s.hub.wg.Done()
}

// closeWithBye closes the client's connection within byeTimeout. A client that has
// received the beginning of a response receives nothing more: anything else would become
// part of a message.
func (c *clientSide) closeWithBye(e *relay.CloseError) {
	if c.responsePartial {
		c.Abort()
		_ = c.Close()
		return
	}
	timer := time.AfterFunc(byeTimeout, c.Abort)
	defer timer.Stop()
	if e.Bye != "" {
		_, _ = c.Write([]byte("* BYE " + e.Bye + "\r\n")) // the client may be gone
	}
	if e.Bye != "" || e.Reason == event.ClientLogout {
		parking.Linger(c.NetConn())
	}
	_ = c.Close()
}

// releaseUpstream returns the lease to the pool if it is clean. Commands that must not be
// interrupted finish first.
func (x *exchange) releaseUpstream(e *relay.CloseError) {
	if x.upstream.Conn == nil {
		return
	}
	unfinished := !x.upstream.outstanding.isEmpty() || x.client.idle != nil || x.upstream.commandPartial
	if unfinished && !x.upstream.commandPartial && x.upstream.mustFinish() {
		x.upstream.finishCommands()
	}
	if unfinished || e.Reason == event.InternalError {
		x.upstream.account.Discard(x.unbindUpstream(), event.DiscardOutstanding)
		return
	}
	x.returnUpstream()
}

// returnUpstream returns the lease to the pool, or discards it if the next session could
// notice its state.
func (x *exchange) returnUpstream() {
	discard := x.upstream.pinReason != "" || x.upstream.tainted || x.mailbox != nil && x.mailbox.IsDesynced()
	switch conn := x.unbindUpstream(); {
	case discard:
		x.upstream.account.Discard(conn, event.DiscardPinned)
	case conn.Broken || x.upstream.awaitingContinuation || x.upstream.commandPartial || !x.upstream.outstanding.isEmpty() || !conn.AtBoundary():
		x.upstream.account.Discard(conn, event.DiscardOutstanding)
	default:
		x.upstream.account.Release(conn)
	}
}

// mustFinish reports whether an outstanding command must not be interrupted.
func (u *upstreamSide) mustFinish() bool {
	return slices.ContainsFunc(u.outstanding.all(), func(e outstandingCommand) bool { return !e.retryable })
}

// finishCommands reads and drops the answers of the outstanding commands.
func (u *upstreamSide) finishCommands() {
	u.SetDeadline(time.Now().Add(relay.FinishTimeout))
	for !u.outstanding.isEmpty() {
		isFirst := u.AtBoundary()
		seg, err := u.Next()
		if err != nil {
			return
		}
		if isFirst {
			u.outstanding.takeAnswered(seg.Bytes)
		}
	}
}

// recoverPanic ends a session after a panic, and only that session.
func (s *session) recoverPanic() {
	panicked := recover()
	if panicked == nil {
		return
	}
	s.hub.deps.Log.Error("panic recovered", zap.String("session", s.client.audit.Session), zap.String("fault", fmt.Sprintf("%T", panicked)),
		zap.ByteString("stack", debug.Stack()))
	defer func() {
		if second := recover(); second != nil { // panic in end
			s.unregister()
			s.live.Finish(relay.Result{Reason: event.InternalError})
			s.hub.deps.Log.Error("panic while a session ended", zap.String("session", s.client.audit.Session), zap.ByteString("stack", debug.Stack()))
		}
	}()
	s.client.Abort()
	s.client.responsePartial = true // the client's state is unknown, so nothing may follow
	s.end(&relay.CloseError{Reason: event.InternalError})
}
