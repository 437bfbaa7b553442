package mux

import (
	"bytes"
	"math"

	"imapgate/internal/event"
	"imapgate/internal/imap"
	"imapgate/proxy/mux/command"
)

// streamCommand runs a command that carries messages, APPEND or REPLACE, without holding
// more than a buffer of it. It runs alone. seg is the first line.
//
// No EXPUNGE may be sent until the command is complete. With pending expunges, a command
// that depends on the selected mailbox is refused. Others run on a connection without the
// mailbox, and the client receives the expunges later.
func (s *session) streamCommand(seg imap.Segment) error {
	r := &s.request
	r.tag = bytes.Clone(r.tag)
	r.raw = seg.Bytes
	if !seg.End && !r.upload.CheckFirstLine(seg.Bytes, s.account.Caps()) {
		return s.rejectCommand(refusalMalformedArguments, seg)
	}
	r.facts, _ = command.Parse(r.raw) // the backend reports other syntax errors
	s.describeRecord(r)
	s.recordLiteral(seg)
	s.expungePolicy = r.facts.ExpungePolicy
	defer func() { s.expungePolicy = command.FlushExpunges }()
	if err := s.awaitReplies(); err != nil {
		return err
	}
	if err := s.relayPending(); err != nil {
		return err
	}
	if !s.mayUpload(seg) {
		return s.refuseIncomplete(refusalOverQuota, seg)
	}
	opts := attachOptions{expungePolicy: command.ForbidExpunges, withoutMailbox: r.spec.Name == "APPEND" && !usesCatenate(seg.Bytes)}
	for {
		if !s.isInSync() && !(opts.withoutMailbox && s.upstream != nil) {
			if err := s.attachWithin(opts, s.backend.settings.CommandHoldTimeout); err != nil {
				return s.refuseUnattached(err, seg)
			}
		}
		if err := s.relayPending(); err != nil {
			return err
		}
		if s.upstream == nil {
			if s.retries++; s.retries > maxRetries || s.stopReason.Load() != nil {
				s.retries = 0
				return s.refuseIncomplete(refusalNothingDone, seg)
			}
			continue
		}
		committed, err := s.streamUpload(seg)
		lost, ok := asLost(err)
		if !ok || committed || s.responsePartial {
			return err
		}
		s.outstanding.clear() // the backend has not requested the message, so it can be offered to another connection
		r.unsent = seg.Bytes
		s.retries++
		if err := s.onUpstreamLost(lost); err != nil {
			return err
		}
		if s.retries > maxRetries {
			return s.refuseIncomplete(refusalNothingDone, seg)
		}
	}
}

const refusalNothingDone = " NO [UNAVAILABLE] Connection to mail store lost, nothing was done."

// refuseUnattached answers an incomplete command after a failed attach.
func (s *session) refuseUnattached(err error, seg imap.Segment) error {
	refusal, end := s.attachRefusal(err)
	if end != nil {
		return end
	}
	return s.refuseIncomplete(refusal, seg)
}

// usesCatenate reports whether APPEND refers to messages by URLs, which may be relative
// to the selected mailbox (RFC 4469).
func usesCatenate(line []byte) bool { return bytes.Contains(bytes.ToUpper(line), []byte("CATENATE")) }

// refuseIncomplete answers an incomplete command and skips the rest of it.
func (s *session) refuseIncomplete(refusal string, seg imap.Segment) error {
	if seg.Literal.Size >= 0 && !seg.Literal.NonSync {
		s.client.CancelLiteral()
		return s.reply(string(s.request.tag), refusal)
	}
	if err := s.skipCommand(seg, s.request.maxSkip()); err != nil {
		return err
	}
	return s.reply(string(s.request.tag), refusal)
}

// maxSkip returns how many octets of the current command are skipped after a refusal.
// Messages are not bounded.
func (r *request) maxSkip() int64 {
	if r.spec.Streams {
		return math.MaxInt64
	}
	return maxSkipped
}

// streamUpload sends the command as it arrives. The backend requests its literals, unless
// it accepts the first one unasked.
//
// committed is true if the command cannot be offered to another connection: more than its
// first line was read, or it is answered.
func (s *session) streamUpload(seg imap.Segment) (committed bool, err error) {
	r := &s.request
	s.avoidTagPrefix(r.tag)
	nonSync := s.canSendNonSync(seg)
	s.outstanding.add(outstandingCommand{spec: r.spec, tagLen: len(r.tag), nonSync: nonSync, upstreamDropped: r.upstreamDropped}, append(r.tag, ' '))
	s.commandPartial, r.unsent = true, nil
	for {
		accepted := true
		if committed && r.mustBreakOff(seg) {
			return true, s.breakOffCommand(seg)
		}
		if nonSync || seg.Kind != imap.LineEnd || seg.End {
			_, err = s.upstream.Write(seg.Bytes)
			err = s.wrapUpstreamError(err)
		} else {
			accepted, err = s.offerLiteral(seg)
		}
		nonSync = false
		switch {
		case err != nil && s.outstanding.isEmpty():
			return true, s.recoverAnsweredLoss(seg, err)
		case err != nil && !committed && !seg.End:
			return false, err
		case err != nil:
			return true, s.recoverUploadLoss(seg, err)
		case !accepted:
			s.commandPartial = false
			return true, s.skipAnswered(seg)
		case seg.End:
			s.commandPartial = false
			return true, s.awaitReplies()
		}
		committed = true
		if seg, err = s.readClientSegment(); err != nil {
			return true, err
		}
		s.countUpload(seg)
		s.recordLiteral(seg)
	}
}

// mustBreakOff reports whether the line after a literal must not be sent.
func (r *request) mustBreakOff(seg imap.Segment) bool {
	return seg.Kind == imap.LinePart || hasStrayCR(seg) || hasUnterminatedString(seg) || seg.Kind == imap.LineEnd && !seg.End && !r.upload.CheckNextLine(seg.Bytes)
}

// breakOffCommand ends a command that becomes invalid after a literal. The backend
// refuses it and waits for nothing more.
func (s *session) breakOffCommand(seg imap.Segment) error {
	if _, err := s.upstream.Write([]byte(" (\r\n")); err != nil {
		return s.recoverUploadLoss(seg, s.wrapUpstreamError(err))
	}
	s.commandPartial = false
	if err := s.awaitReplies(); err != nil {
		return err
	}
	return s.skipAnswered(seg)
}

// offerLiteral sends a line that announces a literal and waits for the backend to request
// it. It returns false if the backend has answered the command instead.
func (s *session) offerLiteral(seg imap.Segment) (bool, error) {
	s.awaitingContinuation = true
	if _, err := s.upstream.Write(synchronizingLine(seg)); err != nil {
		return false, s.wrapUpstreamError(err)
	}
	accepted, err := s.awaitContinuation()
	if err == nil && accepted && !seg.Literal.NonSync {
		err = s.reply("+ OK")
	}
	return accepted, err
}

// skipAnswered skips the rest of a command that the backend has answered.
func (s *session) skipAnswered(seg imap.Segment) error {
	return s.skipCommand(seg, s.request.maxSkip())
}

// recoverAnsweredLoss recovers from the loss of an upstream that answered a command
// before it had all of it. The command is finished.
func (s *session) recoverAnsweredLoss(seg imap.Segment, err error) error {
	lost, ok := asLost(err)
	if !ok {
		return err
	}
	if err := s.onUpstreamLost(lost); err != nil {
		return err
	}
	return s.skipAnswered(seg)
}

// recoverUploadLoss recovers from the loss of an upstream that has not received the whole
// command. The command was not executed, and the answer reports that. Only the arrival of
// the last segment is uncertain.
func (s *session) recoverUploadLoss(seg imap.Segment, err error) error {
	lost, ok := asLost(err)
	if !ok || s.responsePartial {
		return err
	}
	if seg.End {
		s.commandPartial = false // assume that it arrived
		return s.onUpstreamLost(lost)
	}
	s.outstanding.clear()
	if err := s.onUpstreamLost(lost); err != nil { // in mode reuse
		return err
	}
	return s.refuseIncomplete(refusalNothingDone, seg)
}

// runUnknown runs a command that is not in the table. It may change the connection in
// unknown ways, so the session is handed over at the end of the command. seg is the first
// line.
func (s *session) runUnknown(seg imap.Segment) error {
	r := &s.request
	r.tag = bytes.Clone(r.tag)
	r.facts = command.Properties{ExpungePolicy: command.ForbidExpunges, UsesNumbers: true}
	s.expungePolicy = command.ForbidExpunges
	defer func() { s.expungePolicy = command.FlushExpunges }()
	if err := s.awaitReplies(); err != nil {
		return err
	}
	if !s.isInSync() {
		if err := s.attach(r); err != nil {
			return s.refuseUnattached(err, seg)
		}
	}
	if seg.End {
		return s.handOver(event.PinUnknownCommand, bytes.Clone(seg.Bytes))
	}
	return s.sendUnknownLiterals(seg)
}

// sendUnknownLiterals sends an unknown command with literals, as the backend requests
// them, and hands the session over after the last one.
func (s *session) sendUnknownLiterals(seg imap.Segment) error {
	r := &s.request
	s.avoidTagPrefix(r.tag)
	s.pinReason = event.PinUnknownCommand // a loss ends the session: the effect of the command is unknown
	s.outstanding.add(outstandingCommand{spec: r.spec, tagLen: len(r.tag)}, append(r.tag, ' '))
	s.commandPartial, r.unsent = true, nil
	for !seg.End {
		if seg.Kind == imap.LineEnd {
			s.recordLiteral(seg)
			s.countUpload(seg)
			accepted, err := s.offerLiteral(seg)
			if err != nil {
				return err
			}
			if !accepted { // the backend next reads the client's next command
				s.commandPartial = false
				return s.skipAnswered(seg)
			}
		} else if _, err := s.upstream.Write(seg.Bytes); err != nil {
			return s.wrapUpstreamError(err)
		}
		var err error
		if seg, err = s.readClientSegment(); err != nil {
			return err
		}
		if hasStrayCR(seg) {
			return s.breakOffCommand(seg)
		}
	}
	s.commandPartial = false
	s.outstanding.clear()
	return s.handOver(event.PinUnknownCommand, bytes.Clone(seg.Bytes))
}
