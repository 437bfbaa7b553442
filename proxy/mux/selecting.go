package mux

import (
	"bytes"
	"errors"
	"time"

	"imapgate/internal/audit"
	"imapgate/internal/imap"
	"imapgate/proxy/mux/lease"
)

// maxShown bounds what is held back of the answer to SELECT, so that it can be
// asked for again elsewhere without the client seeing two different ones.
const maxShown = 256 << 10

// selecting is SELECT and EXAMINE. What was selected before is left, whatever
// the answer (RFC 9051 §6.3.2); expunges nobody was told of go with it.
func (s *session) selecting(r *request) error {
	tries := 0
	err := s.persist(s.backend.settings.HoldMax, func(h *hold) error {
		if tries++; tries > 1 {
			s.hub.rooms.Metrics.Mux.Retried(r.spec.Name)
		}
		err := s.selectOnce(r, s.attempt())
		lost, ok := asLost(err)
		if ok && (s.partial || s.attached) { // it has been answered, or begun to be
			return s.survive(lost)
		}
		if ok {
			s.drop(lost)
		}
		if ok && tries == 1 {
			h.began = time.Now() // until now there was a backend
		}
		return err
	})
	if !isAway(err) && !isLost(err) {
		return err
	}
	s.box = nil
	s.show()
	return s.answer("NO [UNAVAILABLE] Mail store is temporarily unavailable.")
}

// selectOnce asks one connection.
func (s *session) selectOnce(r *request, deadline time.Time) error {
	if s.up == nil {
		if err := s.lease(deadline); err != nil {
			return err
		}
	}
	closed := ""
	if caps := s.up.Caps(); s.box != nil && !s.up.Selected && (caps.Has(lease.Qresync) || caps.Has(lease.Rev2)) {
		closed = "* OK [CLOSED] Previous mailbox closed.\r\n" // RFC 7162 §3.2.11: this connection had none
	}
	s.avoid(r.tag)
	s.aware(r)
	s.up.Enabled = s.enabled
	s.before = s.up.Selected
	s.attached = false   // to what it leaves, so that a loss is seen to come before the answer
	s.up.Selected = true // or not, if it says NO: nobody else must find out
	s.sent.add(entry{spec: r.spec, tag: len(r.tag), retry: true, selects: true, givenUp: r.givenUp}, r.whole)
	r.unsent = nil
	err := s.send(r.whole)
	switch {
	case s.sent.empty(): // it has refused a literal, and may be lost behind the answer
		return s.healed(err)
	case err == nil:
		err = s.selected(r, []byte(closed))
	}
	if err != nil {
		s.sent.clear()
	}
	return err
}

// selected reads the answer to SELECT and passes it on in one piece.
func (s *session) selected(r *request, shown []byte) error {
	var t told
	left := 1 << 30 // a QRESYNC client may be told a great deal
	for s.up.Buffered() == 0 {
		if err := s.hearAnswer(); err != nil {
			return err
		}
	}
	for {
		response, err := s.up.Response(&left)
		if errors.Is(err, lease.ErrProtocol) {
			return s.shownOdd(append(shown, response...), err)
		}
		if err != nil {
			return s.upstreamLost(err)
		}
		if bytes.HasPrefix(response, []byte("* ")) {
			if err := s.heard(response, &t); err != nil {
				return err
			}
			if !isOurs(response[2:]) {
				shown = append(shown, response...)
			}
			if len(shown) > maxShown {
				if err := s.showPart(shown); err != nil {
					return err
				}
				shown = shown[:0]
			}
			continue
		}
		_, ours := s.sent.answered(response)
		if !ours && s.up.RefusesDone(response) {
			continue
		}
		if !ours && isAnswer(response) {
			return s.stray()
		}
		res, err := imap.ParseResponse(bytes.TrimSuffix(response, []byte("\r\n")))
		if !ours || err != nil {
			return s.shownOdd(append(shown, response...), errNoResponse)
		}
		s.up.Answered()
		s.closes(response)
		s.concluded(r, &t, res)
		if s.withoutCode(response) == swap {
			response = s.out
		}
		if s.enabled.Has(lease.Qresync) && s.backend.settings.Learn == Eager {
			return s.learnFirst(shown, response)
		}
		s.partial = false
		_, err = s.client.Write(append(shown, response...))
		return s.clientLost(err)
	}
}

// isOurs says whether a response is for the gateway alone: about capabilities, or
// a way around it.
func isOurs(line []byte) bool {
	if imap.HasWord(line, "CAPABILITY") {
		return true
	}
	i := bytes.Index(line, []byte(" ["))
	return i >= 0 && (imap.HasWord(line, "OK") || imap.HasWord(line, "NO")) && i == 2 &&
		(imap.HasWord(line[4:], "CAPABILITY") || imap.HasWord(line[4:], "REFERRAL"))
}

// showPart gives the client what can no longer be held back. From here on SELECT
// cannot be asked again: the client has the beginning of an answer.
func (s *session) showPart(shown []byte) error {
	s.partial = true
	_, err := s.client.Write(shown)
	return s.clientLost(err)
}

// shownOdd passes on what cannot be followed, and all that came before it.
func (s *session) shownOdd(shown []byte, err error) error {
	s.countOdd()
	return errors.Join(s.showPart(shown), &oddError{err: err}) // whatever was selected, it is the client's now
}

// heard takes in one untagged response to SELECT.
func (s *session) heard(response []byte, t *told) error {
	if imap.HasWord(response[2:], "BYE") {
		return s.goodbye(response)
	}
	t.read(response)
	t.fetches = nil // they are the client's, who gets them as they come
	return nil
}

// concluded is the state of the session behind the answer to SELECT.
func (s *session) concluded(r *request, t *told, res imap.Response) {
	s.tries = 0
	s.box, s.attached = nil, false
	switch res.Name {
	case "OK":
		t.done(res)
		s.box = newMailbox(r.spec.Name, r.facts.Mailbox, t)
		s.box.since = s.hub.age()
		s.attached = true
		if t.notSticky {
			s.pinning = audit.PinUIDNotSticky
		}
		if r.facts.Pin {
			s.pinning = audit.PinAnnotate
		}
		s.show()
	default:
		s.unselected([]byte(res.Name))
	}
}

// unselected is the state of the session behind an answer, without its tag, that
// selects nothing.
func (s *session) unselected(answer []byte) {
	s.box, s.attached = nil, false
	if imap.HasWord(answer, "NO") {
		s.up.Selected = s.before // a backend may have kept what was
	} else { // nobody knows what is selected now
		s.pinning = audit.PinSelectBad
	}
	s.show()
}

// closing is CLOSE and UNSELECT. A session without its mailbox attached has
// nothing to close where nothing would be expunged.
func (s *session) closing(r *request) error {
	if err := s.probe(); err != nil {
		return err
	}
	if s.box == nil {
		return s.forward(r)
	}
	if !s.attached && (r.spec.Name == "UNSELECT" || s.box.verb == "EXAMINE" || s.box.access == "READ-ONLY") {
		s.box = nil
		s.show()
		return s.answer("OK " + r.spec.Name + " completed.")
	}
	blind := !s.inStep() // the view need not be brought in step: it is about to go
	if blind {
		if err := s.attach(r); err != nil {
			return s.unattached(err)
		}
	}
	s.sent.add(entry{spec: r.spec, tag: len(r.tag), retry: r.facts.Retry, closes: true}, r.whole)
	box := s.box
	if blind {
		s.box = nil // what is said meanwhile is not about what the client sees
	}
	r.unsent = nil
	err := s.send(r.whole)
	if err == nil {
		err = s.answered()
	}
	if blind && s.up != nil && s.up.Selected { // refused
		s.box = box
		if err == nil {
			s.giveBack()
		}
	}
	return err
}

// closed is the state of the session behind an OK to CLOSE or UNSELECT.
func (s *session) closed() {
	s.box, s.attached = nil, false
	s.up.Selected = false
	s.show()
}
