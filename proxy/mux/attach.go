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
	"imapgate/internal/mutant"
	"imapgate/proxy/mux/command"
	"imapgate/proxy/mux/pool"
	"imapgate/proxy/mux/view"
	"imapgate/proxy/upstream"
	"imapgate/routing"
)

// Waits between attempts to get at a backend that is away.
const (
	firstWait = 50 * time.Millisecond
	lastWait  = time.Second
)

// What an attach can come to besides a session in step with its backend.
var (
	errGhosts = errors.New("messages are gone, and the client cannot be told while the command runs")
	errNoSuch = errors.New("there are no messages with these numbers")
	errBusy   = errors.New("backend is busy, or the mailbox is")
)

// moment is when an attach happens: what may be told, and what is asked.
type moment struct {
	expunge  command.Expunge
	copies   *request // a COPY, MOVE or REPLACE whose numbers are to become UIDs
	anywhere bool     // any connection will do
	turn     *turn    // of a session in IDLE; nil: one is waited for
}

// attach gets the session a connection with its mailbox selected, and tells the
// client what has changed, as far as r allows. It tries for HoldMax.
//
// Errors: errGhosts, an *ending, and what isAway says yes to.
func (s *session) attach(r *request) error {
	s.mapped = ""
	return s.attachIn(r.moment(), s.backend.settings.HoldMax)
}

// moment is what may be told while the command waits to be sent.
func (r *request) moment() moment {
	m := moment{expunge: r.facts.Expunge}
	if m.expunge == command.ExpTranslate {
		m.copies = r
	}
	return m
}

func (s *session) attachIn(m moment, patience time.Duration) error {
	began := time.Now()
	why := audit.AfterDetach
	if s.lostBefore {
		why = audit.AfterLoss
	}
	var d *view.Diff
	tries := 0
	err := s.persist(patience, func(h *hold) (err error) {
		tries++
		d, err = s.attachOnce(m, h)
		return err
	})
	if tries > 1 {
		why = audit.AfterHold
	}
	if err == nil {
		s.lostBefore = false
	}
	if patience > 0 || !isAway(err) && !isLost(err) { // or it is tried again, for as long as the client idles
		s.recordAttach(why, began, d, err)
	}
	return err
}

// persist tries until it works or cannot, as long as patience lasts: commands
// wait for a backend that is down. The last try begins at its end.
func (s *session) persist(patience time.Duration, try func(h *hold) error) error {
	now := time.Now()
	h := &hold{began: now, most: patience, until: now.Add(max(patience, s.backend.settings.LostMax))}
	for wait := firstWait; ; wait = min(2*wait, lastWait) {
		err := try(h)
		left := h.left(0)
		if !isAway(err) && !isLost(err) || left <= 0 || s.severed.Load() || s.hub.ctx.Err() != nil {
			return err
		}
		s.hub.pause(min(wait+rand.N(wait), left))
	}
}

// pause waits for d, or until the Hub closes.
func (h *Hub) pause(d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-h.ctx.Done():
	}
}

// recordAttach puts an attach on record. One of a session without a mailbox is
// none.
func (s *session) recordAttach(why audit.Why, began time.Time, d *view.Diff, err error) {
	if s.box == nil || !s.attached && err == nil {
		return
	}
	rec := audit.Mux{
		User: s.account.User(), Backend: s.backend.name, Mailbox: s.box.name, Why: why,
		Result: attachResult(err), Took: time.Since(began),
	}
	if d != nil {
		rec.Expunged, rec.Arrived = d.Ghosts(), d.Arrived()
	}
	_ = s.hub.rooms.Audit.Attached(s.who, &rec) // without room it is counted as lost
	s.hub.rooms.Metrics.Mux.AttachDone(string(why), string(rec.Result), rec.Took)
}

// attachResult is how the audit log calls it.
func attachResult(err error) audit.Result {
	e := (*ending)(nil)
	switch {
	case err == nil, errors.Is(err, errGhosts):
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
func (s *session) attachOnce(m moment, h *hold) (*view.Diff, error) {
	if s.box != nil && !m.anywhere && m.turn == nil {
		var err error
		if m.turn, err = s.takeTurn(h); err != nil {
			return nil, err
		}
	}
	if m.turn != nil {
		defer m.turn.leave()
	}
	deadline := s.attempt()
	if s.up != nil && s.doubtful { // what it says next may be the client's doing, or nothing that can be followed
		s.giveBack()
	}
	if s.up == nil {
		if err := s.lease(deadline); err != nil {
			return nil, err
		}
	}
	if s.box == nil || m.anywhere {
		return nil, nil
	}
	d, err := s.meet(m, deadline)
	if err != nil && s.up != nil && !isLost(err) {
		s.giveBack()
	} else if err != nil && s.up != nil {
		s.account.Destroy(s.give(), metrics.DiscardError)
	}
	return d, err
}

// lease gets a connection with what the client has enabled, and nothing selected.
func (s *session) lease(deadline time.Time) error {
	ctx, cancel := context.WithDeadline(s.hub.ctx, deadline)
	defer cancel()
	if err := s.stays(ctx); err != nil {
		return err
	}
	up, err := s.account.Lease(ctx, s.enabled)
	if err != nil {
		return s.revocation(err)
	}
	if err := s.stays(ctx); err != nil { // a lease may have to wait for its turn
		s.account.Return(up)
		return err
	}
	s.take(up)
	return s.relate(up.Alerts())
}

// stays makes sure that the mailbox is still the user's and has not moved, before
// the session writes to where it was. While nobody knows, it has not.
func (s *session) stays(ctx context.Context) error {
	user := s.account.User()
	home, err := s.hub.cfg.Home(ctx, user)
	switch {
	case errors.Is(err, routing.ErrNoUser), errors.Is(err, routing.ErrBlocked):
		s.hub.evict(user)
		return &ending{audit.LoginRevoked, byeRevoked, err}
	case errors.Is(err, routing.ErrPaused): // to be held, for a while
		return fmt.Errorf("%w: %w", errBusy, err)
	case err == nil && home.Backend != s.backend.name:
		s.hub.Settle(user, home)
		return &ending{audit.Moved, byeMoved, nil}
	case err == nil && s.routed && home.Login != s.account.Login():
		s.hub.Settle(user, home)
		return &ending{audit.LoginChanged, byeMoved, nil}
	}
	return nil
}

// meet selects the mailbox and brings the client's view and the backend's
// together. It leaves its turn at the backend when it is the client's.
func (s *session) meet(m moment, deadline time.Time) (*view.Diff, error) {
	now, err := s.reselect(deadline)
	if err != nil {
		return nil, err
	}
	if m.expunge == command.ExpDrop {
		s.attached = true // about to be closed: nobody need be told of anything
		return nil, nil
	}
	d, err := s.difference(now, deadline)
	if err != nil {
		return nil, err
	}
	if m.copies != nil && !mutant.Is(mutant.MapThenFlush) {
		s.mapNumbers(m.copies, d) // as the client means them: the flush, maybe of an earlier try, changes what they mean
	}
	if d != nil && d.Ghosts() > 0 && (m.expunge == command.ExpNone || s.numbersFollow()) {
		s.hub.rooms.Metrics.Mux.GhostAttach()
		if !mutant.Is(mutant.GhostsHold) {
			return d, errGhosts
		}
		s.attached = true
		return d, nil
	}
	m.turn.done()
	if err := s.flush(d, now, time.Now().Add(ownQuestion)); err != nil { // begun, it has its own time
		return d, err
	}
	if m.copies != nil && mutant.Is(mutant.MapThenFlush) {
		s.mapNumbers(m.copies, nil)
	}
	return d, nil
}

// numbersFollow says whether the client has already sent a command that names
// messages by number, as it knew them when it sent it.
func (s *session) numbersFollow() bool {
	if s.inHand == command.ExpNone || s.inHand == command.ExpTranslate {
		return true
	}
	for more := range bytes.Lines(s.client.Peek()) {
		facts, err := command.Read(more)
		if errors.Is(err, command.ErrTag) || errors.Is(err, command.ErrCommand) {
			continue // a line of a literal, DONE, or none at all
		}
		if facts.Expunge == command.ExpNone || facts.Expunge == command.ExpTranslate {
			return true
		}
	}
	return false
}

// aside does a command before which the client cannot be told of messages that are
// gone, because of another by number that it has sent already. Only that one
// deserves a NO: this one is done without telling, on a connection that does not
// have the mailbox, or where it only asks to be told, by an OK.
//
// What needs the mailbox is refused all the same, and so is what would tell of
// mod-sequences beyond the expunges that the client does not know (RFC 7162 §3.2.5).
func (s *session) aside(e entry, whole []byte) error {
	tag := string(whole[:e.tag])
	switch {
	case e.syncs:
		return s.say(tag, " OK ", e.spec.Name, " completed.")
	case !e.aside:
		refusal, _ := s.refusal(errGhosts)
		return s.say(tag, refusal)
	}
	was := s.inHand
	s.inHand = command.ExpNone // also for an attach behind a loss
	defer func() { s.inHand = was }()
	if err := s.attachIn(moment{anywhere: true}, s.backend.settings.HoldMax); err != nil {
		refusal, end := s.refusal(err)
		if end != nil {
			return end
		}
		return s.say(tag, refusal)
	}
	s.avoid(whole[:e.tag])
	s.up.Enabled = s.enabled
	s.sent.add(e, whole)
	if err := s.healed(s.send(whole)); err != nil {
		return err
	}
	return s.settle()
}

// mapNumbers turns the numbers of a COPY into UIDs. Those that the client cannot
// mean are not sent, because they may have come to mean something.
func (s *session) mapNumbers(r *request, d *view.Diff) {
	switch {
	case d == nil && !mutant.Is(mutant.MapThenFlush):
		return // the numbers are the backend's, or UIDs by now
	case s.mapped != "":
		if uids, err := imap.ParseSet(s.mapped); err == nil && d.Takes(uids) {
			s.mapped = unmappable // gone since an earlier try
		}
		return
	}
	s.mapped = unmappable
	set, err := imap.ParseSet(string(r.facts.Set))
	if err != nil {
		return
	}
	uids, ghosts, err := s.box.view.MapSet(set, d)
	switch {
	case err == nil && !ghosts:
		s.mapped = uids.String()
	case errors.Is(err, view.ErrRange):
		s.mapped = noSuch
	}
}

// unmappable stands for numbers of which some are ghosts, or cannot be read: the
// command is not sent.
const unmappable = "-"

// noSuch stands for numbers that the client cannot mean: they are beyond EXISTS.
const noSuch = "0"

// unattached answers the command in hand, for which an attach has failed.
func (s *session) unattached(err error) error {
	refusal, end := s.refusal(err)
	if end != nil {
		return end
	}
	return s.say(string(s.request.tag), refusal)
}

// refusal is the answer to a command for which an attach has failed, or the
// session's end. With a mailbox selected a NO would be of no use: every command
// that follows would meet with the same.
//
// EXPUNGEISSUED (RFC 5530, RFC 2180 §4.1.2) means messages that are gone: the
// client is told of them at its next command.
func (s *session) refusal(err error) (string, error) {
	switch {
	case errors.Is(err, errGhosts):
		s.hub.rooms.Metrics.Mux.ExpungeIssued()
		return " NO [EXPUNGEISSUED] Some of the messages have been deleted and no longer exist.", nil
	case errors.Is(err, errNothing):
		return " OK No message has one of these UIDs.", nil
	case errors.Is(err, errNoSuch):
		return " BAD No such message.", nil
	case !isAway(err) && !isLost(err):
		return "", err
	case s.box != nil:
		return "", &ending{audit.UpstreamAway, byeAway, err}
	}
	return " NO [UNAVAILABLE] Mail store is temporarily unavailable.", nil
}

// isAway says whether it may help to try again later. The end of a session is
// final, whatever it came from.
func isAway(err error) bool {
	if e := (*ending)(nil); errors.As(err, &e) {
		return false
	}
	var refused *upstream.Refused
	return errors.Is(err, upstream.ErrUnavailable) || errors.Is(err, errBusy) || errors.As(err, &refused) ||
		errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled)
}

func isLost(err error) bool {
	_, lost := asLost(err)
	return lost
}

// revocation is the session's end when err says that the backend will not have
// the login any more.
func (s *session) revocation(err error) error {
	if errors.Is(err, pool.ErrExpired) {
		return &ending{audit.TokenExpired, byeExpired, err}
	}
	if !upstream.Revokes(err) {
		return err
	}
	s.account.Forget()
	return &ending{audit.LoginRevoked, byeRevoked, err}
}
