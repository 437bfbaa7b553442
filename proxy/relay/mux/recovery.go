package mux

import (
	"errors"
	"slices"

	"imapgate/internal/audit"
	"imapgate/internal/event"
	"imapgate/internal/imap"
	"imapgate/proxy/relay"
	"imapgate/proxy/relay/mux/command"
	"imapgate/proxy/relay/mux/mailbox"
)

// maxRetries bounds how often outstanding commands are resent without an answer to any of
// them. A command may be what crashes its backend.
const maxRetries = 3

// onUpstreamLost recovers a session from the loss of its upstream, or returns its end.
//
//   - In the middle of a response, nothing more may be written to the client.
//   - With nothing outstanding, the session continues without an upstream until it needs one.
//   - Commands that may be repeated are resent in order.
//   - The outcome of any other command is unknown, so the session ends. NO would claim that
//     it failed, and the client would repeat it.
func (s *session) onUpstreamLost(lost *lostError) error {
	idle, partial := s.client.idle != nil, s.upstream.commandPartial
	s.dropUpstream(lost)
	switch {
	case s.client.stopReason.Load() != nil:
		return s.stopError(*s.client.stopReason.Load())
	case s.client.responsePartial:
		return &relay.CloseError{Reason: event.UpstreamLost, Err: lost}
	case !s.isResume && (s.mailbox != nil || idle || !s.upstream.outstanding.isEmpty()), s.upstream.pinReason != "", s.mailbox != nil && s.mailbox.IsDesynced():
		return &relay.CloseError{Reason: event.BackendLost, Bye: byeLost, Err: lost}
	case idle:
		s.scheduleWake(0) // send the changes as soon as there is a new upstream
		return nil
	case s.upstream.outstanding.isEmpty():
		return nil
	}
	s.upstream.retries++
	for i, e := range s.upstream.outstanding.all() {
		canResend := e.retryable || partial && i == len(s.upstream.outstanding.all())-1 // the backend has not received all of it
		if !canResend || s.upstream.retries > maxRetries {
			return &relay.CloseError{Reason: event.UpstreamLost, Bye: byeLost, Err: lost}
		}
	}
	return s.resendOutstanding()
}

// dropUpstream discards the lost lease and records the loss.
func (x *exchange) dropUpstream(lost *lostError) {
	if x.upstream.Conn == nil {
		return
	}
	rec := audit.MuxEvent{User: x.upstream.account.User(), Backend: x.upstream.backend.name, Duration: x.hub.uptime() - x.upstream.since}
	if x.mailbox != nil {
		rec.Mailbox = x.mailbox.Name()
	}
	_ = x.hub.deps.Audit.UpstreamLost(x.client.audit, &rec, lossReason(lost.err)) // if the log is full, it is counted as lost
	x.upstream.awaitingContinuation, x.upstream.commandPartial = false, false
	x.upstream.previousLost = true
	if x.client.idle != nil {
		x.client.idle.onUpstreamLost(x.hub.uptime())
	}
	x.upstream.account.Discard(x.unbindUpstream(), event.DiscardClosed)
	x.live.SetLocation(x.upstream.backend.name, "", x.upstream.account.LoginName())
}

// resendOutstanding resends all outstanding commands on another connection. It resends
// none if one of them forbids expunges that the client must receive first.
func (s *session) resendOutstanding() error {
	opts := attachOptions{expungePolicy: command.FlushExpunges}
	for _, e := range s.upstream.outstanding.all() {
		if e.expungePolicy == command.ForbidExpunges || e.expungePolicy == command.TranslateNumbers {
			opts.expungePolicy = command.ForbidExpunges
		}
	}
	visible := s.mailbox.VisibleRange()
	if err := s.attach(opts); err != nil {
		return s.refuseOutstanding(err)
	}
	if s.mailbox.VisibleRange() != visible {
		if err := s.upstream.clampAll(visible); err != nil {
			return s.refuseOutstanding(err)
		}
	}
	all := s.upstream.outstanding
	s.upstream.outstanding = outstandingQueue{}
	for i, e := range all.all() {
		raw := all.raw(e)
		if hasLiteral(raw) {
			if err := s.readReplies(); err != nil {
				return s.upstream.keepUnsent(&all, i, err)
			}
		}
		s.hub.deps.Metrics.Mux.CountRetry(e.spec.Name)
		s.upstream.outstanding.add(e, raw)
		s.upstream.tainted = s.upstream.tainted || e.pinReason == event.PinSyntax
		if err := s.sendCommand(raw); err != nil {
			return s.upstream.keepUnsent(&all, i+1, err)
		}
	}
	return nil
}

// keepUnsent keeps the commands of all from index i, which were not resent because of
// err.
func (u *upstreamSide) keepUnsent(all *outstandingQueue, i int, err error) error {
	unparsable, ok := asUnparsable(err)
	if !ok {
		u.outstanding.addFrom(all, i)
		return err
	}
	for _, e := range all.all()[i:] {
		if hasLiteral(all.raw(e)) { // its continuation requests cannot be answered after the handover
			return &relay.CloseError{Reason: event.UpstreamLost, Bye: byeLost, Err: err}
		}
		unparsable.unsent = append(unparsable.unsent, all.raw(e)...)
	}
	return err
}

// clampAll limits resent commands to the messages visible when the client sent them. If
// it fails for one command, none is resent.
func (u *upstreamSide) clampAll(visible mailbox.VisibleRange) error {
	clamped := outstandingQueue{}
	for _, e := range u.outstanding.all() {
		raw := u.outstanding.raw(e)
		if changesMessages(e.spec) {
			var err error
			if raw, err = clampCommand(raw, e.spec, visible); err != nil {
				return errPendingExpunges
			}
		}
		clamped.add(e, raw)
	}
	u.outstanding = clamped
	return nil
}

// readReplies reads until nothing is outstanding or the upstream is lost.
func (x *exchange) readReplies() error {
	for !x.upstream.outstanding.isEmpty() {
		err := x.relay()
		if err == nil && !x.upstream.outstanding.isEmpty() {
			err = x.readReply()
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// refuseOutstanding refuses all outstanding commands. With pending expunges it refuses
// only those that need the mailbox.
func (s *session) refuseOutstanding(err error) error {
	refusal, end := s.attachRefusal(err)
	if end != nil {
		return end
	}
	all := s.upstream.outstanding
	s.upstream.outstanding = outstandingQueue{}
	for _, e := range all.all() {
		if errors.Is(err, errPendingExpunges) && e.expungePolicy == command.FlushExpunges {
			if err := s.runWithoutMailbox(e, all.raw(e)); err != nil {
				return err
			}
			continue
		}
		if err := s.client.reply(string(all.tagOf(e)), refusal); err != nil {
			return err
		}
	}
	return nil
}

// recoverLoss recovers from every loss in err with onUpstreamLost. It returns other
// errors unchanged.
func (s *session) recoverLoss(err error) error {
	for {
		lost, ok := asLost(err)
		if !ok {
			return err
		}
		err = s.onUpstreamLost(lost)
	}
}

// changesMessages reports whether a command changes the messages of its set.
func changesMessages(spec *command.Spec) bool {
	switch spec.Name {
	case "STORE", "UID STORE", "UID COPY", "UID MOVE", "UID EXPUNGE":
		return true
	}
	return false
}

// clampCommand returns a command that changes messages with its set limited to visible.
// It returns mailbox.ErrRange for numbers beyond it, mailbox.ErrNoMatch if no UID remains,
// and errPendingExpunges if the limit is unknown.
func clampCommand(raw []byte, spec *command.Spec, visible mailbox.VisibleRange) ([]byte, error) {
	facts, err := command.Parse(raw)
	if err != nil || facts.Set == nil {
		return raw, nil // "$", or no message set
	}
	set, err := imap.ParseSet(string(facts.Set))
	if err != nil {
		return nil, errPendingExpunges
	}
	var clamped imap.Set
	if spec.Name == "STORE" {
		clamped, err = visible.ClampNumbers(set)
	} else {
		clamped, err = visible.ClampUIDs(set)
	}
	switch {
	case errors.Is(err, mailbox.ErrUnknownUID):
		return nil, errPendingExpunges
	case err != nil:
		return nil, err
	case clamped == nil:
		return raw, nil
	}
	return slices.Concat(raw[:facts.SetPos], []byte(clamped.String()), raw[facts.SetPos+len(facts.Set):]), nil
}
