package mux

import (
	"errors"

	"imapgate/internal/audit"
	"imapgate/internal/metrics"
	"imapgate/proxy/mux/command"
)

// maxRetries bounds how often what is outstanding is sent again without any of it
// being answered: a command may be what its backend dies of.
const maxRetries = 3

// onUpstreamLost is what becomes of a session whose upstream is lost: nil when it goes
// on.
//
//   - In the middle of a response, nothing more may be written to the client.
//   - With nothing outstanding, it goes on without an upstream until it needs one.
//   - Commands that may be repeated are, in order.
//   - Of one that must not, nobody knows whether it was done. NO would claim that
//     it was not, and the client would do it again.
func (s *session) onUpstreamLost(lost *lostError) error {
	idle, partial := s.idleState != nil, s.commandPartial
	s.dropUpstream(lost)
	switch {
	case s.stopReason.Load() != nil:
		return stopError(*s.stopReason.Load())
	case s.responsePartial:
		return &closeError{reason: audit.UpstreamLost, err: lost}
	case !s.canResume && (s.mailbox != nil || idle || !s.outstanding.isEmpty()), s.pinReason != "", s.mailbox != nil && s.mailbox.desynced:
		return &closeError{audit.BackendLost, byeLost, lost}
	case idle:
		s.scheduleWake(0) // what changed meanwhile is to be told as soon as there is another
		return nil
	case s.outstanding.isEmpty():
		return nil
	}
	s.retries++
	for i, e := range s.outstanding.all() {
		canResend := e.retryable || partial && i == len(s.outstanding.all())-1 // the backend never had the whole of it
		if !canResend || s.retries > maxRetries {
			return &closeError{audit.UpstreamLost, byeLost, lost}
		}
	}
	return s.resendOutstanding()
}

// dropUpstream parts the session from a lease that is lost, and puts the loss on record.
func (s *session) dropUpstream(lost *lostError) {
	if s.upstream == nil {
		return
	}
	rec := audit.MuxEvent{User: s.account.User(), Backend: s.backend.name, Reason: lossReason(lost.err), Duration: s.hub.uptime() - s.upstreamSince}
	if s.mailbox != nil {
		rec.Mailbox = s.mailbox.name
	}
	_ = s.hub.deps.Audit.UpstreamLost(s.auditClient, &rec) // without room it is counted as lost
	s.awaitingContinuation, s.commandPartial = false, false
	s.previousLost = true
	if s.idleState != nil {
		s.idleState.onUpstreamLost(s.hub.uptime())
	}
	s.account.Discard(s.unbindUpstream(), metrics.DiscardClosed)
}

// resendOutstanding sends everything outstanding again on another connection. When messages
// have gone of which the client cannot be told because of one of the commands,
// none is sent.
func (s *session) resendOutstanding() error {
	m := attachOptions{expungePolicy: command.FlushExpunges}
	for _, e := range s.outstanding.all() {
		if e.expungePolicy == command.ForbidExpunges || e.expungePolicy == command.TranslateNumbers {
			m.expungePolicy = command.ForbidExpunges
		}
	}
	visible := s.visibleRange()
	if err := s.attachWithin(m, s.backend.settings.CommandHoldTimeout); err != nil {
		return s.refuseOutstanding(err)
	}
	if s.visibleRange() != visible {
		if err := s.clampAll(visible); err != nil {
			return s.refuseOutstanding(err)
		}
	}
	all := s.outstanding
	s.outstanding = outstandingQueue{}
	for i, e := range all.all() {
		raw := all.raw(e)
		if hasLiteral(raw) {
			if err := s.readReplies(); err != nil {
				return s.keepUnsent(&all, i, err)
			}
		}
		s.hub.deps.Metrics.Mux.CountRetry(e.spec.Name)
		s.outstanding.add(e, raw)
		s.tainted = s.tainted || e.pinReason == audit.PinSyntax
		if err := s.sendCommand(raw); err != nil {
			return s.keepUnsent(&all, i+1, err)
		}
	}
	return nil
}

// keepUnsent keeps the commands from the i-th of all on, which err has kept from being
// sent again.
func (s *session) keepUnsent(all *outstandingQueue, i int, err error) error {
	unparsable, ok := asUnparsable(err)
	if !ok {
		s.outstanding.addFrom(all, i)
		return err
	}
	for _, e := range all.all()[i:] {
		if hasLiteral(all.raw(e)) { // it has to be asked for, and nobody is here to do it
			return &closeError{audit.UpstreamLost, byeLost, err}
		}
		unparsable.unsent = append(unparsable.unsent, all.raw(e)...)
	}
	return err
}

// clampAll keeps what is sent again from what has arrived since it was sent
// first. If one command cannot be, none is sent.
func (s *session) clampAll(visible visibleRange) error {
	clamped := outstandingQueue{}
	for _, e := range s.outstanding.all() {
		raw := s.outstanding.raw(e)
		if changesMessages(e.spec) {
			var err error
			if raw, err = visible.clamp(raw, e.spec); err != nil {
				return errPendingExpunges
			}
		}
		clamped.add(e, raw)
	}
	s.outstanding = clamped
	return nil
}

// readReplies waits until nothing is outstanding, or the upstream is lost.
func (s *session) readReplies() error {
	for !s.outstanding.isEmpty() {
		err := s.relay()
		if err == nil && !s.outstanding.isEmpty() {
			err = s.readReply()
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// refuseOutstanding refuses everything outstanding. Where the client cannot be told of what
// has gone, only what needs the mailbox is.
func (s *session) refuseOutstanding(err error) error {
	refusal, end := s.attachRefusal(err)
	if end != nil {
		return end
	}
	all := s.outstanding
	s.outstanding = outstandingQueue{}
	for _, e := range all.all() {
		if errors.Is(err, errPendingExpunges) && e.expungePolicy == command.FlushExpunges {
			if err := s.runWithoutMailbox(e, all.raw(e)); err != nil {
				return err
			}
			continue
		}
		if err := s.reply(string(all.tagOf(e)), refusal); err != nil {
			return err
		}
	}
	return nil
}

// recoverLoss is survive for every loss there is in err, and err where it is none.
func (s *session) recoverLoss(err error) error {
	for {
		lost, ok := asLost(err)
		if !ok {
			return err
		}
		err = s.onUpstreamLost(lost)
	}
}
