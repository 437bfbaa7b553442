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

// doubt finds out whether a backend that has not said an octet for SilenceMax is
// slow, or the process behind the connection hangs: nothing else tells, because the
// kernel goes on acknowledging. A second connection is asked. If it is answered, the
// first is given up: a loss.
//
// A connection is never given up over a command that changes something, because a
// process that hangs may still do it later; and only once over any other.
func (s *session) doubt() error {
	most := s.backend.settings.SilenceMax
	if most == 0 || !s.resumes || s.pinning != "" || !s.canGiveUp() || s.silentFor() < most || s.hub.age()-s.doubted < most {
		return nil
	}
	answered := s.isAnsweredElsewhere()
	s.doubted = s.hub.age()
	if !answered || s.silentFor() < most || s.up.Stirs() {
		return nil
	}
	s.request.givenUp = true // if it is sent again, it is another entry
	for i := range s.sent.all() {
		s.sent.all()[i].givenUp = true
	}
	return s.upstreamLost(errSilent)
}

// doubtLater has the clock wake a session that rests while an answer is due.
func (s *session) doubtLater() {
	most := s.backend.settings.SilenceMax
	if most == 0 || !s.resumes || s.pinning != "" || !s.canGiveUp() {
		return
	}
	last := max(s.hub.age()-s.silentFor(), s.doubted)
	s.wakeIn(max(last+most-s.hub.age(), 0) + rand.N(most/8+1)) // not all of a backend's at once
}

// silentFor is the time since the last octet on the lease, either way.
func (s *session) silentFor() time.Duration {
	return time.Duration(s.hub.shared.Clock.Now()-s.up.Since()) * tick
}

// canGiveUp says whether everything that the backend owes may be asked for again
// elsewhere, and has not been already. That is so of a command of which it has not
// had the whole, too.
func (s *session) canGiveUp() bool {
	all := s.sent.all()
	for i, e := range all {
		begun := s.cutShort && i == len(all)-1
		if e.givenUp || (!e.retry || e.spec.Writes) && !begun {
			return false
		}
	}
	return len(all) > 0 || s.idling != nil && s.idling.ours != ""
}

// isAnsweredElsewhere asks on an auxiliary connection. That says nothing of the
// mailbox, so it is done at backends that are not Consistent too.
func (s *session) isAnsweredElsewhere() bool {
	ctx, cancel := context.WithTimeout(s.hub.ctx, auxLogin)
	defer cancel()
	aux, err := s.aux(ctx)
	if err != nil {
		return false
	}
	_ = s.relate(aux.Alerts()) // a client that is gone is missed by the next write
	if res, err := aux.Run(time.Now().Add(auxAnswer), "NOOP", s.alert); err != nil || res.Name != "OK" {
		s.account.Destroy(aux, metrics.DiscardError)
		return false
	}
	s.account.ReturnAux(aux)
	return true
}
