package mux

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"imapgate/internal/event"
	"imapgate/internal/imap"
	"imapgate/proxy/relay"
	"imapgate/proxy/relay/mux/mailbox"
	"imapgate/proxy/relay/mux/pool"
	"imapgate/proxy/upstream"
)

// A session that relay.Session.Move or Pause asks to leave releases its lease at the next
// quiet moment, in runCommands. It takes the next one as after a loss, but follows the route
// to another backend. Each attempt to take one waits while the session is paused.

// errPaused reports that the session may take no connection now.
var errPaused = fmt.Errorf("%w: the session is paused", errBusy)

// movedError reports that the user's mailbox is at another backend, to which the session may
// move.
type movedError struct{ location Location }

func (e *movedError) Error() string { return "mailbox has been moved to " + e.location.Backend }
func (e *movedError) Unwrap() error { return errBusy } // retryTransient then follows it

// leaveDelay is the first delay between two attempts to leave in IDLE. Each interrupts the
// gateway's IDLE, and the backend may withhold expunges for long.
const leaveDelay = 5 * time.Second

// leave releases the lease of a session between two commands, or in IDLE, after it has read
// from it all that the client's view lacks. If that is not possible yet, it does nothing. It
// ends a session that is pinned.
func (s *session) leave() error {
	if s.upstream.pinReason != "" {
		return &relay.CloseError{Reason: event.Moved, Bye: byeMoved}
	}
	if i := s.client.idle; i != nil && !s.canDetach() {
		if wait := i.leaveRetry.At - s.hub.uptime(); wait > 0 {
			s.scheduleWake(wait)
			return nil
		}
		i.leaveRetry.At = s.hub.uptime() + i.leaveRetry.Lengthen(leaveDelay)
	}
	if s.upstream.Conn != nil {
		if err := s.relayPending(); err != nil {
			return err
		}
		if err := s.recoverLoss(s.completeView()); err != nil {
			return err
		}
	}
	if m := s.mailbox; m != nil && m.Exists() <= uint32(s.upstream.backend.settings.FlagResyncMaxMessages) {
		m.DropPendingModseq() // which could wait for long; all flags are sent again instead
	}
	switch {
	case s.upstream.Conn == nil:
	case !s.canDetach():
		return nil
	default:
		s.returnUpstream()
	}
	if i := s.client.idle; i != nil {
		i.releaseSlot() // of the backend that it leaves
		i.downSince, i.retryDelay, i.leaveRetry = 0, 0, mailbox.Retry{}
	}
	s.reportLeft()
	return nil
}

// completeView learns the UIDs that the client's view lacks, and all changes during IDLE.
func (x *exchange) completeView() error {
	if x.upstream.Conn == nil {
		return nil
	}
	if i := x.client.idle; i != nil && i.upstreamTag != "" {
		if err := x.stopUpstreamIdle(); err != nil {
			return err
		}
	}
	err := x.fetchMissingUIDs()
	if err != nil || x.client.idle == nil || x.upstream.pinReason != "" || x.canDetach() {
		return err
	}
	if err := x.flushChanges(); err != nil {
		return err
	}
	return x.fetchMissingUIDs()
}

// reportLeft records that the session has no connection.
func (x *exchange) reportLeft() {
	x.upstream.account.ReleaseLoginConn()
	x.upstream.mayMove = true
	x.live.SetLocation(x.upstream.backend.name, "", x.upstream.account.LoginName())
	x.live.ReportLeft()
}

// awaitResume waits while the session is paused and needs a connection, as long as its
// command may wait. Nothing has been sent for that command, so a requested stop ends the
// wait.
//
// Errors: errPaused, and the end of the session.
func (x *exchange) awaitResume(h *holdTimer) error {
	for x.upstream.Conn == nil {
		if x.live.IsLeaving() {
			x.reportLeft()
		}
		paused, remaining, reason := x.live.Paused(), h.remaining(0), x.client.stopReason.Load()
		switch {
		case paused == nil:
			return nil
		case reason != nil:
			return x.stopError(*reason)
		case remaining <= 0 || x.hub.ctx.Err() != nil:
			return errPaused
		}
		timer := time.NewTimer(min(remaining, throttleStep)) // interval of the checks above
		select {
		case <-paused:
		case <-timer.C:
		case <-x.hub.ctx.Done():
		}
		timer.Stop()
	}
	return nil
}

// followMove makes the session one of the backend to which the route leads, if it may move
// there. Otherwise its errors are those of checkRoute.
func (x *exchange) followMove() error {
	if !x.upstream.mayMove || x.upstream.Conn != nil {
		return nil
	}
	ctx, cancel := context.WithDeadline(x.hub.ctx, x.upstream.tryDeadline())
	defer cancel()
	err := x.upstream.checkRoute(ctx)
	if moved := (*movedError)(nil); errors.As(err, &moved) {
		return x.moveTo(ctx, moved.location)
	}
	return err
}

// moveTo logs the session in at another backend with its own credential, as at a new login.
// It ends a session that a new one would not be like: in another mode, with a credential of
// another kind, or without a capability that the client has seen.
func (x *exchange) moveTo(ctx context.Context, to Location) error {
	cannotMove := &relay.CloseError{Reason: event.Moved, Bye: byeMoved}
	target := x.hub.backends[to.Backend]
	if target == nil || to.Mode != event.ModeResume {
		return cannotMove
	}
	old, login := x.upstream.account, x.upstream.account.LoginName()
	if x.upstream.loginFromRoute {
		login = to.Login
	}
	account, err := old.LoginAt(ctx, target.pool, login)
	switch {
	case errors.Is(err, pool.ErrCredential):
		return cannotMove
	case errors.Is(err, pool.ErrExpired):
		return &relay.CloseError{Reason: event.TokenExpired, Bye: byeExpired, Err: err}
	case upstream.RevokesCredentials(err):
		return &relay.CloseError{Reason: event.LoginRevoked, Bye: byeRevoked, Err: err}
	case err != nil:
		return err
	case !includesAll(x.hub.OfferedCaps(to.Backend, account.Caps()), x.client.offeredCaps):
		account.Close()
		return cannotMove
	}
	old.Close()
	x.upstream.backend.sessionCount.Add(-1)
	target.sessionCount.Add(1)
	x.upstream.backend, x.upstream.account, x.upstream.moved = target, account, true
	x.client.records.backend = target.name
	x.live.SetLocation(target.name, "", login)
	if x.mailbox != nil {
		x.mailbox.MoveElsewhere()
	}
	return nil
}

// includesAll reports whether caps has all of the others.
func includesAll(caps, others imap.Caps) bool {
	for name := range strings.FieldsSeq(others.String()) {
		if !caps.Has(strings.ToUpper(name)) {
			return false
		}
	}
	return true
}
