package mux

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"imapgate/internal/audit"
	"imapgate/internal/imap"
	"imapgate/internal/metrics"
	"imapgate/proxy/mux/command"
	"imapgate/proxy/mux/pool"
	"imapgate/proxy/mux/view"
	"imapgate/proxy/upstream"
	"imapgate/routing"
)

// Waits between attempts to get at a backend that is away.
const (
	minRetryDelay = 50 * time.Millisecond
	maxRetryDelay = time.Second
)

// What an attach can come to besides a session in step with its backend.
var (
	errPendingExpunges = errors.New("messages are gone, and the client cannot be told while the command runs")
	errNoSuchMessage   = errors.New("there are no messages with these numbers")
	errBusy            = errors.New("backend is busy, or the mailbox is")
)

// attachOptions is when an attach happens: what may be told, and what is asked.
type attachOptions struct {
	expungePolicy  command.ExpungePolicy
	translate      *request    // a COPY, MOVE or REPLACE whose numbers are to become UIDs
	withoutMailbox bool        // any connection will do
	slot           *attachSlot // of a session in IDLE; nil: one is waited for
}

// attach gets the session a connection with its mailbox selected, and tells the
// client what has changed, as far as r allows. It tries for CommandHoldTimeout.
//
// Errors: errPendingExpunges, an *ending, and what isTransient says yes to.
func (s *session) attach(r *request) error {
	s.uidSet = ""
	return s.attachWithin(r.attachOptions(), s.backend.settings.CommandHoldTimeout)
}

// attachOptions is what may be told while the command waits to be sent.
func (r *request) attachOptions() attachOptions {
	m := attachOptions{expungePolicy: r.facts.ExpungePolicy}
	if m.expungePolicy == command.TranslateNumbers {
		m.translate = r
	}
	return m
}

func (s *session) attachWithin(m attachOptions, timeout time.Duration) error {
	start := time.Now()
	reason := audit.AfterDetach
	if s.previousLost {
		reason = audit.AfterLoss
	}
	var d *view.Diff
	tries := 0
	err := s.retryTransient(timeout, func(h *holdTimer) (err error) {
		tries++
		d, err = s.attachOnce(m, h)
		return err
	})
	if tries > 1 {
		reason = audit.AfterHold
	}
	if err == nil {
		s.previousLost = false
	}
	if timeout > 0 || !isTransient(err) && !isLost(err) { // or it is tried again, for as long as the client idles
		s.recordAttach(reason, start, d, err)
	}
	return err
}

// retryTransient tries until it works or cannot, as long as patience lasts: commands
// wait for a backend that is down. The last try begins at its end.
func (s *session) retryTransient(timeout time.Duration, try func(h *holdTimer) error) error {
	now := time.Now()
	h := &holdTimer{startedAt: now, timeout: timeout, deadline: now.Add(max(timeout, s.backend.settings.IdleReattachTimeout))}
	for wait := minRetryDelay; ; wait = min(2*wait, maxRetryDelay) {
		err := try(h)
		remaining := h.remaining(0)
		if !isTransient(err) && !isLost(err) || remaining <= 0 || s.aborted.Load() || s.hub.ctx.Err() != nil {
			return err
		}
		s.hub.sleep(min(wait+rand.N(wait), remaining))
	}
}

// sleep waits for d, or until the Hub closes.
func (h *Hub) sleep(d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-h.ctx.Done():
	}
}

// recordAttach puts an attach on record. One of a session without a mailbox is
// none.
func (s *session) recordAttach(reason audit.Why, start time.Time, d *view.Diff, err error) {
	if s.mailbox == nil || !s.attached && err == nil {
		return
	}
	rec := audit.MuxEvent{
		User: s.account.User(), Backend: s.backend.name, Mailbox: s.mailbox.name, Reason: reason,
		Result: attachResult(err), Duration: time.Since(start),
	}
	if d != nil {
		rec.Expunged, rec.Arrived = d.ExpungedCount(), d.NewCount()
	}
	_ = s.hub.deps.Audit.SessionReattached(s.auditClient, &rec) // without room it is counted as lost
	s.hub.deps.Metrics.Mux.CountReattach(string(reason), string(rec.Result), rec.Duration)
}

// attachResult is how the audit log calls it.
func attachResult(err error) audit.Result {
	e := (*closeError)(nil)
	switch {
	case err == nil, errors.Is(err, errPendingExpunges):
		return audit.AttachOK
	case errors.As(err, &e):
		switch e.reason {
		case audit.MailboxGone:
			return audit.AttachGone
		case audit.MailboxChanged:
			return audit.AttachChanged
		case audit.MailboxTooLarge:
			return audit.AttachTooLarge
		case audit.LoginRevoked, audit.TokenExpired:
			return audit.AttachRefused
		case audit.ViewInconsistent:
			return audit.AttachInconsistent
		}
		return audit.AttachCanceled
	case errors.Is(err, pool.ErrBusy):
		return audit.AttachLimit
	case errors.Is(err, context.DeadlineExceeded):
		return audit.AttachTimeout
	case isLost(err):
		return audit.AttachLost
	}
	return audit.AttachUnavailable
}

// attachOnce is one attempt: a turn, a lease, the mailbox, the difference, the flush.
func (s *session) attachOnce(m attachOptions, h *holdTimer) (*view.Diff, error) {
	if s.mailbox != nil && !m.withoutMailbox && m.slot == nil {
		var err error
		if m.slot, err = s.acquireAttachSlot(h); err != nil {
			return nil, err
		}
	}
	if m.slot != nil {
		defer m.slot.release()
	}
	deadline := s.tryDeadline()
	if s.upstream != nil && s.tainted { // what it says next may be the client's doing, or nothing that can be followed
		s.returnUpstream()
	}
	if s.upstream == nil {
		if err := s.acquireLease(deadline); err != nil {
			return nil, err
		}
	}
	if s.mailbox == nil || m.withoutMailbox {
		return nil, nil
	}
	d, err := s.syncMailbox(m, deadline)
	if err != nil && s.upstream != nil && !isLost(err) {
		s.returnUpstream()
	} else if err != nil && s.upstream != nil {
		s.account.Discard(s.unbindUpstream(), metrics.DiscardError)
	}
	return d, err
}

// acquireLease gets a connection with what the client has enabled, and nothing selected.
func (s *session) acquireLease(deadline time.Time) error {
	ctx, cancel := context.WithDeadline(s.hub.ctx, deadline)
	defer cancel()
	if err := s.checkRoute(ctx); err != nil {
		return err
	}
	conn, err := s.account.Acquire(ctx, s.enabled)
	if err != nil {
		return s.checkRevoked(err)
	}
	if err := s.checkRoute(ctx); err != nil { // a lease may have to wait for its turn
		s.account.Release(conn)
		return err
	}
	s.bindUpstream(conn)
	return s.forwardResponses(conn.TakeAlerts())
}

// checkRoute makes sure that the mailbox is still the user's and has not moved, before
// the session writes to where it was. While nobody knows, it has not.
func (s *session) checkRoute(ctx context.Context) error {
	user := s.account.User()
	location, err := s.hub.cfg.Locate(ctx, user)
	switch {
	case errors.Is(err, routing.ErrNoUser), errors.Is(err, routing.ErrBlocked):
		s.hub.evictUser(user)
		return &closeError{audit.LoginRevoked, byeRevoked, err}
	case errors.Is(err, routing.ErrPaused): // to be held, for a while
		return fmt.Errorf("%w: %w", errBusy, err)
	case err == nil && location.Backend != s.backend.name:
		s.hub.EvictElsewhere(user, location)
		return &closeError{audit.Moved, byeMoved, nil}
	case err == nil && s.loginFromRoute && location.Login != s.account.LoginName():
		s.hub.EvictElsewhere(user, location)
		return &closeError{audit.LoginChanged, byeMoved, nil}
	}
	return nil
}

// syncMailbox selects the mailbox and brings the client's view and the backend's
// together. It leaves its turn at the backend when it is the client's.
func (s *session) syncMailbox(m attachOptions, deadline time.Time) (*view.Diff, error) {
	data, err := s.reselect(deadline)
	if err != nil {
		return nil, err
	}
	if m.expungePolicy == command.DropExpunges {
		s.attached = true // about to be closed: nobody need be told of anything
		return nil, nil
	}
	d, err := s.diffView(data, deadline)
	if err != nil {
		return nil, err
	}
	if m.translate != nil {
		s.translateSet(m.translate, d) // as the client means them: the flush, maybe of an earlier try, changes what they mean
	}
	if d != nil && d.ExpungedCount() > 0 && (m.expungePolicy == command.ForbidExpunges || s.hasQueuedNumbers()) {
		s.hub.deps.Metrics.Mux.CountDeferredExpunge()
		return d, errPendingExpunges
	}
	m.slot.releaseAttached()
	if err := s.writeResync(d, data, time.Now().Add(housekeepingTimeout)); err != nil { // begun, it has its own time
		return d, err
	}
	return d, nil
}

// hasQueuedNumbers says whether the client has already sent a command that names
// messages by number, as it knew them when it sent it.
func (s *session) hasQueuedNumbers() bool {
	if s.expungePolicy == command.ForbidExpunges || s.expungePolicy == command.TranslateNumbers {
		return true
	}
	for line := range bytes.Lines(s.client.Peek()) {
		facts, err := command.Parse(line)
		if errors.Is(err, command.ErrTag) || errors.Is(err, command.ErrCommand) {
			continue // a line of a literal, DONE, or none at all
		}
		if facts.ExpungePolicy == command.ForbidExpunges || facts.ExpungePolicy == command.TranslateNumbers {
			return true
		}
	}
	return false
}

// runWithoutMailbox does a command before which the client cannot be told of messages that are
// gone, because of another by number that it has sent already. Only that one
// deserves a NO: this one is done without telling, on a connection that does not
// have the mailbox, or where it only asks to be told, by an OK.
//
// What needs the mailbox is refused all the same, and so is what would tell of
// mod-sequences beyond the expunges that the client does not know (RFC 7162 §3.2.5).
func (s *session) runWithoutMailbox(e outstandingCommand, raw []byte) error {
	tag := string(raw[:e.tagLen])
	switch {
	case e.isSyncPoint:
		return s.reply(tag, " OK ", e.spec.Name, " completed.")
	case !e.withoutMailbox:
		refusal, _ := s.attachRefusal(errPendingExpunges)
		return s.reply(tag, refusal)
	}
	previous := s.expungePolicy
	s.expungePolicy = command.ForbidExpunges // also for an attach behind a loss
	defer func() { s.expungePolicy = previous }()
	if err := s.attachWithin(attachOptions{withoutMailbox: true}, s.backend.settings.CommandHoldTimeout); err != nil {
		refusal, end := s.attachRefusal(err)
		if end != nil {
			return end
		}
		return s.reply(tag, refusal)
	}
	s.avoidTagPrefix(raw[:e.tagLen])
	s.upstream.Enabled = s.enabled
	s.outstanding.add(e, raw)
	if err := s.recoverLoss(s.sendCommand(raw)); err != nil {
		return err
	}
	return s.awaitReplies()
}

// translateSet turns the numbers of a COPY into UIDs. Those that the client cannot
// mean are not sent, because they may have come to mean something.
func (s *session) translateSet(r *request, d *view.Diff) {
	switch {
	case d == nil:
		return // the numbers are the backend's, or UIDs by now
	case s.uidSet != "":
		if uids, err := imap.ParseSet(s.uidSet); err == nil && d.ContainsExpunged(uids) {
			s.uidSet = untranslatable // gone since an earlier try
		}
		return
	}
	s.uidSet = untranslatable
	set, err := imap.ParseSet(string(r.facts.Set))
	if err != nil {
		return
	}
	uids, ghosts, err := s.mailbox.view.TranslateSet(set, d)
	switch {
	case err == nil && !ghosts:
		s.uidSet = uids.String()
	case errors.Is(err, view.ErrRange):
		s.uidSet = outOfRange
	}
}

// untranslatable stands for numbers of which some are ghosts, or cannot be read: the
// command is not sent.
const untranslatable = "-"

// outOfRange stands for numbers that the client cannot mean: they are beyond EXISTS.
const outOfRange = "0"

// answerUnattached answers the command in hand, for which an attach has failed.
func (s *session) answerUnattached(err error) error {
	refusal, end := s.attachRefusal(err)
	if end != nil {
		return end
	}
	return s.reply(string(s.request.tag), refusal)
}

// attachRefusal is the answer to a command for which an attach has failed, or the
// session's end. With a mailbox selected a NO would be of no use: every command
// that follows would meet with the same.
//
// EXPUNGEISSUED (RFC 5530, RFC 2180 §4.1.2) means messages that are gone: the
// client is told of them at its next command.
func (s *session) attachRefusal(err error) (string, error) {
	switch {
	case errors.Is(err, errPendingExpunges):
		s.hub.deps.Metrics.Mux.CountExpungeIssued()
		return " NO [EXPUNGEISSUED] Some of the messages have been deleted and no longer exist.", nil
	case errors.Is(err, errNoMatch):
		return " OK No message has one of these UIDs.", nil
	case errors.Is(err, errNoSuchMessage):
		return " BAD No such message.", nil
	case !isTransient(err) && !isLost(err):
		return "", err
	case s.mailbox != nil:
		return "", &closeError{audit.UpstreamAway, byeUnavailable, err}
	}
	return " NO [UNAVAILABLE] Mail store is temporarily unavailable.", nil
}

// isTransient says whether it may help to try again later. The end of a session is
// final, whatever it came from.
func isTransient(err error) bool {
	if e := (*closeError)(nil); errors.As(err, &e) {
		return false
	}
	var refused *upstream.RefusedError
	return errors.Is(err, upstream.ErrUnavailable) || errors.Is(err, errBusy) || errors.As(err, &refused) ||
		errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled)
}

func isLost(err error) bool {
	_, lost := asLost(err)
	return lost
}

// checkRevoked is the session's end when err says that the backend will not have
// the login any more.
func (s *session) checkRevoked(err error) error {
	if errors.Is(err, pool.ErrExpired) {
		return &closeError{audit.TokenExpired, byeExpired, err}
	}
	if !upstream.RevokesCredentials(err) {
		return err
	}
	s.account.RevokeCredential()
	return &closeError{audit.LoginRevoked, byeRevoked, err}
}
