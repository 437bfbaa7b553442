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
	uidFetchDelay       = 2 * time.Second  // in a mailbox: those who only look in need not pay
	flagResyncDelay     = 5 * time.Second  // between attempts to tell flags that are owed
	modseqRequestDelay  = time.Second      // between attempts to have mod-sequences kept, and as much again at random
	housekeepingTimeout = 30 * time.Second // for the answer to a question of ours
	sampleInterval      = 1000             // gaps, of which one is verified
)

// runHousekeeping is what we want to know ourselves, asked while the client has nothing
// outstanding.
func (s *session) runHousekeeping() error {
	switch {
	case s.idleState != nil:
		return s.maintainIdle()
	case s.upstream == nil || !s.outstanding.isEmpty() || !s.canResume || s.pinReason != "":
		return nil
	case s.mailbox == nil || !s.attached:
		return s.detachIfConfigured()
	}
	if s.shouldFetchUIDs() {
		if err := s.fetchMissingUIDs(); err != nil {
			return err
		}
		if err := s.requestModseq(); err != nil {
			return err
		}
	}
	if s.mailbox.flagsPending {
		if err := s.resendFlags(); err != nil {
			return err
		}
	}
	if err := s.verifyView(); err != nil {
		return err
	}
	return s.detachIfConfigured()
}

// shouldFetchUIDs says whether the view is to be completed now, and sets the alarm if it is
// later.
func (s *session) shouldFetchUIDs() bool {
	settings := s.backend.settings
	switch {
	case settings.UIDPrefetch == PrefetchLazy:
		return false
	case settings.UIDPrefetch == PrefetchEager:
		return true
	case s.mailbox.view.Exists() > uint32(settings.UIDPrefetchMaxMessages):
		return false
	}
	if wait := uidFetchDelay - (s.hub.uptime() - s.mailbox.selectedAt); wait > 0 {
		s.scheduleWake(wait)
		return false
	}
	return true
}

// fetchMissingUIDs asks for the UIDs that the client's view lacks. Where the backend does not
// name all of them, because some of the messages are gone, that waits until it has
// announced this: a NOOP of ours may not bring an EXPUNGE to the client, who has no
// command in progress.
func (s *session) fetchMissingUIDs() error {
	for s.canResume && s.mailbox != nil && s.attached && s.mailbox.canFetchUIDs() && s.mailbox.view.UnknownCount() > 0 {
		first, last := s.mailbox.view.KnownCount()+1, s.mailbox.view.Exists()
		uids, res, err := s.queryUIDs(first, last, time.Now().Add(housekeepingTimeout), s.forwardUntagged)
		switch {
		case err != nil:
			return s.wrapRunError(err)
		case res.Name != "OK", res.Code == "MESSAGELIMIT":
			s.mailbox.uidsUnavailable = true
		case uids.Len() < last-first+1:
			s.mailbox.uidsDeferred = true
		case uids.Len() > last-first+1, s.mailbox.view.AddUIDs(first, uids) != nil:
			_, err := s.desyncView(metrics.CountMismatch, view.ErrUIDMismatch)
			return err
		}
	}
	return nil
}

// flushAfterUIDs is the end of an answer whose last response waits until the UIDs of
// what it announced are known: a client that is told of expunges by UID can't be
// told, after a loss, of messages whose UIDs nobody has learned.
func (s *session) flushAfterUIDs(run, response []byte) error {
	deferred := bytes.Clone(response)
	if _, err := s.client.Write(run); err != nil {
		return s.wrapClientError(err)
	}
	s.deferred = deferred
	fetchErr := s.fetchMissingUIDs() // a loss is one behind the command, which has been answered
	deferred, s.deferred = s.deferred, nil
	s.responsePartial = false
	_, err := s.client.Write(deferred)
	return errors.Join(s.wrapClientError(err), fetchErr)
}

// requestModseq has the backend keep mod-sequences of a mailbox of which it does not yet:
// some begin when they are first asked for one (RFC 7162 §3.1.2.2). What it
// answers is true of the client once it has been told everything, with the next
// NOOP. One of the user's sessions asks at a time; the others ask a little later.
func (s *session) requestModseq() error {
	if !s.shouldRequestModseq() {
		return nil
	}
	b := s.mailbox
	b.modseqRequestWait = min(max(2*b.modseqRequestWait, modseqRequestDelay), time.Minute)
	delay := b.modseqRequestWait + rand.N(b.modseqRequestWait)
	b.nextModseqRequest = s.hub.uptime() + delay
	ctx, cancel := context.WithTimeout(s.hub.ctx, auxLoginTimeout)
	defer cancel()
	aux, err := s.acquireAuxWhile(ctx, func() bool { return !s.client.IsReadable() }) // they all ask at the same time
	if err != nil {                                                                   // what is only worth a question ends no session that can go on
		s.scheduleWake(delay)
		return nil // until then flags would all be told again
	}
	_ = s.forwardResponses(aux.TakeAlerts()) // a client that is gone is missed by the next write
	if b.pendingModseq, err = s.queryModseq(aux); err != nil {
		s.account.Discard(aux, metrics.DiscardError)
		s.scheduleWake(delay)
		return nil
	}
	b.modseqRequested = true
	s.account.ReleaseAux(aux)
	return nil
}

// shouldRequestModseq says whether track has something to ask now.
func (s *session) shouldRequestModseq() bool {
	b := s.mailbox
	return b.modseq == 0 && !b.modseqRequested && s.hub.uptime() >= b.nextModseqRequest && b.isASCII() && s.backend.settings.ReadAfterWrite &&
		s.upstream.Caps().Has("CONDSTORE")
}

// queryModseq asks for the mod-sequence, and then opens the mailbox: Dovecot begins
// with the first, and says so to others behind the second.
func (s *session) queryModseq(aux *lease.Conn) (modseq uint64, err error) {
	for _, query := range [...]struct{ verb, items string }{{"STATUS", " (HIGHESTMODSEQ)"}, {"EXAMINE", ""}} {
		name, err := (&mailbox{verb: query.verb, name: s.mailbox.name}).selectCommand(aux.Caps())
		if err != nil {
			return 0, err
		}
		aux.Selected = aux.Selected || query.verb == "EXAMINE"
		res, err := aux.Run(time.Now().Add(housekeepingTimeout), name+query.items, func(response []byte) error {
			if i := bytes.LastIndex(response, []byte("HIGHESTMODSEQ ")); i >= 0 && modseq == 0 {
				modseq = parseLeadingUint64(response[i+len("HIGHESTMODSEQ "):])
			}
			return s.forwardAlert(response)
		})
		switch {
		case err != nil, res.Code == "UNAVAILABLE", res.Code == "INUSE", res.Code == "SERVERBUG", res.Code == "LIMIT":
			return 0, fmt.Errorf("%s: %s %w", query.verb, upstream.DescribeResponse(res), errors.Join(errBusy, err))
		case res.Name != "OK": // it will not say
			return 0, nil
		}
	}
	return modseq, nil
}

// parseLeadingUint64 is the number b begins with, 0 for none.
func parseLeadingUint64(b []byte) uint64 {
	digits := b[:len(b)-len(bytes.TrimLeft(b, "0123456789"))]
	n, _ := strconv.ParseUint(string(digits), 10, 63) // 0: not known
	return n
}

// confirmModseq has the backend tell everything, while a command of the client's is in
// progress in which it may: then what track was told is true of the client. It
// is needed once in a mailbox, if at all.
func (s *session) confirmModseq(expunge command.ExpungePolicy) error {
	b := s.mailbox
	if b == nil || b.pendingModseq == 0 || !s.attached || !s.outstanding.isEmpty() || expunge != command.FlushExpunges || s.hasQueuedNumbers() {
		return nil
	}
	res, err := s.upstream.Run(time.Now().Add(housekeepingTimeout), "NOOP", s.forwardUntagged)
	if err != nil {
		return s.wrapRunError(err)
	}
	if res.Name == "OK" {
		b.modseq = b.pendingModseq
	}
	b.pendingModseq = 0
	return nil
}

// resendFlags tells the flag changes that could not be told on an attach.
func (s *session) resendFlags() error {
	if wait := s.mailbox.nextFlagResync - s.hub.uptime(); wait > 0 {
		s.scheduleWake(wait)
		return nil
	}
	s.mailbox.flagResyncWait = min(max(2*s.mailbox.flagResyncWait, flagResyncDelay), time.Minute)
	s.mailbox.nextFlagResync = s.hub.uptime() + s.mailbox.flagResyncWait
	s.scheduleWake(s.mailbox.flagResyncWait)
	t := &selectData{modseq: s.mailbox.flagsPendingModseq}
	resent, err := s.resyncFlags(t, time.Now().Add(housekeepingTimeout))
	if err != nil || !resent {
		return err
	}
	s.mailbox.flagsPending, s.mailbox.flagResyncWait = false, 0
	s.mailbox.modseq = max(s.mailbox.modseq, t.modseq)
	return nil
}

// verifyView compares the view with what the backend says of the mailbox.
func (s *session) verifyView() error {
	switch v := s.backend.settings.ConsistencyCheck; {
	case v == CheckOff, v == CheckSample && rand.N(sampleInterval) > 0, s.mailbox.view.UnknownCount() > 0, s.mailbox.desynced, s.mailbox.view.Exists() == 0:
		return nil
	}
	exists := s.mailbox.view.Exists()
	uids, res, err := s.queryUIDs(1, exists, time.Now().Add(housekeepingTimeout), s.forwardUntagged)
	if err != nil {
		return s.wrapRunError(err)
	}
	m := s.hub.deps.Metrics.Mux
	if res.Name != "OK" || s.mailbox.view.Exists() != exists || uids.Len() < exists { // some are gone, and not announced
		m.CountConsistencyCheck(metrics.Skipped)
		return nil
	}
	d, err := s.mailbox.view.Diff(uids, 0)
	if err == nil && d.ExpungedCount() == 0 && d.NewCount() == 0 {
		m.CountConsistencyCheck(metrics.Same)
		return nil
	}
	m.CountConsistencyCheck(metrics.Different)
	s.countViolation(metrics.ViewDifferent)
	return &closeError{audit.ViewInconsistent, byeChanged, err}
}

// detachIfConfigured gives the upstream up after each command, in a gateway under test.
func (s *session) detachIfConfigured() error {
	if !s.backend.settings.AlwaysDetach {
		return nil
	}
	if err := s.fetchMissingUIDs(); err != nil {
		return err
	}
	if s.pinReason == "" && (s.mailbox == nil || !s.mailbox.desynced && !s.mailbox.uidsDeferred && s.mailbox.pendingModseq == 0) {
		s.returnUpstream()
	}
	return nil
}
