package mux

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"time"

	"imapgate/internal/audit"
	"imapgate/internal/imap"
	"imapgate/proxy/mux/command"
	"imapgate/proxy/mux/lease"
)

// idling is a client's IDLE (RFC 2177). It is the session's, not a connection's:
// the backend hears one of ours, which another upstream can take over.
type idling struct {
	tag      string        // the client's
	ours     string        // the tag of the IDLE that the lease is in, "" if it is in none
	away     time.Duration // age of the hub since when there is no upstream, zero while there is one
	retry    time.Duration
	attached time.Duration // … when there last was a new one
	listened time.Duration // … when ours began
	began    time.Duration // … when the client's began
	denied   bool          // the backend has refused IDLE
	turn     *turn         // to attach, or a place in the queue for one; nil: neither
}

// answered says whether line is the backend's answer to our IDLE.
func (i *idling) answered(line []byte) bool {
	if i.ours == "" || !bytes.HasPrefix(line, []byte(i.ours+" ")) {
		return false
	}
	i.denied = !imap.HasWord(line[len(i.ours)+1:], "OK") // with OK its time for one IDLE was over, or we have said DONE
	i.ours = ""
	return true
}

// steady is how long an upstream must last for its loss to be a new one.
const steady = 30 * time.Second

func (i *idling) lost(now time.Duration) {
	i.ours = ""
	if i.away == 0 || now-i.attached > steady {
		i.away, i.retry = now, 0
	}
}

// leaveTurn gives up what the session has of the queue.
func (i *idling) leaveTurn() {
	if i.turn != nil {
		i.turn.leave()
		i.turn = nil
	}
}

// idle is IDLE. Without a mailbox there is nothing to wait for. A backend that
// is away does not keep the client from idling.
func (s *session) idle(r *request) error {
	i := &idling{tag: string(r.tag), began: s.hub.age()}
	if s.box != nil && !s.inStep() {
		err := s.attach(r)
		switch {
		case errors.Is(err, errGhosts): // as long as a command by number is behind it
		case err != nil && !isAway(err) && !isLost(err):
			return s.unattached(err)
		case err != nil:
			i.away = s.hub.age()
		}
	}
	if err := s.say("+ idling"); err != nil {
		return err
	}
	s.idling = i
	s.journal.forget() // until it is over: a session at rest has none
	s.show()
	if s.up == nil || s.box == nil {
		s.wakeIn(time.Second)
		return nil
	}
	if err := s.prepareIdle(); err != nil {
		return err
	}
	return s.listen()
}

// prepareIdle asks what cannot be asked while the lease idles. The client's IDLE
// is in progress: it may be told everything.
func (s *session) prepareIdle() error {
	if err := s.learn(); err != nil || !s.resumes {
		return err
	}
	if err := s.track(); err != nil {
		return err
	}
	return s.catchUp(command.ExpSync)
}

// listen puts the lease into an IDLE of ours.
func (s *session) listen() error {
	i := s.idling
	if !s.up.Caps().Has("IDLE") {
		return nil
	}
	i.ours, i.listened = s.up.Tag(), s.hub.age()
	s.plus = true
	_, err := s.up.Write([]byte(i.ours + " IDLE\r\n"))
	return s.upstreamLost(err)
}

// idled reads a line of a client in IDLE, which can only be DONE.
func (s *session) idled(seg imap.Segment) error {
	done := imap.HasWord(seg.Bytes, "DONE") && len(bytes.TrimSuffix(seg.Bytes, []byte("\r\n"))) == len("DONE")
	if err := s.stopIdling(); err != nil {
		return err
	}
	tag := s.idling.tag
	s.reopens(s.idling)
	s.idling = nil
	s.show()
	if done {
		return s.say(tag, " OK Idle completed.")
	}
	if err := s.say(tag, " BAD Expected DONE."); err != nil {
		return err
	}
	return s.skip(seg, maxPassed)
}

// stopIdling ends our IDLE on the lease. What the client does not know yet it is
// told before the end of its own.
func (s *session) stopIdling() error {
	s.idling.leaveTurn() // the client waits now: it goes where commands do
	if s.up != nil && s.idling.ours != "" {
		if err := s.healed(s.unlisten()); err != nil {
			return err
		}
	}
	if s.box != nil && !s.inStep() {
		err := s.attachIn(moment{expunge: command.ExpSync}, s.backend.settings.HoldMax)
		if isAway(err) || isLost(err) || errors.Is(err, errGhosts) {
			return nil // nobody can know what has changed, or be told yet; the next command asks again
		}
		if err != nil {
			return err
		}
	}
	if s.learnsInIdle() {
		return s.healed(s.learn())
	}
	return nil
}

// unlisten says DONE for us, and hears the backend out.
func (s *session) unlisten() error {
	i := s.idling
	for said := false; ; {
		if err := s.relay(); err != nil {
			return err
		}
		if i.ours == "" {
			return nil
		}
		if !s.plus && !said { // not before the backend idles (RFC 2177 §3)
			if err := s.up.Done(); err != nil {
				return s.upstreamLost(err)
			}
			said = true
		}
		if err := s.hearAnswer(); err != nil {
			return err
		}
	}
}

// learnsInIdle says whether the UIDs of what has come are to be asked for at once:
// a client that is told of expunges by UID could not be told of theirs after a loss.
func (s *session) learnsInIdle() bool {
	return s.resumes && s.inStep() && s.box != nil && s.box.grown && s.box.view.Unknown() > 0 &&
		s.box.isLearnable() && s.enabled.Has(lease.Qresync)
}

// trackInIdle asks again what could not be asked before the lease went into IDLE.
func (s *session) trackInIdle() error {
	if s.box == nil || !s.resumes || !s.inStep() || s.box.spoiled || !s.tracks() {
		return nil
	}
	if err := s.track(); err != nil || s.box.next == 0 {
		return err
	}
	return s.interrupt(func() error { return s.catchUp(command.ExpSync) })
}

// interrupt asks something between two IDLEs of ours.
func (s *session) interrupt(ask func() error) error {
	if s.idling.ours != "" {
		if err := s.unlisten(); err != nil {
			return err
		}
	}
	if err := ask(); err != nil {
		return err
	}
	return s.listen()
}

// refresh is the gap of a client in IDLE: a session that has lost its upstream
// gets another as soon as there is one, and is told what has changed.
func (s *session) refresh() error {
	i := s.idling
	if s.box != nil && s.inStep() && s.box.owes {
		if wait := s.box.nextPay - s.hub.age(); wait > 0 {
			s.wakeIn(wait)
		} else if err := s.interrupt(s.payFlags); err != nil {
			return err
		}
	}
	if s.learnsInIdle() {
		if err := s.interrupt(s.learn); err != nil {
			return err
		}
	}
	if err := s.trackInIdle(); err != nil {
		return err
	}
	if s.box == nil || s.inStep() {
		if !s.inStep() || s.box == nil || i.ours != "" || i.denied {
			return nil
		}
		if wait := time.Second - (s.hub.age() - i.listened); wait > 0 {
			s.wakeIn(wait)
			return nil
		}
		return s.listen()
	}
	if i.away == 0 {
		i.away = s.hub.age()
	}
	if wait := i.retry - (s.hub.age() - i.attached); wait > 0 {
		s.wakeIn(wait)
		return nil
	}
	if i.turn == nil {
		i.turn = s.backend.queue.enter(s.wake)
	}
	moving := i.turn.moving() // which does not count
	left := s.backend.settings.LostMax - (s.hub.age() - i.away - moving)
	switch {
	case left < 0:
		return &ending{audit.UpstreamAway, byeAway, nil}
	case !i.turn.isGranted():
		s.wakeIn(left + time.Second)
		return nil
	}
	i.away += moving
	err := s.attachIn(moment{expunge: command.ExpSync, turn: i.turn}, 0)
	i.turn = nil // attachIn has left it
	if isAway(err) || isLost(err) || errors.Is(err, errGhosts) {
		i.retry = min(max(2*i.retry, 100*time.Millisecond), 5*time.Second)
		s.wakeIn(i.retry + rand.N(i.retry))
		return nil
	}
	if err != nil {
		return err
	}
	i.attached = s.hub.age()
	i.retry = min(max(2*i.retry, time.Second), 30*time.Second) // if this one does not last
	if err := s.prepareIdle(); err != nil {
		return err
	}
	return s.listen()
}
