package mux

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"imapgate/internal/event"
	"imapgate/proxy/mux/command"
	"imapgate/proxy/mux/lease"
	"imapgate/proxy/mux/mailbox"
	"imapgate/proxy/upstream"
)

const (
	uidFetchDelay       = 2 * time.Second  // time in a mailbox; saves the query for short visits
	flagResyncDelay     = 5 * time.Second  // between attempts to send pending flag changes
	modseqRequestDelay  = time.Second      // between attempts to enable mod-sequences, plus a random delay of the same size
	housekeepingTimeout = 30 * time.Second // for the answer to a command of the gateway
	sampleInterval      = 1000             // one of this many calls verifies the view
)

// runHousekeeping runs the gateway's own commands while the client has none outstanding.
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
	if s.mailbox.PostponedFlags() != nil {
		if err := s.resendFlags(); err != nil {
			return err
		}
	}
	if err := s.verifyView(); err != nil {
		return err
	}
	return s.detachIfConfigured()
}

// shouldFetchUIDs reports whether to complete the view now, and schedules a wake if it is
// due later.
func (s *session) shouldFetchUIDs() bool {
	settings := s.backend.settings
	switch {
	case settings.UIDPrefetch == PrefetchLazy:
		return false
	case settings.UIDPrefetch == PrefetchEager:
		return true
	case s.mailbox.Exists() > uint32(settings.UIDPrefetchMaxMessages):
		return false
	}
	if wait := uidFetchDelay - (s.hub.uptime() - s.mailbox.SelectedAt); wait > 0 {
		s.scheduleWake(wait)
		return false
	}
	return true
}

// fetchMissingUIDs fetches the UIDs that the client's view lacks. If the backend omits
// some, a NOOP would not help: the client has no command in progress, so it must not receive an
// EXPUNGE.
func (s *session) fetchMissingUIDs() error {
	for s.canResume && s.mailbox != nil && s.attached {
		first, last, ok := s.mailbox.UnknownRange()
		if !ok {
			return nil
		}
		uids, res, err := s.queryUIDs(first, last, time.Now().Add(housekeepingTimeout), s.forwardUntagged)
		if err != nil {
			return s.wrapRunError(err)
		}
		if err := s.mailbox.LearnUIDs(first, last, uids, res); err != nil {
			s.desyncView(err)
		}
	}
	return nil
}

// flushAfterUIDs holds back the final response until the UIDs of new messages are known.
// A QRESYNC client receives expunges by UID; after a lost upstream, expunges of messages
// without a known UID could not be reported.
func (s *session) flushAfterUIDs(run, response []byte) error {
	deferred := bytes.Clone(response)
	if _, err := s.client.Write(run); err != nil {
		return s.wrapClientError(err)
	}
	s.deferred = deferred
	fetchErr := s.fetchMissingUIDs() // a loss here comes after the command, which has been answered
	deferred, s.deferred = s.deferred, nil
	s.responsePartial = false
	_, err := s.client.Write(deferred)
	return errors.Join(s.wrapClientError(err), fetchErr)
}

// requestModseq makes the backend keep mod-sequences for a mailbox that has none yet:
// some backends start at the first query (RFC 7162 §3.1.2.2). The returned value
// describes the client's state after the next NOOP, when the client has received all
// changes. Only one session of a user queries at a time; the others retry a little later.
func (s *session) requestModseq() error {
	if !s.shouldRequestModseq() {
		return nil
	}
	delay := s.mailbox.ModseqRetry.Lengthen(modseqRequestDelay)
	delay += rand.N(delay)
	s.mailbox.ModseqRetry.At = s.hub.uptime() + delay
	ctx, cancel := context.WithTimeout(s.hub.ctx, auxLoginTimeout)
	defer cancel()
	aux, err := s.acquireAuxWhile(ctx, func() bool { return !s.client.IsReadable() }) // all sessions query at the same time
	if err != nil {                                                                   // this optional query must not end a session
		s.scheduleWake(delay)
		return nil // until it succeeds, a reattach resends all flags
	}
	_ = s.forwardResponses(aux.TakeAlerts()) // the next write notices a client that is gone
	modseq, err := s.queryModseq(aux)
	if err != nil {
		s.account.Discard(aux, event.DiscardError)
		s.scheduleWake(delay)
		return nil
	}
	s.mailbox.SetPendingModseq(modseq)
	s.account.ReleaseAux(aux)
	return nil
}

// shouldRequestModseq reports whether requestModseq has a query to run now.
func (s *session) shouldRequestModseq() bool {
	return s.mailbox.NeedsModseq() && s.hub.uptime() >= s.mailbox.ModseqRetry.At && s.backend.settings.ReadAfterWrite &&
		s.upstream.Caps().Has("CONDSTORE")
}

// queryModseq queries the mod-sequence, and then opens the mailbox. Dovecot starts to
// keep mod-sequences at the first, and reports them to other connections after the
// second.
func (s *session) queryModseq(aux *lease.Conn) (modseq uint64, err error) {
	for _, query := range [...]struct{ verb, items string }{{"STATUS", " (HIGHESTMODSEQ)"}, {"EXAMINE", ""}} {
		name, err := s.mailbox.Command(query.verb, aux.Caps())
		if err != nil {
			return 0, err
		}
		aux.Selected = aux.Selected || query.verb == "EXAMINE"
		res, err := aux.Run(time.Now().Add(housekeepingTimeout), name+query.items, func(response []byte) error {
			if modseq == 0 {
				modseq = mailbox.ParseHighestModseq(response)
			}
			return s.forwardAlert(response)
		})
		switch {
		case err != nil, res.Code == "UNAVAILABLE", res.Code == "INUSE", res.Code == "SERVERBUG", res.Code == "LIMIT":
			return 0, fmt.Errorf("%s: %s %w", query.verb, upstream.DescribeResponse(res), errors.Join(errBusy, err))
		case res.Name != "OK": // no mod-sequence available
			return 0, nil
		}
	}
	return modseq, nil
}

// confirmModseq makes the backend send all changes with a NOOP, while a command of the
// client permits all responses. Afterwards the mod-sequence of requestModseq holds for
// the client. It is needed at most once for each selected mailbox.
func (s *session) confirmModseq(expunge command.ExpungePolicy) error {
	m := s.mailbox
	if m == nil || !m.HasPendingModseq() || !s.attached || !s.outstanding.isEmpty() || expunge != command.FlushExpunges || s.hasQueuedNumbers() {
		return nil
	}
	res, err := s.upstream.Run(time.Now().Add(housekeepingTimeout), "NOOP", s.forwardUntagged)
	if err != nil {
		return s.wrapRunError(err)
	}
	if res.Name == "OK" {
		m.ConfirmModseq()
	}
	m.DropPendingModseq()
	return nil
}

// resendFlags sends the flag changes that were not available at the attach.
func (s *session) resendFlags() error {
	m := s.mailbox
	if wait := m.FlagRetry.At - s.hub.uptime(); wait > 0 {
		s.scheduleWake(wait)
		return nil
	}
	delay := m.FlagRetry.Lengthen(flagResyncDelay)
	m.FlagRetry.At = s.hub.uptime() + delay
	s.scheduleWake(delay)
	resent, err := s.resyncFlags(m.PostponedFlags(), time.Now().Add(housekeepingTimeout))
	if err == nil && resent {
		m.EndPostponedFlags()
	}
	return err
}

// verifyView compares the view with the messages that the backend reports.
func (s *session) verifyView() error {
	switch v := s.backend.settings.ConsistencyCheck; {
	case v == CheckOff, v == CheckSample && rand.N(sampleInterval) > 0, s.mailbox.UnknownCount() > 0, s.mailbox.IsDesynced(), s.mailbox.Exists() == 0:
		return nil
	}
	exists := s.mailbox.Exists()
	uids, res, err := s.queryUIDs(1, exists, time.Now().Add(housekeepingTimeout), s.forwardUntagged)
	if err != nil {
		return s.wrapRunError(err)
	}
	m := s.hub.deps.Metrics.Mux
	if res.Name != "OK" || s.mailbox.Exists() != exists || uids.Len() < exists { // some messages are gone but not announced
		m.CountConsistencyCheck(event.ResultSkipped)
		return nil
	}
	d, err := s.mailbox.Diff(uids, 0)
	if err == nil && d.ExpungedCount() == 0 && d.NewCount() == 0 {
		m.CountConsistencyCheck(event.ResultSame)
		return nil
	}
	m.CountConsistencyCheck(event.ResultDifferent)
	s.countViolation(event.ViewDifferent)
	return &closeError{event.ViewInconsistent, byeChanged, err}
}

// detachIfConfigured releases the upstream after each command, for tests.
func (s *session) detachIfConfigured() error {
	if !s.backend.settings.AlwaysDetach {
		return nil
	}
	if err := s.fetchMissingUIDs(); err != nil {
		return err
	}
	if s.pinReason == "" && (s.mailbox == nil || !s.mailbox.IsDesynced() && !s.mailbox.AreUIDsDeferred() && !s.mailbox.HasPendingModseq()) {
		s.returnUpstream()
	}
	return nil
}
