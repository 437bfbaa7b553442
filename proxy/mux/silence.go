package mux

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"imapgate/internal/event"
	"imapgate/proxy/relay"
)

// errSilent reports the loss of a connection without answers while another connection of
// the same user gets answers.
var errSilent = errors.New("backend does not answer on this connection, but on another one")

// checkSilence finds out whether a backend that has sent nothing for SilenceTimeout is
// slow, or the process behind the connection hangs. The kernel does not show it, because
// it continues to acknowledge. So checkSilence queries a second connection. If that is
// answered, the first one is dropped: a loss.
//
// A connection is never dropped over a command that changes something, because a hanging
// process may still execute it. Over any other command it is dropped only once.
func (s *session) checkSilence() error {
	timeout := s.backend.settings.SilenceTimeout
	if timeout == 0 || !s.canResume || s.pinReason != "" || !s.canDropUpstream() || s.silenceDuration() < timeout || s.hub.uptime()-s.silenceCheckedAt < timeout {
		return nil
	}
	answered := s.auxResponds()
	s.silenceCheckedAt = s.hub.uptime()
	if !answered || s.silenceDuration() < timeout || s.upstream.IsReadable() {
		return nil
	}
	s.request.upstreamDropped = true // for the resend
	for i := range s.outstanding.all() {
		s.outstanding.all()[i].upstreamDropped = true
	}
	return s.wrapUpstreamError(errSilent)
}

// scheduleSilenceCheck schedules a wake for a parked session while an answer is due.
func (s *session) scheduleSilenceCheck() {
	timeout := s.backend.settings.SilenceTimeout
	if timeout == 0 || !s.canResume || s.pinReason != "" || !s.canDropUpstream() {
		return
	}
	last := max(s.hub.uptime()-s.silenceDuration(), s.silenceCheckedAt)
	s.scheduleWake(max(last+timeout-s.hub.uptime(), 0) + rand.N(timeout/8+1)) // spread over the sessions of a backend
}

// silenceDuration returns the time since the last octet on the lease in either direction.
func (s *session) silenceDuration() time.Duration {
	return relay.Elapsed(s.hub.shared.Clock.Now(), s.upstream.LastByteTick())
}

// canDropUpstream reports whether all outstanding commands may be resent elsewhere, and
// have not been before for this reason. A command that the backend has received only in
// part may be resent too.
func (s *session) canDropUpstream() bool {
	all := s.outstanding.all()
	for i, e := range all {
		partial := s.commandPartial && i == len(all)-1
		if e.upstreamDropped || (!e.retryable || e.spec.Writes) && !partial {
			return false
		}
	}
	return len(all) > 0 || s.idleState != nil && s.idleState.upstreamTag != ""
}

// auxResponds runs a NOOP on an auxiliary connection. The result does not depend on the
// mailbox, so it is valid without ReadAfterWrite, too.
func (s *session) auxResponds() bool {
	ctx, cancel := context.WithTimeout(s.hub.ctx, auxLoginTimeout)
	defer cancel()
	aux, err := s.acquireAux(ctx)
	if err != nil {
		return false
	}
	_ = s.forwardResponses(aux.TakeAlerts()) // the next write notices a client that is gone
	if res, err := aux.Run(time.Now().Add(auxReplyTimeout), "NOOP", s.forwardAlert); err != nil || res.Name != "OK" {
		s.account.Discard(aux, event.DiscardError)
		return false
	}
	s.account.ReleaseAux(aux)
	return true
}
