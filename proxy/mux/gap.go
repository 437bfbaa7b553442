package mux

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"time"

	"imapgate/internal/audit"
	"imapgate/internal/metrics"
	"imapgate/proxy/mux/command"
	"imapgate/proxy/mux/lease"
	"imapgate/proxy/mux/view"
	"imapgate/proxy/upstream"
)

const (
	learnAfter  = 2 * time.Second  // in a mailbox: those who only look in need not pay
	payAgain    = 5 * time.Second  // between attempts to tell flags that are owed
	trackAgain  = time.Second      // between attempts to have mod-sequences kept, and as much again at random
	ownQuestion = 30 * time.Second // for the answer to a question of ours
	sampleOne   = 1000             // gaps, of which one is verified
)

// gap is what we want to know ourselves, asked while the client has nothing
// outstanding.
func (s *session) gap() error {
	switch {
	case s.idling != nil:
		return s.refresh()
	case s.up == nil || !s.sent.empty() || !s.resumes || s.pinning != "":
		return nil
	case s.box == nil || !s.attached:
		return s.detach()
	}
	if s.due() {
		if err := s.learn(); err != nil {
			return err
		}
		if err := s.track(); err != nil {
			return err
		}
	}
	if s.box.owes {
		if err := s.payFlags(); err != nil {
			return err
		}
	}
	if err := s.verify(); err != nil {
		return err
	}
	return s.detach()
}

// due says whether the view is to be completed now, and sets the alarm if it is
// later.
func (s *session) due() bool {
	set := s.backend.settings
	switch {
	case set.Learn == Lazy:
		return false
	case set.Learn == Eager:
		return true
	case s.box.view.Exists() > uint32(set.LearnMax):
		return false
	}
	if wait := learnAfter - (s.hub.age() - s.box.since); wait > 0 {
		s.wakeIn(wait)
		return false
	}
	return true
}

// learn asks for the UIDs that the client's view lacks. Where the backend does not
// name all of them, because some of the messages are gone, that waits until it has
// announced this: a NOOP of ours may not bring an EXPUNGE to the client, who has no
// command in progress.
func (s *session) learn() error {
	for s.resumes && s.box != nil && s.attached && s.box.isLearnable() && s.box.view.Unknown() > 0 {
		first, last := s.box.view.Known()+1, s.box.view.Exists()
		uids, res, err := s.askUIDs(first, last, time.Now().Add(ownQuestion), s.overhear)
		switch {
		case err != nil:
			return s.ranInto(err)
		case res.Name != "OK", res.Code == "MESSAGELIMIT":
			s.box.unlearnable = true
		case uids.Len() < last-first+1:
			s.box.deferred = true
		case uids.Len() > last-first+1, s.box.view.Learn(first, uids) != nil:
			_, err := s.untold(metrics.CountMismatch, view.ErrMismatch)
			return err
		}
	}
	return nil
}

// learnFirst is the end of an answer whose last response waits until the UIDs of
// what it announced are known: a client that is told of expunges by UID can't be
// told, after a loss, of messages whose UIDs nobody has learned.
func (s *session) learnFirst(before, last []byte) error {
	rest := bytes.Clone(last)
	if _, err := s.client.Write(before); err != nil {
		return s.clientLost(err)
	}
	s.overheard = rest
	learned := s.learn() // a loss is one behind the command, which has been answered
	rest, s.overheard = s.overheard, nil
	s.partial = false
	_, err := s.client.Write(rest)
	return errors.Join(s.clientLost(err), learned)
}

// track has the backend keep mod-sequences of a mailbox of which it does not yet:
// some begin when they are first asked for one (RFC 7162 §3.1.2.2). What it
// answers is true of the client once it has been told everything, with the next
// NOOP. One of the user's sessions asks at a time; the others ask a little later.
func (s *session) track() error {
	if !s.tracks() {
		return nil
	}
	b := s.box
	b.trackWait = min(max(2*b.trackWait, trackAgain), time.Minute)
	again := b.trackWait + rand.N(b.trackWait)
	b.nextTrack = s.hub.age() + again
	ctx, cancel := context.WithTimeout(s.hub.ctx, auxLogin)
	defer cancel()
	aux, err := s.auxWhile(ctx, func() bool { return !s.client.Stirs() }) // they all ask at the same time
	if err != nil {                                                       // what is only worth a question ends no session that can go on
		s.wakeIn(again)
		return nil // until then flags would all be told again
	}
	_ = s.relate(aux.Alerts()) // a client that is gone is missed by the next write
	if b.next, err = s.trackedBy(aux); err != nil {
		s.account.Destroy(aux, metrics.DiscardError)
		s.wakeIn(again)
		return nil
	}
	b.tracked = true
	s.account.ReturnAux(aux)
	return nil
}

// tracks says whether track has something to ask now.
func (s *session) tracks() bool {
	b := s.box
	return b.modseq == 0 && !b.tracked && s.hub.age() >= b.nextTrack && b.isASCII() && s.backend.settings.Consistent &&
		s.up.Caps().Has("CONDSTORE")
}

// trackedBy asks for the mod-sequence, and then opens the mailbox: Dovecot begins
// with the first, and says so to others behind the second.
func (s *session) trackedBy(aux *lease.Conn) (modseq uint64, err error) {
	for _, ask := range [...]struct{ verb, items string }{{"STATUS", " (HIGHESTMODSEQ)"}, {"EXAMINE", ""}} {
		name, err := (&mailbox{verb: ask.verb, name: s.box.name}).command(aux.Caps())
		if err != nil {
			return 0, err
		}
		aux.Selected = aux.Selected || ask.verb == "EXAMINE"
		res, err := aux.Run(time.Now().Add(ownQuestion), name+ask.items, func(response []byte) error {
			if i := bytes.LastIndex(response, []byte("HIGHESTMODSEQ ")); i >= 0 && modseq == 0 {
				modseq = leadingUint64(response[i+len("HIGHESTMODSEQ "):])
			}
			return s.alert(response)
		})
		switch {
		case err != nil, res.Code == "UNAVAILABLE", res.Code == "INUSE", res.Code == "SERVERBUG", res.Code == "LIMIT":
			return 0, fmt.Errorf("%s: %s %w", ask.verb, upstream.Describe(res), errors.Join(errBusy, err))
		case res.Name != "OK": // it will not say
			return 0, nil
		}
	}
	return modseq, nil
}

// leadingUint64 is the number b begins with, 0 for none.
func leadingUint64(b []byte) uint64 {
	digits := b[:len(b)-len(bytes.TrimLeft(b, "0123456789"))]
	n, _ := strconv.ParseUint(string(digits), 10, 63) // 0: not known
	return n
}

// catchUp has the backend tell everything, while a command of the client's is in
// progress in which it may: then what track was told is true of the client. It
// is needed once in a mailbox, if at all.
func (s *session) catchUp(expunge command.Expunge) error {
	b := s.box
	if b == nil || b.next == 0 || !s.attached || !s.sent.empty() || expunge != command.ExpSync || s.numbersFollow() {
		return nil
	}
	res, err := s.up.Run(time.Now().Add(ownQuestion), "NOOP", s.overhear)
	if err != nil {
		return s.ranInto(err)
	}
	if res.Name == "OK" {
		b.modseq = b.next
	}
	b.next = 0
	return nil
}

// payFlags tells the flag changes that could not be told on an attach.
func (s *session) payFlags() error {
	if wait := s.box.nextPay - s.hub.age(); wait > 0 {
		s.wakeIn(wait)
		return nil
	}
	s.box.patience = min(max(2*s.box.patience, payAgain), time.Minute)
	s.box.nextPay = s.hub.age() + s.box.patience
	s.wakeIn(s.box.patience)
	t := &told{modseq: s.box.owed}
	paid, err := s.flushFlags(t, time.Now().Add(ownQuestion))
	if err != nil || !paid {
		return err
	}
	s.box.owes, s.box.patience = false, 0
	s.box.modseq = max(s.box.modseq, t.modseq)
	return nil
}

// verify compares the view with what the backend says of the mailbox.
func (s *session) verify() error {
	switch v := s.backend.settings.VerifyView; {
	case v == Off, v == Sample && rand.N(sampleOne) > 0, s.box.view.Unknown() > 0, s.box.spoiled, s.box.view.Exists() == 0:
		return nil
	}
	exists := s.box.view.Exists()
	uids, res, err := s.askUIDs(1, exists, time.Now().Add(ownQuestion), s.overhear)
	if err != nil {
		return s.ranInto(err)
	}
	m := s.hub.rooms.Metrics.Mux
	if res.Name != "OK" || s.box.view.Exists() != exists || uids.Len() < exists { // some are gone, and not announced
		m.Verified(metrics.Skipped)
		return nil
	}
	d, err := s.box.view.Diff(uids, 0)
	if err == nil && d.Ghosts() == 0 && d.Arrived() == 0 {
		m.Verified(metrics.Same)
		return nil
	}
	m.Verified(metrics.Different)
	s.blame(metrics.ViewDifferent)
	return &ending{audit.ViewInconsistent, byeChanged, err}
}

// detach gives the upstream up after each command, in a gateway under test.
func (s *session) detach() error {
	if !s.backend.settings.AlwaysDetach {
		return nil
	}
	if err := s.learn(); err != nil {
		return err
	}
	if s.pinning == "" && (s.box == nil || !s.box.spoiled && !s.box.deferred && s.box.next == 0) {
		s.giveBack()
	}
	return nil
}
