package mux

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"time"

	"imapgate/internal/audit"
	"imapgate/internal/imap"
	"imapgate/proxy/mux/command"
	"imapgate/proxy/mux/lease"
)

// idleState is a client's IDLE (RFC 2177). It is the session's, not a connection's:
// the backend hears one of ours, which another upstream can take over.
type idleState struct {
	tag               string        // the client's
	upstreamTag       string        // the tag of the IDLE that the lease is in, "" if it is in none
	downSince         time.Duration // age of the hub since when there is no upstream, zero while there is one
	retryDelay        time.Duration
	attachedAt        time.Duration // … when there last was a new one
	upstreamIdleSince time.Duration // … when ours began
	startedAt         time.Duration // … when the client's began
	idleRefused       bool          // the backend has refused IDLE
	slot              *attachSlot   // to attach, or a place in the queue for one; nil: neither
}

// takeReply says whether line is the backend's answer to our IDLE.
func (i *idleState) takeReply(line []byte) bool {
	if i.upstreamTag == "" || !bytes.HasPrefix(line, []byte(i.upstreamTag+" ")) {
		return false
	}
	i.idleRefused = !imap.HasWordPrefix(line[len(i.upstreamTag)+1:], "OK") // with OK its time for one IDLE was over, or we have said DONE
	i.upstreamTag = ""
	return true
}

// stableAfter is how long an upstream must last for its loss to be a new one.
const stableAfter = 30 * time.Second

func (i *idleState) onUpstreamLost(now time.Duration) {
	i.upstreamTag = ""
	if i.downSince == 0 || now-i.attachedAt > stableAfter {
		i.downSince, i.retryDelay = now, 0
	}
}

// releaseSlot gives up what the session has of the queue.
func (i *idleState) releaseSlot() {
	if i.slot != nil {
		i.slot.release()
		i.slot = nil
	}
}

// startIdle is IDLE. Without a mailbox there is nothing to wait for. A backend that
// is away does not keep the client from idling.
func (s *session) startIdle(r *request) error {
	i := &idleState{tag: string(r.tag), startedAt: s.hub.uptime()}
	if s.mailbox != nil && !s.isInSync() {
		err := s.attach(r)
		switch {
		case errors.Is(err, errPendingExpunges): // as long as a command by number is behind it
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
	s.commandLog.clear() // until it is over: a session at rest has none
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

// prepareIdle asks what cannot be asked while the lease idles. The client's IDLE
// is in progress: it may be told everything.
func (s *session) prepareIdle() error {
	if err := s.fetchMissingUIDs(); err != nil || !s.canResume {
		return err
	}
	if err := s.requestModseq(); err != nil {
		return err
	}
	return s.confirmModseq(command.FlushExpunges)
}

// startUpstreamIdle puts the lease into an IDLE of ours.
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

// readDone reads a line of a client in IDLE, which can only be DONE.
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

// finishIdle ends our IDLE on the lease. What the client does not know yet it is
// told before the end of its own.
func (s *session) finishIdle() error {
	s.idleState.releaseSlot() // the client waits now: it goes where commands do
	if s.upstream != nil && s.idleState.upstreamTag != "" {
		if err := s.recoverLoss(s.stopUpstreamIdle()); err != nil {
			return err
		}
	}
	if s.mailbox != nil && !s.isInSync() {
		err := s.attachWithin(attachOptions{expungePolicy: command.FlushExpunges}, s.backend.settings.CommandHoldTimeout)
		if isTransient(err) || isLost(err) || errors.Is(err, errPendingExpunges) {
			return nil // nobody can know what has changed, or be told yet; the next command asks again
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

// stopUpstreamIdle says DONE for us, and hears the backend out.
func (s *session) stopUpstreamIdle() error {
	i := s.idleState
	for doneSent := false; ; {
		if err := s.relay(); err != nil {
			return err
		}
		if i.upstreamTag == "" {
			return nil
		}
		if !s.awaitingContinuation && !doneSent { // not before the backend idles (RFC 2177 §3)
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

// shouldFetchUIDsInIdle says whether the UIDs of what has come are to be asked for at once:
// a client that is told of expunges by UID could not be told of theirs after a loss.
func (s *session) shouldFetchUIDsInIdle() bool {
	return s.canResume && s.isInSync() && s.mailbox != nil && s.mailbox.hasArrivals && s.mailbox.view.UnknownCount() > 0 &&
		s.mailbox.canFetchUIDs() && s.enabled.Has(lease.Qresync)
}

// requestModseqInIdle asks again what could not be asked before the lease went into IDLE.
func (s *session) requestModseqInIdle() error {
	if s.mailbox == nil || !s.canResume || !s.isInSync() || s.mailbox.desynced || !s.shouldRequestModseq() {
		return nil
	}
	if err := s.requestModseq(); err != nil || s.mailbox.pendingModseq == 0 {
		return err
	}
	return s.interruptIdle(func() error { return s.confirmModseq(command.FlushExpunges) })
}

// interruptIdle asks something between two IDLEs of ours.
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

// maintainIdle is the gap of a client in IDLE: a session that has lost its upstream
// gets another as soon as there is one, and is told what has changed.
func (s *session) maintainIdle() error {
	i := s.idleState
	if s.mailbox != nil && s.isInSync() && s.mailbox.flagsPending {
		if wait := s.mailbox.nextFlagResync - s.hub.uptime(); wait > 0 {
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
	progress := i.slot.waitedWhileMoving() // which does not count
	remaining := s.backend.settings.IdleReattachTimeout - (s.hub.uptime() - i.downSince - progress)
	switch {
	case remaining < 0:
		return &closeError{audit.UpstreamAway, byeUnavailable, nil}
	case !i.slot.isGranted():
		s.scheduleWake(remaining + time.Second)
		return nil
	}
	i.downSince += progress
	err := s.attachWithin(attachOptions{expungePolicy: command.FlushExpunges, slot: i.slot}, 0)
	i.slot = nil // attachWithin has left it
	if isTransient(err) || isLost(err) || errors.Is(err, errPendingExpunges) {
		i.retryDelay = min(max(2*i.retryDelay, 100*time.Millisecond), 5*time.Second)
		s.scheduleWake(i.retryDelay + rand.N(i.retryDelay))
		return nil
	}
	if err != nil {
		return err
	}
	i.attachedAt = s.hub.uptime()
	i.retryDelay = min(max(2*i.retryDelay, time.Second), 30*time.Second) // if this one does not last
	if err := s.prepareIdle(); err != nil {
		return err
	}
	return s.startUpstreamIdle()
}
