package mux

import (
	"imapgate/internal/audit"
	"imapgate/internal/metrics"
)

// pin hands over a session whose connection has a state that no other can be
// given. Nothing is left unanswered; first is what the backend hears next.
func (s *session) pin(first []byte) error {
	if err := s.settle(); err != nil {
		return err
	}
	if !s.inStep() {
		if err := s.attachIn(moment{anywhere: true}, s.backend.settings.HoldMax); err != nil {
			return &ending{audit.UpstreamAway, byeAway, err}
		}
	}
	return s.handOver(s.pinning, first)
}

// handOver makes the session one whose bytes are spliced: errHandedOn. first is
// what the client has said last and the backend has not heard yet.
func (s *session) handOver(why audit.Why, first []byte) error {
	h := s.hub
	rec := audit.Mux{User: s.account.User(), Backend: s.backend.name, Why: why}
	if s.box != nil {
		rec.Mailbox = s.box.name
	}
	_ = h.rooms.Audit.Pinned(s.who, &rec) // without room it is counted as lost
	h.rooms.Metrics.Mux.Pinned(string(why))
	s.cutsAll() // nobody sees the answers
	s.journal = nil
	until := h.limits(s)
	up := s.give()
	h.asleep.Forget(&s.client.Sleeper)
	client, fromClient := s.client.Detach()
	backend, fromBackend := up.Detach()
	s.forgotten()
	s.move(metrics.Pinned)
	in, out := s.client.Counts()
	in -= int64(len(first) + len(fromClient))
	paceClient, paceBackend := s.paces()
	h.cfg.Splice(End{client, fromBackend, paceClient}, End{backend, append(first, fromClient...), paceBackend}, until, func(r Result) {
		s.account.Destroy(up, metrics.DiscardPinned)
		s.account.Close()
		s.move("")
		r.Up, r.Down, r.Commands = r.Up+in, r.Down+out, uint64(s.spoken)
		s.ended(r)
	})
	return errHandedOn
}
