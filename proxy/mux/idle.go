package mux

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"time"

	"imapgate/internal/event"
	"imapgate/internal/imap"
	"imapgate/proxy/mux/command"
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
		err := s.attach(r)
		switch {
		case errors.Is(err, errPendingExpunges): // a queued command uses message numbers
		case err != nil && !isTransient(err) && !isLost(err):
			return s.answerUnattached(err)
		case err != nil:
			i.downSince = s.hub.uptime()
		}
	}
	if err := s.reply("+ idling"); err != nil {
		return err
	}
	s.idleState = i
	s.commandLog.clear() // until IDLE ends: a parked session has no log
	s.updateStateMetric()
	if s.upstream == nil || s.mailbox == nil {
		s.scheduleWake(time.Second)
		return nil
	}
	if err := s.prepareIdle(); err != nil {
		return err
	}
	return s.startUpstreamIdle()
}

// prepareIdle runs the queries that are impossible while the lease idles. The client's
// IDLE is in progress, so all responses are permitted.
func (s *session) prepareIdle() error {
	if err := s.fetchMissingUIDs(); err != nil || !s.canResume {
		return err
	}
	if err := s.requestModseq(); err != nil {
		return err
	}
	return s.confirmModseq(command.FlushExpunges)
}

// startUpstreamIdle starts the gateway's IDLE on the lease.
func (s *session) startUpstreamIdle() error {
	i := s.idleState
	if !s.upstream.Caps().Has("IDLE") {
		return nil
	}
	i.upstreamTag, i.upstreamIdleSince = s.upstream.NextTag(), s.hub.uptime()
	s.awaitingContinuation = true
	_, err := s.upstream.Write([]byte(i.upstreamTag + " IDLE\r\n"))
	return s.wrapUpstreamError(err)
}

// readDone reads a line of a client in IDLE. Only DONE is valid.
func (s *session) readDone(seg imap.Segment) error {
	isDone := imap.HasWordPrefix(seg.Bytes, "DONE") && len(bytes.TrimSuffix(seg.Bytes, []byte("\r\n"))) == len("DONE")
	if err := s.finishIdle(); err != nil {
		return err
	}
	tag := s.idleState.tag
	s.beginIdleRecord(s.idleState)
	s.idleState = nil
	s.updateStateMetric()
	if isDone {
		return s.reply(tag, " OK Idle completed.")
	}
	if err := s.reply(tag, " BAD Expected DONE."); err != nil {
		return err
	}
	return s.skipCommand(seg, maxSkipped)
}

// finishIdle ends the gateway's IDLE and sends the client pending changes before its own
// IDLE ends.
func (s *session) finishIdle() error {
	s.idleState.releaseSlot() // the client now waits: use the queue of commands
	if s.upstream != nil && s.idleState.upstreamTag != "" {
		if err := s.recoverLoss(s.stopUpstreamIdle()); err != nil {
			return err
		}
	}
	if s.mailbox != nil && !s.isInSync() {
		err := s.attachWithin(attachOptions{expungePolicy: command.FlushExpunges}, s.backend.settings.CommandHoldTimeout)
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
func (s *session) stopUpstreamIdle() error {
	i := s.idleState
	for doneSent := false; ; {
		if err := s.relay(); err != nil {
			return err
		}
		if i.upstreamTag == "" {
			return nil
		}
		if !s.awaitingContinuation && !doneSent { // not before the continuation request (RFC 2177 §3)
			if err := s.upstream.SendDone(); err != nil {
				return s.wrapUpstreamError(err)
			}
			doneSent = true
		}
		if err := s.readReply(); err != nil {
			return err
		}
	}
}

// shouldFetchUIDsInIdle reports whether to fetch the UIDs of new messages at once. After
// a loss, a QRESYNC client could not be sent expunges of messages without a known UID.
func (s *session) shouldFetchUIDsInIdle() bool {
	if !s.canResume || !s.isInSync() || s.mailbox == nil || !s.mailbox.HasUnknownArrivals() || !s.enabled.Has(imap.Qresync) {
		return false
	}
	_, _, ok := s.mailbox.UnknownRange()
	return ok
}

// requestModseqInIdle retries requestModseq if it was not possible before the lease went
// into IDLE.
func (s *session) requestModseqInIdle() error {
	if s.mailbox == nil || !s.canResume || !s.isInSync() || s.mailbox.IsDesynced() || !s.shouldRequestModseq() {
		return nil
	}
	if err := s.requestModseq(); err != nil || !s.mailbox.HasPendingModseq() {
		return err
	}
	return s.interruptIdle(func() error { return s.confirmModseq(command.FlushExpunges) })
}

// interruptIdle runs query between two IDLEs of the gateway.
func (s *session) interruptIdle(query func() error) error {
	if s.idleState.upstreamTag != "" {
		if err := s.stopUpstreamIdle(); err != nil {
			return err
		}
	}
	if err := query(); err != nil {
		return err
	}
	return s.startUpstreamIdle()
}

// maintainIdle is housekeeping during IDLE. A session that has lost its upstream attaches
// again as soon as possible, and the client receives the changes.
func (s *session) maintainIdle() error {
	i := s.idleState
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
	if s.mailbox == nil || s.isInSync() {
		if !s.isInSync() || s.mailbox == nil || i.upstreamTag != "" || i.idleRefused {
			return nil
		}
		if wait := time.Second - (s.hub.uptime() - i.upstreamIdleSince); wait > 0 {
			s.scheduleWake(wait)
			return nil
		}
		return s.startUpstreamIdle()
	}
	if i.downSince == 0 {
		i.downSince = s.hub.uptime()
	}
	if wait := i.retryDelay - (s.hub.uptime() - i.attachedAt); wait > 0 {
		s.scheduleWake(wait)
		return nil
	}
	if i.slot == nil {
		i.slot = s.backend.attachQueue.enqueue(s.wake)
	}
	progress := i.slot.waitedWhileMoving() // does not count as waiting
	remaining := s.backend.settings.IdleReattachTimeout - (s.hub.uptime() - i.downSince - progress)
	switch {
	case remaining < 0:
		return &closeError{event.UpstreamUnavailable, byeUnavailable, nil}
	case !i.slot.isGranted():
		s.scheduleWake(remaining + time.Second)
		return nil
	}
	i.downSince += progress
	err := s.attachWithin(attachOptions{expungePolicy: command.FlushExpunges, slot: i.slot}, 0)
	i.slot = nil // released by attachWithin
	if isTransient(err) || isLost(err) || errors.Is(err, errPendingExpunges) {
		i.retryDelay = min(max(2*i.retryDelay, 100*time.Millisecond), 5*time.Second)
		s.scheduleWake(i.retryDelay + rand.N(i.retryDelay))
		return nil
	}
	if err != nil {
		return err
	}
	i.attachedAt = s.hub.uptime()
	i.retryDelay = min(max(2*i.retryDelay, time.Second), 30*time.Second) // delay before the next attempt, should this upstream be lost soon
	if err := s.prepareIdle(); err != nil {
		return err
	}
	return s.startUpstreamIdle()
}
