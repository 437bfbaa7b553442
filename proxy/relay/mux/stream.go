package mux

import (
	"bytes"
	"math"

	"imapgate/internal/event"
	"imapgate/internal/imap"
	"imapgate/proxy/relay/mux/command"
)

// streamCommand runs a command that carries messages, APPEND or REPLACE, without holding
// more than a buffer of it. It runs alone. seg is the first line.
//
// No EXPUNGE may be sent until the command is complete. With pending expunges, a command
// that depends on the selected mailbox is refused. Others run on a connection without the
// mailbox, and the client receives the expunges later.
func (s *session) streamCommand(seg imap.Segment) error {
	r := &s.client.request
	r.tag = bytes.Clone(r.tag)
	r.raw = seg.Bytes
	if !seg.End && !r.upload.CheckFirstLine(seg.Bytes, s.upstream.account.Caps()) {
		return s.rejectCommand(refusalMalformedArguments, seg)
	}
	r.facts, _ = command.Parse(r.raw) // the backend reports other syntax errors
	s.client.records.describe(r, s.mailbox)
	s.client.records.addLiteral(seg)
	s.client.expungePolicy = r.facts.ExpungePolicy
	defer func() { s.client.expungePolicy = command.FlushExpunges }()
	if err := s.awaitReplies(); err != nil {
		return err
	}
	if err := s.relayPending(); err != nil {
		return err
	}
	if !s.client.mayUpload(s.hub.ctx, seg) {
		return s.refuseIncomplete(refusalOverQuota, seg)
	}
	opts := attachOptions{expungePolicy: command.ForbidExpunges, withoutMailbox: r.spec.Name == "APPEND" && !bytes.Contains(bytes.ToUpper(seg.Bytes), []byte("CATENATE"))} // its URLs may be relative to the mailbox (RFC 4469)
	for {
		if !s.isInSync() && !(opts.withoutMailbox && s.upstream.Conn != nil) {
			if err := s.attach(opts); err != nil {
				return s.refuseUnattached(err, seg)
			}
		}
		if err := s.relayPending(); err != nil {
			return err
		}
		if s.upstream.Conn == nil {
			if s.upstream.retries++; s.upstream.retries > maxRetries || s.client.stopReason.Load() != nil {
				s.upstream.retries = 0
				return s.refuseIncomplete(refusalNothingDone, seg)
			}
			continue
		}
		committed, err := s.streamUpload(seg)
		lost, ok := asLost(err)
		if !ok || committed || s.client.responsePartial {
			return err
		}
		s.upstream.outstanding.clear() // the backend has not requested the message, so it can be offered to another connection
		r.unsent = seg.Bytes
		s.upstream.retries++
		if err := s.onUpstreamLost(lost); err != nil {
			return err
		}
		if s.upstream.retries > maxRetries {
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

// refuseIncomplete answers an incomplete command and skips the rest of it.
func (s *session) refuseIncomplete(refusal string, seg imap.Segment) error {
	if seg.Literal.Size >= 0 && !seg.Literal.NonSync {
		s.client.CancelLiteral()
		return s.client.reply(string(s.client.request.tag), refusal)
	}
	if err := s.skipCommand(seg, s.client.request.maxSkip()); err != nil {
		return err
	}
	return s.client.reply(string(s.client.request.tag), refusal)
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
	r := &s.client.request
	s.upstream.avoidTagPrefix(r.tag)
	nonSync := s.upstream.canSendNonSync(seg)
	s.upstream.outstanding.add(outstandingCommand{spec: r.spec, tagLen: len(r.tag), nonSync: nonSync, upstreamDropped: r.upstreamDropped}, append(r.tag, ' '))
	s.upstream.commandPartial, r.unsent = true, nil
	for {
		accepted := true
		if committed && r.mustBreakOff(seg) {
			return true, s.breakOffCommand(seg)
		}
		if nonSync || seg.Kind != imap.LineEnd || seg.End {
			err = s.upstream.send(seg.Bytes)
		} else {
			accepted, err = s.requestLiteral(seg)
		}
		nonSync = false
		switch {
		case err != nil && s.upstream.outstanding.isEmpty():
			if err := s.recoverLoss(err); err != nil {
				return true, err
			}
			return true, s.skipCommand(seg, r.maxSkip()) // the command is finished
		case err != nil && !committed && !seg.End:
			return false, err
		case err != nil:
			return true, s.recoverUploadLoss(seg, err)
		case !accepted:
			s.upstream.commandPartial = false
			return true, s.skipCommand(seg, r.maxSkip())
		case seg.End:
			s.upstream.commandPartial = false
			return true, s.awaitReplies()
		}
		committed = true
		s.publishStatus()
		if seg, err = s.client.readSegment(); err != nil {
			return true, err
		}
		s.client.countUpload(seg)
		s.client.records.addLiteral(seg)
	}
}

// mustBreakOff reports whether the line after a literal must not be sent.
func (r *request) mustBreakOff(seg imap.Segment) bool {
	return seg.Kind == imap.LinePart || hasStrayCR(seg) || hasUnterminatedString(seg) || seg.Kind == imap.LineEnd && !seg.End && !r.upload.CheckNextLine(seg.Bytes)
}

// breakOffCommand ends a command that becomes invalid after a literal. The backend
// refuses it and waits for nothing more.
func (s *session) breakOffCommand(seg imap.Segment) error {
	if err := s.upstream.send([]byte(" (\r\n")); err != nil {
		return s.recoverUploadLoss(seg, err)
	}
	s.upstream.commandPartial = false
	if err := s.awaitReplies(); err != nil {
		return err
	}
	return s.skipCommand(seg, s.client.request.maxSkip())
}

// requestLiteral is offerLiteral, and then requests the literal from the client.
func (x *exchange) requestLiteral(seg imap.Segment) (bool, error) {
	accepted, err := x.offerLiteral(seg)
	if err == nil && accepted && !seg.Literal.NonSync {
		err = x.client.reply("+ OK")
	}
	return accepted, err
}

// recoverUploadLoss recovers from the loss of an upstream that has not received the whole
// command. The command was not executed, and the answer reports that. Only the arrival of
// the last segment is uncertain.
func (s *session) recoverUploadLoss(seg imap.Segment, err error) error {
	lost, ok := asLost(err)
	if !ok || s.client.responsePartial {
		return err
	}
	if seg.End {
		s.upstream.commandPartial = false // assume that it arrived
		return s.onUpstreamLost(lost)
	}
	s.upstream.outstanding.clear()
	if err := s.onUpstreamLost(lost); err != nil { // in mode reuse
		return err
	}
	return s.refuseIncomplete(refusalNothingDone, seg)
}

// runUnknown runs a command that is not in the table. It may change the connection in
// unknown ways, so the session is handed over at the end of the command. seg is the first
// line.
func (s *session) runUnknown(seg imap.Segment) error {
	r := &s.client.request
	r.tag = bytes.Clone(r.tag)
	r.facts = command.Properties{ExpungePolicy: command.ForbidExpunges, UsesNumbers: true}
	s.client.expungePolicy = command.ForbidExpunges
	defer func() { s.client.expungePolicy = command.FlushExpunges }()
	if err := s.awaitReplies(); err != nil {
		return err
	}
	if !s.isInSync() {
		if err := s.attach(r.attachOptions()); err != nil {
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
	r := &s.client.request
	s.upstream.avoidTagPrefix(r.tag)
	s.upstream.pinReason = event.PinUnknownCommand // a loss ends the session: the effect of the command is unknown
	s.upstream.outstanding.add(outstandingCommand{spec: r.spec, tagLen: len(r.tag)}, append(r.tag, ' '))
	s.upstream.commandPartial, r.unsent = true, nil
	for !seg.End {
		if seg.Kind == imap.LineEnd {
			s.client.records.addLiteral(seg)
			s.client.countUpload(seg)
			accepted, err := s.requestLiteral(seg)
			if err != nil {
				return err
			}
			if !accepted { // the backend next reads the client's next command
				s.upstream.commandPartial = false
				return s.skipCommand(seg, s.client.request.maxSkip())
			}
		} else if err := s.upstream.send(seg.Bytes); err != nil {
			return err
		}
		var err error
		if seg, err = s.client.readSegment(); err != nil {
			return err
		}
		if hasStrayCR(seg) {
			return s.breakOffCommand(seg)
		}
	}
	s.upstream.commandPartial = false
	s.upstream.outstanding.clear()
	return s.handOver(event.PinUnknownCommand, bytes.Clone(seg.Bytes))
}
