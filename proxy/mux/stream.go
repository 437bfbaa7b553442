package mux

import (
	"bytes"
	"math"

	"imapgate/internal/audit"
	"imapgate/internal/imap"
	"imapgate/proxy/mux/command"
)

// streamCommand is a command that carries messages: APPEND and REPLACE, of which only a
// buffer is held at a time. It runs alone. seg is its first line.
//
// Until it is complete nobody may be told of expunges, so where messages have
// gone it is refused if it depends on what is selected. Otherwise it runs on a
// connection without the mailbox, and the client hears of the rest later.
func (s *session) streamCommand(seg imap.Segment) error {
	r := &s.request
	r.tag = bytes.Clone(r.tag)
	r.raw = seg.Bytes
	if !seg.End && !r.upload.CheckFirstLine(seg.Bytes, s.account.Caps()) {
		return s.rejectCommand(refusalMalformedArguments, seg)
	}
	r.facts, _ = command.Parse(r.raw) // what else is wrong with it, the backend says
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
	m := attachOptions{expungePolicy: command.ForbidExpunges, withoutMailbox: r.spec.Name == "APPEND" && !usesCatenate(seg.Bytes)}
	for {
		if !s.isInSync() && !(m.withoutMailbox && s.upstream != nil) {
			if err := s.attachWithin(m, s.backend.settings.CommandHoldTimeout); err != nil {
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
		s.outstanding.clear() // the backend has not asked for the message: it can be offered to another
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

// refuseUnattached answers a command that is not complete, for which an attach has failed.
func (s *session) refuseUnattached(err error, seg imap.Segment) error {
	refusal, end := s.attachRefusal(err)
	if end != nil {
		return end
	}
	return s.refuseIncomplete(refusal, seg)
}

// usesCatenate says whether APPEND refers to messages by URLs, which may be relative
// to the selected mailbox (RFC 4469).
func usesCatenate(line []byte) bool { return bytes.Contains(bytes.ToUpper(line), []byte("CATENATE")) }

// refuseIncomplete answers a command that is not complete, and passes over the rest of it.
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

// maxSkip is how many octets of the command in hand are passed over once it is refused:
// a message is as large as it is.
func (r *request) maxSkip() int64 {
	if r.spec.Streams {
		return math.MaxInt64
	}
	return maxSkipped
}

// streamUpload sends the command as it comes. The backend asks for its literals, unless it
// takes the first one unasked.
//
// It says whether the command has gone beyond being offered to another: more of the
// client's was taken than the first line, or it is answered.
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

// mustBreakOff says whether the line behind a literal is one that must not be sent.
func (r *request) mustBreakOff(seg imap.Segment) bool {
	return seg.Kind == imap.LinePart || hasStrayCR(seg) || hasUnterminatedString(seg) || seg.Kind == imap.LineEnd && !seg.End && !r.upload.CheckNextLine(seg.Bytes)
}

// breakOffCommand ends a command that has gone wrong behind a literal, so that the backend
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

// offerLiteral sends a line that announces a literal, and waits for the backend to ask for
// it. It says no when the backend has answered instead.
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

// skipAnswered reads what still comes of a command that the backend has answered.
func (s *session) skipAnswered(seg imap.Segment) error {
	return s.skipCommand(seg, s.request.maxSkip())
}

// recoverAnsweredLoss is the loss of the upstream behind its answer to a command of which it did
// not have the whole. The command is over.
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

// recoverUploadLoss is the loss of the upstream before it had the whole command. It has
// not been done then, and the client may be told so; but of the last piece
// nobody knows whether it arrived.
func (s *session) recoverUploadLoss(seg imap.Segment, err error) error {
	lost, ok := asLost(err)
	if !ok || s.responsePartial {
		return err
	}
	if seg.End {
		s.commandPartial = false // as far as anybody knows
		return s.onUpstreamLost(lost)
	}
	s.outstanding.clear()
	if err := s.onUpstreamLost(lost); err != nil { // in mode reuse
		return err
	}
	return s.refuseIncomplete(refusalNothingDone, seg)
}

// runUnknown is a command that is not in the table: nobody knows what state it
// gives its connection, so the session stays on it for good, from the end of the
// command on. seg is its first line.
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
		return s.handOver(audit.PinUnknown, bytes.Clone(seg.Bytes))
	}
	return s.sendUnknownLiterals(seg)
}

// sendUnknownLiterals sends an unknown command with literals, as the backend asks for
// them, and hands the session over behind the last.
func (s *session) sendUnknownLiterals(seg imap.Segment) error {
	r := &s.request
	s.avoidTagPrefix(r.tag)
	s.pinReason = audit.PinUnknown // a loss is the end: what the command has done, nobody knows
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
			if !accepted { // the client's next command is what the backend hears next
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
	return s.handOver(audit.PinUnknown, bytes.Clone(seg.Bytes))
}
