package mux

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
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

// shouldFetchUIDs reports whether to complete the view now, and schedules a wake if it is
// due later.
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

// fetchMissingUIDs fetches the UIDs that the client's view lacks. If the backend omits
// some because messages are gone, the rest waits until the backend has announced that. A
// NOOP would not help: the client has no command in progress, so it must not receive an
// EXPUNGE.
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
			_, err := s.desyncView(event.CountMismatch, mailbox.ErrUIDMismatch)
			return err
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
	m := s.mailbox
	m.modseqRequestWait = min(max(2*m.modseqRequestWait, modseqRequestDelay), time.Minute)
	delay := m.modseqRequestWait + rand.N(m.modseqRequestWait)
	m.nextModseqRequest = s.hub.uptime() + delay
	ctx, cancel := context.WithTimeout(s.hub.ctx, auxLoginTimeout)
	defer cancel()
	aux, err := s.acquireAuxWhile(ctx, func() bool { return !s.client.IsReadable() }) // all sessions query at the same time
	if err != nil {                                                                   // this optional query must not end a session
		s.scheduleWake(delay)
		return nil // until it succeeds, a reattach resends all flags
	}
	_ = s.forwardResponses(aux.TakeAlerts()) // the next write notices a client that is gone
	if m.pendingModseq, err = s.queryModseq(aux); err != nil {
		s.account.Discard(aux, event.DiscardError)
		s.scheduleWake(delay)
		return nil
	}
	m.modseqRequested = true
	s.account.ReleaseAux(aux)
	return nil
}

// shouldRequestModseq reports whether requestModseq has a query to run now.
func (s *session) shouldRequestModseq() bool {
	m := s.mailbox
	return m.modseq == 0 && !m.modseqRequested && s.hub.uptime() >= m.nextModseqRequest && m.isASCII() && s.backend.settings.ReadAfterWrite &&
		s.upstream.Caps().Has("CONDSTORE")
}

// queryModseq queries the mod-sequence, and then opens the mailbox. Dovecot starts to
// keep mod-sequences at the first, and reports them to other connections after the
// second.
func (s *session) queryModseq(aux *lease.Conn) (modseq uint64, err error) {
	for _, query := range [...]struct{ verb, items string }{{"STATUS", " (HIGHESTMODSEQ)"}, {"EXAMINE", ""}} {
		name, err := (&selectedMailbox{verb: query.verb, name: s.mailbox.name}).selectCommand(aux.Caps())
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
		case res.Name != "OK": // no mod-sequence available
			return 0, nil
		}
	}
	return modseq, nil
}

// parseLeadingUint64 parses a number at the start of b; 0 for none.
func parseLeadingUint64(b []byte) uint64 {
	digits := b[:len(b)-len(bytes.TrimLeft(b, "0123456789"))]
	n, _ := strconv.ParseUint(string(digits), 10, 63) // 0: unknown
	return n
}

// confirmModseq makes the backend send all changes with a NOOP, while a command of the
// client permits all responses. Afterwards the mod-sequence of requestModseq holds for
// the client. It is needed at most once for each selected mailbox.
func (s *session) confirmModseq(expunge command.ExpungePolicy) error {
	m := s.mailbox
	if m == nil || m.pendingModseq == 0 || !s.attached || !s.outstanding.isEmpty() || expunge != command.FlushExpunges || s.hasQueuedNumbers() {
		return nil
	}
	res, err := s.upstream.Run(time.Now().Add(housekeepingTimeout), "NOOP", s.forwardUntagged)
	if err != nil {
		return s.wrapRunError(err)
	}
	if res.Name == "OK" {
		m.modseq = m.pendingModseq
	}
	m.pendingModseq = 0
	return nil
}

// resendFlags sends the flag changes that were not available at the attach.
func (s *session) resendFlags() error {
	if wait := s.mailbox.nextFlagResync - s.hub.uptime(); wait > 0 {
		s.scheduleWake(wait)
		return nil
	}
	s.mailbox.flagResyncWait = min(max(2*s.mailbox.flagResyncWait, flagResyncDelay), time.Minute)
	s.mailbox.nextFlagResync = s.hub.uptime() + s.mailbox.flagResyncWait
	s.scheduleWake(s.mailbox.flagResyncWait)
	data := &selectData{modseq: s.mailbox.flagsPendingModseq}
	resent, err := s.resyncFlags(data, time.Now().Add(housekeepingTimeout))
	if err != nil || !resent {
		return err
	}
	s.mailbox.flagsPending, s.mailbox.flagResyncWait = false, 0
	s.mailbox.modseq = max(s.mailbox.modseq, data.modseq)
	return nil
}

// verifyView compares the view with the messages that the backend reports.
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
	if res.Name != "OK" || s.mailbox.view.Exists() != exists || uids.Len() < exists { // some messages are gone but not announced
		m.CountConsistencyCheck(event.ResultSkipped)
		return nil
	}
	d, err := s.mailbox.view.Diff(uids, 0)
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
	if s.pinReason == "" && (s.mailbox == nil || !s.mailbox.desynced && !s.mailbox.uidsDeferred && s.mailbox.pendingModseq == 0) {
		s.returnUpstream()
	}
	return nil
}
