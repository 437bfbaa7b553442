package mux

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"imapgate/internal/event"
	"imapgate/proxy/relay"
	"imapgate/proxy/relay/mux/command"
	"imapgate/proxy/relay/mux/lease"
	"imapgate/proxy/relay/mux/mailbox"
	"imapgate/proxy/upstream"
)

const (
	uidFetchDelay       = 2 * time.Second  // time in a mailbox; saves the query if the client soon leaves it
	flagResyncDelay     = 5 * time.Second  // between attempts to send pending flag changes
	modseqRequestDelay  = time.Second      // between attempts to enable mod-sequences, plus a random delay of the same size
	housekeepingTimeout = 30 * time.Second // for the answer to a command of the gateway
	sampleInterval      = 1000             // one of this many calls verifies the view
)

// runHousekeeping runs the gateway's own commands while the client has none outstanding.
func (s *session) runHousekeeping() error {
	switch {
	case s.client.idle != nil:
		return s.maintainIdle()
	case s.upstream.Conn == nil || !s.upstream.outstanding.isEmpty() || !s.isResume || s.upstream.pinReason != "":
		return nil
	case s.mailbox == nil || !s.upstream.attached:
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
func (x *exchange) shouldFetchUIDs() bool {
	settings := x.upstream.backend.settings
	switch {
	case settings.UIDPrefetch == PrefetchLazy:
		return false
	case settings.UIDPrefetch == PrefetchEager:
		return true
	case x.mailbox.Exists() > uint32(settings.UIDPrefetchMaxMessages):
		return false
	}
	if wait := uidFetchDelay - (x.hub.uptime() - x.mailbox.SelectedAt); wait > 0 {
		x.scheduleWake(wait)
		return false
	}
	return true
}

// fetchMissingUIDs fetches the UIDs that the client's view lacks. If the backend omits
// some, a NOOP would not help: the client has no command in progress, so it must not receive an
// EXPUNGE.
func (x *exchange) fetchMissingUIDs() error {
	for x.isResume && x.mailbox != nil && x.upstream.attached {
		first, last, ok := x.mailbox.UnknownRange()
		if !ok {
			return nil
		}
		uids, res, err := x.upstream.queryUIDs(first, last, time.Now().Add(housekeepingTimeout), x.forwardUntagged)
		if err != nil {
			return wrapRunError(err)
		}
		if err := x.mailbox.LearnUIDs(first, last, uids, res); err != nil {
			x.desyncView(err)
		}
	}
	return nil
}

// flushAfterUIDs holds back the final response until the UIDs of new messages are known.
// A QRESYNC client receives expunges by UID; after a lost upstream, expunges of messages
// without a known UID could not be reported.
func (x *exchange) flushAfterUIDs(run, response []byte) error {
	deferred := bytes.Clone(response)
	if err := x.client.send(run); err != nil {
		return err
	}
	x.client.deferred = deferred
	fetchErr := x.fetchMissingUIDs() // a loss here comes after the command, which has been answered
	deferred, x.client.deferred = x.client.deferred, nil
	x.client.responsePartial = false
	return errors.Join(x.client.send(deferred), fetchErr)
}

// requestModseq makes the backend keep mod-sequences for a mailbox that has none yet:
// some backends start at the first query (RFC 7162 §3.1.2.2). The returned value
// describes the client's state after the next NOOP, when the client has received all
// changes. Only one session of a user queries at a time; the others retry a little later.
func (x *exchange) requestModseq() error {
	if !x.shouldRequestModseq() {
		return nil
	}
	delay := x.mailbox.ModseqRetry.Lengthen(modseqRequestDelay)
	delay += rand.N(delay)
	x.mailbox.ModseqRetry.At = x.hub.uptime() + delay
	ctx, cancel := context.WithTimeout(x.hub.ctx, auxLoginTimeout)
	defer cancel()
	aux, err := x.upstream.acquireAuxWhile(ctx, func() bool { return !x.client.IsReadable() }) // all sessions query at the same time
	if err != nil {                                                                            // this optional query must not end a session
		x.scheduleWake(delay)
		return nil // until it succeeds, a reattach resends all flags
	}
	_ = x.client.forwardResponses(aux.TakeAlerts()) // the next write notices a client that is gone
	modseq, err := queryModseq(aux, x.mailbox, x.client.forwardAlert)
	if err != nil {
		x.upstream.account.Discard(aux, event.DiscardError)
		x.scheduleWake(delay)
		return nil
	}
	x.mailbox.SetPendingModseq(modseq)
	x.upstream.account.ReleaseAux(aux)
	return nil
}

// shouldRequestModseq reports whether requestModseq has a query to run now.
func (x *exchange) shouldRequestModseq() bool {
	return x.mailbox.NeedsModseq() && x.hub.uptime() >= x.mailbox.ModseqRetry.At && x.upstream.backend.settings.ReadAfterWrite &&
		x.upstream.Caps().Has("CONDSTORE")
}

// queryModseq queries the mod-sequence, and then opens the mailbox. Dovecot starts to
// keep mod-sequences at the first, and reports them to other connections after the
// second.
func queryModseq(aux *lease.Conn, m *mailbox.Mailbox, onUntagged func([]byte) error) (modseq uint64, err error) {
	for _, query := range [...]struct{ verb, items string }{{"STATUS", " (HIGHESTMODSEQ)"}, {"EXAMINE", ""}} {
		name, err := m.Command(query.verb, aux.Caps())
		if err != nil {
			return 0, err
		}
		aux.Selected = aux.Selected || query.verb == "EXAMINE"
		res, err := aux.Run(time.Now().Add(housekeepingTimeout), name+query.items, func(response []byte) error {
			if modseq == 0 {
				modseq = mailbox.ParseHighestModseq(response)
			}
			return onUntagged(response)
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

// confirmModseq flushes all changes while a command of the client permits all responses.
// Afterwards the mod-sequence of requestModseq holds for the client. It is needed at most once
// for each selected mailbox.
func (x *exchange) confirmModseq(expunge command.ExpungePolicy) error {
	m := x.mailbox
	if m == nil || !m.HasPendingModseq() || !x.upstream.attached || !x.upstream.outstanding.isEmpty() || expunge != command.FlushExpunges || x.client.hasQueuedNumbers() {
		return nil
	}
	return x.flushChanges()
}

// flushChanges makes the backend send all changes with a NOOP.
func (x *exchange) flushChanges() error {
	m := x.mailbox
	res, err := x.upstream.Run(time.Now().Add(housekeepingTimeout), "NOOP", x.forwardUntagged)
	if err != nil {
		return wrapRunError(err)
	}
	if res.Name == "OK" {
		m.ConfirmModseq()
		m.AllowUIDs()
	}
	m.DropPendingModseq()
	return nil
}

// resendFlags sends the flag changes that were not available at the attach.
func (x *exchange) resendFlags() error {
	m := x.mailbox
	if wait := m.FlagRetry.At - x.hub.uptime(); wait > 0 {
		x.scheduleWake(wait)
		return nil
	}
	delay := m.FlagRetry.Lengthen(flagResyncDelay)
	m.FlagRetry.At = x.hub.uptime() + delay
	x.scheduleWake(delay)
	r := &resync{exchange: x, data: m.PostponedFlags(), deadline: time.Now().Add(housekeepingTimeout)}
	resent, err := r.resyncFlags()
	if err == nil && resent {
		m.EndPostponedFlags()
	}
	return err
}

// verifyView compares the view with the messages that the backend reports.
func (x *exchange) verifyView() error {
	switch v := x.upstream.backend.settings.ConsistencyCheck; {
	case v == CheckOff, v == CheckSample && rand.N(sampleInterval) > 0, x.mailbox.UnknownCount() > 0, x.mailbox.IsDesynced(), x.mailbox.Exists() == 0:
		return nil
	}
	exists := x.mailbox.Exists()
	uids, res, err := x.upstream.queryUIDs(1, exists, time.Now().Add(housekeepingTimeout), x.forwardUntagged)
	if err != nil {
		return wrapRunError(err)
	}
	m := x.hub.deps.Metrics.Mux
	if res.Name != "OK" || x.mailbox.Exists() != exists || uids.Len() < exists { // some messages are gone but not announced
		m.CountConsistencyCheck(event.ResultSkipped)
		return nil
	}
	d, err := x.mailbox.Diff(uids, 0)
	if err == nil && d.ExpungedCount() == 0 && d.NewCount() == 0 {
		m.CountConsistencyCheck(event.ResultSame)
		return nil
	}
	m.CountConsistencyCheck(event.ResultDifferent)
	x.upstream.countViolation(event.ViewDifferent)
	return &relay.CloseError{Reason: event.ViewInconsistent, Bye: byeChanged, Err: err}
}

// detachIfConfigured releases the upstream after each command, for tests.
func (x *exchange) detachIfConfigured() error {
	if !x.upstream.backend.settings.AlwaysDetach {
		return nil
	}
	if err := x.fetchMissingUIDs(); err != nil {
		return err
	}
	if x.canDetach() {
		x.returnUpstream()
	}
	return nil
}

// canDetach reports whether the session can continue on another connection without loss:
// its view is known, or is not the lease's.
func (x *exchange) canDetach() bool {
	m := x.mailbox
	return x.upstream.pinReason == "" && (m == nil || !x.upstream.attached || !m.IsDesynced() && !m.AreUIDsDeferred() && !m.HasPendingModseq())
}
