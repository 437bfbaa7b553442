package mux

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"time"

	"imapgate/internal/event"
	"imapgate/internal/imap"
	"imapgate/proxy/relay"
	"imapgate/proxy/relay/mux/command"
	"imapgate/proxy/relay/mux/mailbox"
)

// idleState is a client's IDLE (RFC 2177). It belongs to the session, not to a
// connection: the backend receives an IDLE of the gateway, which another upstream can
// replace.
type idleState struct {
	tag               string        // tag of the client's IDLE
	upstreamTag       string        // tag of the gateway's IDLE on the lease; "": none
	downSince         time.Duration // hub uptime at the loss of the upstream; zero: not lost
	retryDelay        time.Duration
	attachedAt        time.Duration // hub uptime at the last attach
	upstreamIdleSince time.Duration // hub uptime at the start of the gateway's IDLE
	startedAt         time.Duration // hub uptime at the start of the client's IDLE
	leaveRetry        mailbox.Retry // of leaving the upstream for a move
	idleRefused       bool          // the backend has refused IDLE
	slot              *attachSlot   // slot to attach, or a position in the queue; nil: none
}

// takeReply reports whether line answers the gateway's IDLE, and records the result.
func (i *idleState) takeReply(line []byte) bool {
	if i.upstreamTag == "" || !bytes.HasPrefix(line, []byte(i.upstreamTag+" ")) {
		return false
	}
	i.idleRefused = !imap.HasWordPrefix(line[len(i.upstreamTag)+1:], "OK") // OK ends one IDLE only: the backend's timeout, or DONE
	i.upstreamTag = ""
	return true
}

// stableAfter is how long an upstream must last before its loss restarts the retry
// delays.
const stableAfter = 30 * time.Second

func (i *idleState) onUpstreamLost(now time.Duration) {
	i.upstreamTag = ""
	if i.downSince == 0 || now-i.attachedAt > stableAfter {
		i.downSince, i.retryDelay = now, 0
	}
}

// releaseSlot releases the session's slot or position in the queue.
func (i *idleState) releaseSlot() {
	if i.slot != nil {
		i.slot.release()
		i.slot = nil
	}
}

// startIdle executes IDLE. Without a mailbox no upstream is needed. A backend that is
// down does not keep the client from idling.
func (s *session) startIdle(r *request) error {
	i := &idleState{tag: string(r.tag), startedAt: s.hub.uptime()}
	if s.mailbox != nil && !s.isInSync() {
		err := s.attach(r.attachOptions())
		switch {
		case errors.Is(err, errPendingExpunges): // a queued command uses message numbers
		case err != nil && !isTransient(err) && !isLost(err):
			return s.answerUnattached(err)
		case err != nil:
			i.downSince = s.hub.uptime()
		}
	}
	if err := s.client.reply("+ idling"); err != nil {
		return err
	}
	s.client.idle = i
	s.client.records.log = s.client.records.log[:0] // until IDLE ends: a parked session has no log
	s.updateStateMetric()
	if s.upstream.Conn == nil || s.mailbox == nil {
		s.scheduleWake(time.Second)
		return nil
	}
	if err := s.prepareIdle(); err != nil {
		return err
	}
	return s.upstream.startIdle(s.client.idle)
}

// prepareIdle runs the queries that are impossible while the lease idles. The client's
// IDLE is in progress, so all responses are permitted.
func (x *exchange) prepareIdle() error {
	if err := x.fetchMissingUIDs(); err != nil || !x.isResume {
		return err
	}
	if err := x.requestModseq(); err != nil {
		return err
	}
	return x.confirmModseq(command.FlushExpunges)
}

// startIdle starts the gateway's IDLE on the lease.
func (u *upstreamSide) startIdle(i *idleState) error {
	if !u.Caps().Has("IDLE") {
		return nil
	}
	i.upstreamTag, i.upstreamIdleSince = u.NextTag(), u.backend.hub.uptime()
	u.awaitingContinuation = true
	return u.send([]byte(i.upstreamTag + " IDLE\r\n"))
}

// readDone reads a line of a client in IDLE. Only DONE is valid.
func (s *session) readDone(seg imap.Segment) error {
	isDone := imap.HasWordPrefix(seg.Bytes, "DONE") && len(bytes.TrimSuffix(seg.Bytes, []byte("\r\n"))) == len("DONE")
	if err := s.finishIdle(); err != nil {
		return err
	}
	tag := s.client.idle.tag
	s.client.records.beginIdle(s.client.idle, s.mailbox)
	s.client.idle = nil
	s.updateStateMetric()
	if isDone {
		return s.client.reply(tag, " OK Idle completed.")
	}
	if err := s.client.reply(tag, " BAD Expected DONE."); err != nil {
		return err
	}
	return s.skipCommand(seg, maxSkipped)
}

// finishIdle ends the gateway's IDLE and sends the client pending changes before its own
// IDLE ends.
func (s *session) finishIdle() error {
	s.client.idle.releaseSlot() // the client now waits: use the queue of commands
	if s.upstream.Conn != nil && s.client.idle.upstreamTag != "" {
		if err := s.recoverLoss(s.stopUpstreamIdle()); err != nil {
			return err
		}
	}
	if s.mailbox != nil && !s.isInSync() {
		err := s.attach(attachOptions{expungePolicy: command.FlushExpunges})
		if isTransient(err) || isLost(err) || errors.Is(err, errPendingExpunges) {
			return nil // changes are unknown or not permitted yet; the next command retries
		}
		if err != nil {
			return err
		}
	}
	if s.shouldFetchUIDsInIdle() {
		return s.recoverLoss(s.fetchMissingUIDs())
	}
	return nil
}

// stopUpstreamIdle sends DONE and relays responses until the backend's answer.
func (x *exchange) stopUpstreamIdle() error {
	i := x.client.idle
	for doneSent := false; ; {
		if err := x.relay(); err != nil {
			return err
		}
		if i.upstreamTag == "" {
			return nil
		}
		if !x.upstream.awaitingContinuation && !doneSent { // not before the continuation request (RFC 2177 §3)
			if err := x.upstream.SendDone(); err != nil {
				return wrapLost(err)
			}
			doneSent = true
		}
		if err := x.readReply(); err != nil {
			return err
		}
	}
}

// maintainIdle is housekeeping during IDLE. A session that has lost its upstream attaches
// again as soon as possible, and the client receives the changes.
func (s *session) maintainIdle() error {
	i := s.client.idle
	if s.mailbox != nil && s.isInSync() && s.mailbox.PostponedFlags() != nil {
		if wait := s.mailbox.FlagRetry.At - s.hub.uptime(); wait > 0 {
			s.scheduleWake(wait)
		} else if err := s.interruptIdle(s.resendFlags); err != nil {
			return err
		}
	}
	if s.shouldFetchUIDsInIdle() {
		if err := s.interruptIdle(s.fetchMissingUIDs); err != nil {
			return err
		}
	}
	if err := s.requestModseqInIdle(); err != nil {
		return err
	}
	switch {
	case s.mailbox == nil:
		return nil
	case !s.isInSync():
		return s.attachInIdle()
	case i.upstreamTag != "" || i.idleRefused:
		return nil
	}
	if wait := time.Second - (s.hub.uptime() - i.upstreamIdleSince); wait > 0 {
		s.scheduleWake(wait)
		return nil
	}
	return s.upstream.startIdle(i)
}

// shouldFetchUIDsInIdle reports whether to fetch the UIDs of new messages at once. After
// a loss, a QRESYNC client could not be sent expunges of messages without a known UID.
func (x *exchange) shouldFetchUIDsInIdle() bool {
	if !x.isResume || !x.isInSync() || x.mailbox == nil || !x.mailbox.HasUnknownArrivals() || !x.client.enabled.Has(imap.Qresync) {
		return false
	}
	_, _, ok := x.mailbox.UnknownRange()
	return ok
}

// requestModseqInIdle retries requestModseq if it was not possible before the lease went
// into IDLE.
func (x *exchange) requestModseqInIdle() error {
	if x.mailbox == nil || !x.isResume || !x.isInSync() || x.mailbox.IsDesynced() || !x.shouldRequestModseq() {
		return nil
	}
	if err := x.requestModseq(); err != nil || !x.mailbox.HasPendingModseq() {
		return err
	}
	return x.interruptIdle(func() error { return x.confirmModseq(command.FlushExpunges) })
}

// interruptIdle runs query between two IDLEs of the gateway.
func (x *exchange) interruptIdle(query func() error) error {
	if x.client.idle.upstreamTag != "" {
		if err := x.stopUpstreamIdle(); err != nil {
			return err
		}
	}
	if err := query(); err != nil {
		return err
	}
	return x.upstream.startIdle(x.client.idle)
}

// attachInIdle attaches a session in IDLE again, once it has a slot and is not paused.
func (s *session) attachInIdle() error {
	i := s.client.idle
	if s.live.Paused() != nil {
		i.releaseSlot()
		i.downSince = 0 // the backend is not what it waits for
		return nil
	}
	if i.downSince == 0 {
		i.downSince = s.hub.uptime()
	}
	if wait := i.retryDelay - (s.hub.uptime() - i.attachedAt); wait > 0 {
		s.scheduleWake(wait)
		return nil
	}
	var progress time.Duration // does not count as waiting
	if i.slot != nil {
		progress = i.slot.waitedWhileMoving()
	}
	remaining := s.upstream.backend.settings.IdleReattachTimeout - (s.hub.uptime() - i.downSince - progress)
	if remaining < 0 {
		return &relay.CloseError{Reason: event.UpstreamUnavailable, Bye: byeUnavailable}
	}
	if err := s.followMove(); err != nil {
		return s.retryInIdle(err)
	}
	queue := s.upstream.backend.attachQueue
	if i.slot != nil && i.slot.queue != queue { // the session has just moved
		i.releaseSlot()
	}
	if i.slot == nil {
		i.slot = queue.enqueue(s.wake)
	}
	if !i.slot.isGranted() {
		s.scheduleWake(remaining + time.Second)
		return nil
	}
	i.downSince += progress
	err := s.attach(attachOptions{expungePolicy: command.FlushExpunges, slot: i.slot})
	i.slot = nil // released by attach
	if err != nil {
		return s.retryInIdle(err)
	}
	i.attachedAt = s.hub.uptime()
	i.retryDelay = min(max(2*i.retryDelay, time.Second), 30*time.Second) // delay before the next attempt, should this upstream be lost soon
	if err := s.prepareIdle(); err != nil {
		return err
	}
	return s.upstream.startIdle(s.client.idle)
}

// retryInIdle schedules the next attempt to attach after one has failed with err, unless the
// failure is permanent.
func (x *exchange) retryInIdle(err error) error {
	if !isTransient(err) && !isLost(err) && !errors.Is(err, errPendingExpunges) {
		return err
	}
	i := x.client.idle
	i.retryDelay = min(max(2*i.retryDelay, 100*time.Millisecond), 5*time.Second)
	x.scheduleWake(i.retryDelay + rand.N(i.retryDelay))
	return nil
}
