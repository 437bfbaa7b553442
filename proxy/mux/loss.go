package mux

import (
	"errors"

	"imapgate/internal/audit"
	"imapgate/internal/metrics"
	"imapgate/proxy/mux/command"
)

// maxTries bounds how often what is outstanding is sent again without any of it
// being answered: a command may be what its backend dies of.
const maxTries = 3

// survive is what becomes of a session whose upstream is lost: nil when it goes
// on.
//
//   - In the middle of a response, nothing more may be written to the client.
//   - With nothing outstanding, it goes on without an upstream until it needs one.
//   - Commands that may be repeated are, in order.
//   - Of one that must not, nobody knows whether it was done. NO would claim that
//     it was not, and the client would do it again.
func (s *session) survive(lost *lostError) error {
	idle, begun := s.idling != nil, s.cutShort
	s.drop(lost)
	switch {
	case s.order.Load() != nil:
		return orderedEnd(*s.order.Load())
	case s.partial:
		return &ending{reason: audit.UpstreamLost, err: lost}
	case !s.resumes && (s.box != nil || idle || !s.sent.empty()), s.pinning != "", s.box != nil && s.box.spoiled:
		return &ending{audit.BackendLost, byeLost, lost}
	case idle:
		s.wakeIn(0) // what changed meanwhile is to be told as soon as there is another
		return nil
	case s.sent.empty():
		return nil
	}
	s.tries++
	for i, e := range s.sent.all() {
		again := e.retry || begun && i == len(s.sent.all())-1 // the backend never had the whole of it
		if !again || s.tries > maxTries {
			return &ending{audit.UpstreamLost, byeLost, lost}
		}
	}
	return s.resend()
}

// drop parts the session from a lease that is lost, and puts the loss on record.
func (s *session) drop(lost *lostError) {
	if s.up == nil {
		return
	}
	rec := audit.Mux{User: s.account.User(), Backend: s.backend.name, Why: lostHow(lost.err), Took: s.hub.age() - s.since}
	if s.box != nil {
		rec.Mailbox = s.box.name
	}
	_ = s.hub.rooms.Audit.UpstreamLost(s.who, &rec) // without room it is counted as lost
	s.plus, s.cutShort = false, false
	s.lostBefore = true
	if s.idling != nil {
		s.idling.lost(s.hub.age())
	}
	s.account.Destroy(s.give(), metrics.DiscardClosed)
}

// resend sends everything outstanding again on another connection. When messages
// have gone of which the client cannot be told because of one of the commands,
// none is sent.
func (s *session) resend() error {
	m := moment{expunge: command.ExpSync}
	for _, e := range s.sent.all() {
		if e.expunge == command.ExpNone || e.expunge == command.ExpTranslate {
			m.expunge = command.ExpNone
		}
	}
	seen := s.horizon()
	if err := s.attachIn(m, s.backend.settings.HoldMax); err != nil {
		return s.abandon(err)
	}
	if s.horizon() != seen {
		if err := s.confineAll(seen); err != nil {
			return s.abandon(err)
		}
	}
	all := s.sent
	s.sent = outstanding{}
	for i, e := range all.all() {
		bytes := all.of(e)
		if hasLiteral(bytes) {
			if err := s.answered(); err != nil {
				return s.leaves(&all, i, err)
			}
		}
		s.hub.rooms.Metrics.Mux.Retried(e.spec.Name)
		s.sent.add(e, bytes)
		s.doubtful = s.doubtful || e.pin == audit.PinSyntax
		if err := s.send(bytes); err != nil {
			return s.leaves(&all, i+1, err)
		}
	}
	return nil
}

// leaves keeps the commands from the i-th of all on, which err has kept from being
// sent again.
func (s *session) leaves(all *outstanding, i int, err error) error {
	odd, ok := asOdd(err)
	if !ok {
		s.sent.addAll(all, i)
		return err
	}
	for _, e := range all.all()[i:] {
		if hasLiteral(all.of(e)) { // it has to be asked for, and nobody is here to do it
			return &ending{audit.UpstreamLost, byeLost, err}
		}
		odd.unsent = append(odd.unsent, all.of(e)...)
	}
	return err
}

// confineAll keeps what is sent again from what has arrived since it was sent
// first. If one command cannot be, none is sent.
func (s *session) confineAll(seen horizon) error {
	confined := outstanding{}
	for _, e := range s.sent.all() {
		whole := s.sent.of(e)
		if changes(e.spec) {
			var err error
			if whole, err = seen.confine(whole, e.spec); err != nil {
				return errGhosts
			}
		}
		confined.add(e, whole)
	}
	s.sent = confined
	return nil
}

// answered waits until nothing is outstanding, or the upstream is lost.
func (s *session) answered() error {
	for !s.sent.empty() {
		err := s.relay()
		if err == nil && !s.sent.empty() {
			err = s.hearAnswer()
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// abandon refuses everything outstanding. Where the client cannot be told of what
// has gone, only what needs the mailbox is.
func (s *session) abandon(err error) error {
	refusal, end := s.refusal(err)
	if end != nil {
		return end
	}
	all := s.sent
	s.sent = outstanding{}
	for _, e := range all.all() {
		if errors.Is(err, errGhosts) && e.expunge == command.ExpSync {
			if err := s.aside(e, all.of(e)); err != nil {
				return err
			}
			continue
		}
		if err := s.say(string(all.tag(e)), refusal); err != nil {
			return err
		}
	}
	return nil
}

// healed is survive for every loss there is in err, and err where it is none.
func (s *session) healed(err error) error {
	for {
		lost, ok := asLost(err)
		if !ok {
			return err
		}
		err = s.survive(lost)
	}
}
