package mux

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"imapgate/internal/metrics"
)

// errSilent is the loss of a connection on which nothing is answered while another
// one of the same user is.
var errSilent = errors.New("backend is silent on this connection alone")

// checkSilence finds out whether a backend that has not said an octet for SilenceTimeout is
// slow, or the process behind the connection hangs: nothing else tells, because the
// kernel goes on acknowledging. A second connection is asked. If it is answered, the
// first is given up: a loss.
//
// A connection is never given up over a command that changes something, because a
// process that hangs may still do it later; and only once over any other.
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
	s.request.upstreamDropped = true // if it is sent again, it is another entry
	for i := range s.outstanding.all() {
		s.outstanding.all()[i].upstreamDropped = true
	}
	return s.wrapUpstreamError(errSilent)
}

// scheduleSilenceCheck has the clock wake a session that rests while an answer is due.
func (s *session) scheduleSilenceCheck() {
	timeout := s.backend.settings.SilenceTimeout
	if timeout == 0 || !s.canResume || s.pinReason != "" || !s.canDropUpstream() {
		return
	}
	last := max(s.hub.uptime()-s.silenceDuration(), s.silenceCheckedAt)
	s.scheduleWake(max(last+timeout-s.hub.uptime(), 0) + rand.N(timeout/8+1)) // not all of a backend's at once
}

// silenceDuration is the time since the last octet on the lease, either way.
func (s *session) silenceDuration() time.Duration {
	return time.Duration(s.hub.shared.Clock.Now()-s.upstream.LastByteTick()) * tick
}

// canDropUpstream says whether everything that the backend owes may be asked for again
// elsewhere, and has not been already. That is so of a command of which it has not
// had the whole, too.
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

// auxResponds asks on an auxiliary connection. That says nothing of the
// mailbox, so it is done at backends that are not Consistent too.
func (s *session) auxResponds() bool {
	ctx, cancel := context.WithTimeout(s.hub.ctx, auxLoginTimeout)
	defer cancel()
	aux, err := s.acquireAux(ctx)
	if err != nil {
		return false
	}
	_ = s.forwardResponses(aux.TakeAlerts()) // a client that is gone is missed by the next write
	if res, err := aux.Run(time.Now().Add(auxReplyTimeout), "NOOP", s.forwardAlert); err != nil || res.Name != "OK" {
		s.account.Discard(aux, metrics.DiscardError)
		return false
	}
	s.account.ReleaseAux(aux)
	return true
}
