package mux

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"imapgate/internal/audit"
	"imapgate/internal/event"
	"imapgate/internal/imap"
	"imapgate/internal/sleep"
	"imapgate/proxy/relay"
	"imapgate/proxy/relay/mux/command"
	"imapgate/proxy/relay/mux/mailbox"
	"imapgate/proxy/relay/mux/pool"
	"imapgate/proxy/upstream"
	"imapgate/routing"
)

// Delays between attempts to attach at a backend that is down.
const (
	minRetryDelay = 50 * time.Millisecond
	maxRetryDelay = time.Second
)

// Failures of an attach, besides the ends of a session.
var (
	errPendingExpunges = errors.New("pending expunges cannot be sent during this command")
	errBusy            = errors.New("backend or mailbox is busy")
)

// attachOptions describes what the client may receive during an attach, and what it is
// for.
type attachOptions struct {
	expungePolicy  command.ExpungePolicy
	translate      *request    // a COPY, MOVE or REPLACE whose numbers become UIDs
	withoutMailbox bool        // any connection is sufficient
	slot           *attachSlot // slot of a session in IDLE; nil: acquire one
}

// attachOptions returns the options for an attach before the command is sent.
func (r *request) attachOptions() attachOptions {
	r.uidSet = ""
	opts := attachOptions{expungePolicy: r.facts.ExpungePolicy}
	if opts.expungePolicy == command.TranslateNumbers {
		opts.translate = r
	}
	return opts
}

// attach gets the session a connection with its mailbox selected, and sends the client
// what has changed, as far as opts allow. It retries for CommandHoldTimeout, but not with
// the slot of a session in IDLE.
//
// Errors: errPendingExpunges, a *relay.CloseError, and errors for which isTransient returns
// true.
func (s *session) attach(opts attachOptions) error {
	timeout := s.upstream.backend.settings.CommandHoldTimeout
	if opts.slot != nil {
		timeout = 0
		defer opts.slot.release()
	}
	start := time.Now()
	reason := event.ReattachDetach
	if s.upstream.previousLost {
		reason = event.ReattachLost
	}
	var d *mailbox.Diff
	tries := 0
	err := s.retryTransient(timeout, func(h *holdTimer) (err error) {
		tries++
		d, err = s.attachOnce(opts, h)
		return err
	})
	if tries > 1 {
		reason = event.ReattachHold
	}
	if err == nil {
		s.upstream.previousLost = false
	}
	if timeout > 0 || !isTransient(err) && !isLost(err) { // otherwise the session in IDLE tries again
		s.recordAttach(reason, start, d, err)
	}
	return err
}

// retryTransient calls try until it succeeds, fails permanently, or timeout has passed:
// commands wait for a backend that is down. One last try is made after the timeout.
func (x *exchange) retryTransient(timeout time.Duration, try func(h *holdTimer) error) error {
	now := time.Now()
	h := &holdTimer{startedAt: now, timeout: timeout, deadline: now.Add(max(timeout, x.upstream.backend.settings.IdleReattachTimeout))}
	for wait := minRetryDelay; ; wait = min(2*wait, maxRetryDelay) {
		err := x.awaitResume(h)
		if err == nil {
			err = x.followMove()
		}
		if err == nil {
			err = try(h)
		}
		remaining := h.remaining(0)
		if !isTransient(err) && !isLost(err) || remaining <= 0 || x.client.aborted.Load() || x.hub.ctx.Err() != nil {
			return err
		}
		x.publish(newStatusWord(event.Waiting, event.SurvivalPause, ""))
		if !errors.Is(err, errPaused) { // else awaitResume waits
			_ = sleep.For(x.hub.ctx, min(wait+rand.N(wait), remaining))
		}
	}
}

// recordAttach records an attach. Attaches without a mailbox are not recorded.
func (x *exchange) recordAttach(reason event.ReattachReason, start time.Time, d *mailbox.Diff, err error) {
	if x.mailbox == nil || !x.upstream.attached && err == nil {
		return
	}
	rec := audit.MuxEvent{
		User: x.upstream.account.User(), Backend: x.upstream.backend.name, Mailbox: x.mailbox.Name(),
		Duration: time.Since(start),
	}
	if d != nil {
		rec.Expunged, rec.Arrived = d.ExpungedCount(), d.NewCount()
	}
	result := attachResult(err)
	_ = x.hub.deps.Audit.SessionReattached(x.client.audit, &rec, reason, result) // if the log is full, it is counted as lost
	x.hub.deps.Metrics.Mux.CountReattach(reason, result, rec.Duration)
}

// attachResults has the audit results of attaches that end the session. Constant.
var attachResults = map[event.Reason]event.Result{
	event.MailboxGone:      event.ResultGone,
	event.MailboxChanged:   event.ResultChanged,
	event.MailboxTooLarge:  event.ResultTooLarge,
	event.LoginRevoked:     event.ResultRefused,
	event.TokenExpired:     event.ResultRefused,
	event.ViewInconsistent: event.ResultInconsistent,
}

func attachResult(err error) event.Result {
	e := (*relay.CloseError)(nil)
	switch {
	case err == nil, errors.Is(err, errPendingExpunges):
		return event.ResultOK
	case errors.As(err, &e):
		return cmp.Or(attachResults[e.Reason], event.ResultCanceled)
	case errors.Is(err, pool.ErrBusy):
		return event.ResultLimit
	case errors.Is(err, context.DeadlineExceeded):
		return event.ResultTimeout
	case isLost(err):
		return event.ResultLost
	}
	return event.ResultUnavailable
}

// attachOnce makes one attempt: slot, lease, SELECT, diff, resync. The lease keeps alerts until
// the slot is released, because a slow client must not delay the attaches of others.
func (s *session) attachOnce(opts attachOptions, h *holdTimer) (*mailbox.Diff, error) {
	if s.mailbox != nil && !opts.withoutMailbox && opts.slot == nil {
		var err error
		if opts.slot, err = s.acquireAttachSlot(h); err != nil {
			return nil, err
		}
		defer opts.slot.release()
	}
	deadline := s.upstream.tryDeadline()
	if s.upstream.Conn != nil && s.upstream.tainted { // its next responses may be caused by the client, or unparsable
		s.returnUpstream()
	}
	if s.upstream.Conn == nil {
		if err := s.acquireLease(deadline); err != nil {
			return nil, err
		}
	}
	if s.mailbox == nil || opts.withoutMailbox {
		return nil, s.client.forwardResponses(s.upstream.TakeAlerts())
	}
	d, err := s.syncMailbox(opts, deadline)
	alerts := s.upstream.TakeAlerts()
	if isLost(err) {
		s.upstream.account.Discard(s.unbindUpstream(), event.DiscardError)
	} else if err != nil {
		s.returnUpstream()
	}
	opts.slot.release()
	return d, errors.Join(err, s.client.forwardResponses(alerts))
}

// acquireLease acquires a connection with the client's extensions enabled and no mailbox
// selected. The caller forwards its alerts.
func (x *exchange) acquireLease(deadline time.Time) error {
	ctx, cancel := context.WithDeadline(x.hub.ctx, deadline)
	defer cancel()
	if err := x.upstream.checkRoute(ctx); err != nil {
		return err
	}
	conn, err := x.upstream.account.Acquire(ctx, x.client.enabled)
	switch {
	case errors.Is(err, pool.ErrNotEnabled) && x.upstream.moved:
		return &relay.CloseError{Reason: event.Moved, Bye: byeMoved, Err: err}
	case err != nil:
		return x.upstream.checkRevoked(err)
	}
	err = x.upstream.checkRoute(ctx) // the acquire may have waited
	if err == nil && x.live.Paused() != nil {
		err = errPaused
	}
	if err != nil {
		x.upstream.account.Release(conn)
		return err
	}
	x.upstream.mayMove, x.upstream.moved = false, false
	x.bindUpstream(conn)
	return nil
}

// checkRoute verifies that the user still exists and has not moved before the session
// uses the old location. It succeeds if routing is unavailable. To a session that may move
// it returns a *movedError.
func (u *upstreamSide) checkRoute(ctx context.Context) error {
	user := u.account.User()
	location, err := u.backend.hub.cfg.Locate(ctx, user)
	switch {
	case errors.As(err, new(*relay.CloseError)):
		return err
	case errors.Is(err, routing.ErrNoUser), errors.Is(err, routing.ErrBlocked):
		u.backend.hub.evictUser(user)
		return &relay.CloseError{Reason: event.LoginRevoked, Bye: byeRevoked, Err: err}
	case errors.Is(err, routing.ErrPaused): // hold the command for a while
		return fmt.Errorf("%w: %w", errBusy, err)
	case err == nil && location.Backend != u.backend.name:
		u.backend.hub.EvictElsewhere(user, location)
		if u.mayMove {
			return &movedError{location}
		}
		return &relay.CloseError{Reason: event.Moved, Bye: byeMoved}
	case err == nil && u.loginFromRoute && location.Login != u.account.LoginName():
		u.backend.hub.EvictElsewhere(user, location)
		return &relay.CloseError{Reason: event.LoginChanged, Bye: byeMoved}
	}
	return nil
}

// syncMailbox selects the mailbox and brings the client's view up to date. It releases
// the slot before it writes to the client.
func (x *exchange) syncMailbox(opts attachOptions, deadline time.Time) (*mailbox.Diff, error) {
	r := &resync{exchange: x, data: &mailbox.SelectData{}, deadline: deadline}
	if err := r.reselect(); err != nil {
		return nil, err
	}
	if opts.expungePolicy == command.DropExpunges {
		x.upstream.attached = true // the mailbox is about to be closed: nothing to send
		return nil, nil
	}
	d, err := r.diffView()
	if err != nil {
		return nil, err
	}
	if opts.translate != nil {
		opts.translate.translateSet(x.mailbox, d) // before the resync, possibly of an earlier attempt, changes their meaning
	}
	if d != nil && d.ExpungedCount() > 0 && (opts.expungePolicy == command.ForbidExpunges || x.client.hasQueuedNumbers()) {
		x.hub.deps.Metrics.Mux.CountDeferredExpunge()
		return d, errPendingExpunges
	}
	opts.slot.releaseAttached()
	if err := x.client.forwardResponses(x.upstream.TakeAlerts()); err != nil {
		return d, err
	}
	r.deadline = time.Now().Add(housekeepingTimeout) // once begun, it has its own timeout
	return d, r.writeResync(d)
}

// hasQueuedNumbers reports whether the client has already sent a command that uses the
// message numbers it knew at that time.
func (c *clientSide) hasQueuedNumbers() bool {
	if c.expungePolicy == command.ForbidExpunges || c.expungePolicy == command.TranslateNumbers {
		return true
	}
	for line := range bytes.Lines(c.Peek()) {
		facts, err := command.Parse(line)
		if errors.Is(err, command.ErrTag) || errors.Is(err, command.ErrCommand) {
			continue // a line of a literal, DONE or an invalid command
		}
		if facts.ExpungePolicy == command.ForbidExpunges || facts.ExpungePolicy == command.TranslateNumbers {
			return true
		}
	}
	return false
}

// runWithoutMailbox runs a command for which pending expunges cannot be sent, because the
// client has already sent another command with message numbers. Only that other command
// deserves a NO. This one runs on a connection without the mailbox; NOOP and CHECK are
// answered OK.
//
// A command that needs the mailbox is refused, and so is one that would reveal
// mod-sequences beyond the expunges the client knows (RFC 7162 §3.2.5).
func (s *session) runWithoutMailbox(e outstandingCommand, raw []byte) error {
	tag := string(raw[:e.tagLen])
	switch {
	case e.isSyncPoint:
		return s.client.reply(tag, " OK ", e.spec.Name, " completed.")
	case !e.withoutMailbox:
		return s.refuse(tag, errPendingExpunges)
	}
	previous := s.client.expungePolicy
	s.client.expungePolicy = command.ForbidExpunges // also for an attach after a loss
	defer func() { s.client.expungePolicy = previous }()
	if err := s.attach(attachOptions{withoutMailbox: true}); err != nil {
		return s.refuse(tag, err)
	}
	s.upstream.avoidTagPrefix(raw[:e.tagLen])
	s.upstream.Enabled = s.client.enabled
	s.upstream.outstanding.add(e, raw)
	if err := s.recoverLoss(s.sendCommand(raw)); err != nil {
		return err
	}
	return s.awaitReplies()
}

// translateSet turns the numbers of a COPY, MOVE or REPLACE into UIDs. Invalid numbers
// are not sent: they may have become valid at the backend.
func (r *request) translateSet(m *mailbox.Mailbox, d *mailbox.Diff) {
	switch {
	case d == nil:
		return // the backend uses the same numbers, or they are already UIDs
	case r.uidSet != "":
		if uids, err := imap.ParseSet(r.uidSet); err == nil && d.ContainsExpunged(uids) {
			r.uidSet = untranslatable // expunged since an earlier attempt
		}
		return
	}
	r.uidSet = untranslatable
	set, err := imap.ParseSet(string(r.facts.Set))
	if err != nil {
		return
	}
	uids, hasExpunged, err := m.TranslateSet(set, d)
	switch {
	case err == nil && !hasExpunged:
		r.uidSet = uids.String()
	case errors.Is(err, mailbox.ErrRange):
		r.uidSet = outOfRange
	}
}

// untranslatable stands for numbers that are unparsable or include expunged messages. The
// command is not sent.
const untranslatable = "-"

// outOfRange stands for numbers beyond EXISTS.
const outOfRange = "0"

// answerUnattached answers the current command after a failed attach.
func (x *exchange) answerUnattached(err error) error {
	return x.refuse(string(x.client.request.tag), err)
}

// refuse answers the command with the tag after a failed attach.
func (x *exchange) refuse(tag string, err error) error {
	refusal, end := x.attachRefusal(err)
	if end != nil {
		return end
	}
	return x.client.reply(tag, refusal)
}

// attachRefusal returns the answer to a command after a failed attach, or the end of the
// session. With a mailbox selected, a NO would not help: every later command would fail
// in the same way.
//
// EXPUNGEISSUED (RFC 5530, RFC 2180 §4.1.2) means that messages have been expunged. The
// client receives the expunges at its next command.
func (x *exchange) attachRefusal(err error) (string, error) {
	switch {
	case errors.Is(err, errPendingExpunges):
		x.hub.deps.Metrics.Mux.CountExpungeIssued()
		return " NO [EXPUNGEISSUED] Some of the messages have been deleted and no longer exist.", nil
	case errors.Is(err, mailbox.ErrNoMatch):
		return " OK No message has one of these UIDs.", nil
	case errors.Is(err, mailbox.ErrRange):
		return " BAD No such message.", nil
	case !isTransient(err) && !isLost(err):
		return "", err
	case x.mailbox != nil:
		return "", &relay.CloseError{Reason: event.UpstreamUnavailable, Bye: byeUnavailable, Err: err}
	}
	return " NO [UNAVAILABLE] Mail store is temporarily unavailable.", nil
}

// isTransient reports whether a later attempt may succeed. The end of a session is final,
// whatever its cause.
func isTransient(err error) bool {
	if e := (*relay.CloseError)(nil); errors.As(err, &e) {
		return false
	}
	var refused *upstream.RefusedError
	return errors.Is(err, upstream.ErrUnavailable) || errors.Is(err, errBusy) || errors.As(err, &refused) ||
		errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled)
}

// checkRevoked turns err into the end of the session if the backend no longer accepts the
// login.
func (u *upstreamSide) checkRevoked(err error) error {
	if errors.Is(err, pool.ErrExpired) {
		return &relay.CloseError{Reason: event.TokenExpired, Bye: byeExpired, Err: err}
	}
	if !upstream.RevokesCredentials(err) {
		return err
	}
	u.account.RevokeCredential()
	return &relay.CloseError{Reason: event.LoginRevoked, Bye: byeRevoked, Err: err}
}
