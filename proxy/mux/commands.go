package mux

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"

	"imapgate/internal/audit"
	"imapgate/internal/imap"
	"imapgate/proxy/mux/command"
	"imapgate/proxy/mux/lease"
	"imapgate/proxy/mux/wire"
)

// Bounds of what a client may send.
const (
	maxBufferedLiterals = 64 << 10 // octets of all literals of a command that is held whole
	maxSkipped          = 1 << 20  // octets of what follows the first line of a refused command
	maxBadCommands      = 20       // commands in a row that are none
)

// request is the command in hand. Its slices point into the client's buffer, or
// into session.collected: until the next command is read.
type request struct {
	tag             []byte
	spec            *command.Spec
	facts           command.Properties
	raw             []byte // literals inline
	unsent          []byte // what of it is here and no backend has had
	upstreamDropped bool   // a connection was given up over it
	parseFailed     bool   // not understood
	upload          command.AppendChecker
}

// runCommands does what the client has asked for, as far as it has been read whole,
// and as much of it as may be outstanding at a time.
func (s *session) runCommands() error {
	for !s.outstanding.isFull() && s.stopReason.Load() == nil { // what waits must not keep a session alive that is to end
		if s.pinReason != "" && s.idleState == nil {
			return s.pin(nil)
		}
		seg, ok, err := s.client.NextBuffered()
		if err != nil {
			return s.endInvalidClient()
		}
		if !ok {
			return nil
		}
		if s.idleState != nil {
			err = s.readDone(seg)
		} else {
			s.commandCount++
			s.throttleCommand()
			err = s.runCommand(seg)
		}
		if err != nil {
			return err
		}
		s.request.unsent, s.discardingInput = nil, false
	}
	return nil
}

// endInvalidClient ends a session whose client no longer speaks in lines: nobody can tell
// where the next command begins.
func (s *session) endInvalidClient() error {
	s.discardingInput = true
	if err := s.awaitReplies(); err != nil {
		return err
	}
	return &closeError{audit.ClientProtocol, byeProtocol, nil}
}

// runCommand does one command, of which seg is the first line.
func (s *session) runCommand(seg imap.Segment) error {
	s.request = request{unsent: seg.Bytes}
	head, err := command.Lookup(seg.Bytes)
	if err != nil {
		return s.rejectInvalid(head.Tag, seg)
	}
	s.badCommands = 0
	s.request.tag, s.request.spec = head.Tag, head.Spec
	s.beginRecord(&s.request)
	if refusal := checkFirstLine(head.Spec, seg); refusal != "" {
		return s.rejectCommand(refusal, seg)
	}
	if head.Spec.Streams {
		return s.streamCommand(seg)
	}
	if head.Spec.Name == "" {
		return s.runUnknown(seg)
	}
	s.request.raw = seg.Bytes
	if !seg.End {
		if err := s.bufferCommand(seg); err != nil || s.request.raw == nil {
			return err
		}
	}
	s.request.facts, err = command.Parse(s.request.raw)
	s.request.parseFailed = err != nil
	s.describeRecord(&s.request)
	return s.execute(&s.request)
}

// rejectInvalid answers what is no command.
func (s *session) rejectInvalid(tag []byte, seg imap.Segment) error {
	s.badCommands++
	if s.badCommands > maxBadCommands {
		return s.endInvalidClient()
	}
	answer := "* BAD Invalid tag."
	if len(tag) > 0 {
		answer = string(tag) + " BAD Invalid command."
	}
	s.discardingInput = true
	if err := s.awaitReplies(); err != nil {
		return err
	}
	if err := s.reply(answer); err != nil {
		return err
	}
	return s.skipCommand(seg, maxSkipped)
}

// readClientSegment is the next segment of a command that has begun. A Part is of a line that
// is too long.
func (s *session) readClientSegment() (imap.Segment, error) {
	for {
		seg, ok, err := s.client.NextBuffered()
		if err != nil {
			return seg, &closeError{audit.ClientProtocol, byeProtocol, err}
		}
		if ok {
			return seg, nil
		}
		s.throttleBytes()
		if err := s.client.ReadMore(); err != nil {
			return seg, s.wrapClientError(err)
		}
	}
}

// bufferCommand reads a command with literals whole. The gateway asks for them itself:
// nothing in them decides where they go, and until the command is complete nobody
// may be told of expunges (RFC 9051 §7.5.1). One that is too large, or no command,
// is refused, and whole is nil.
func (s *session) bufferCommand(seg imap.Segment) error {
	s.commandBuf, s.request.unsent = s.commandBuf[:0], nil // which is in a buffer that goes
	literals := int64(0)
	for {
		s.commandBuf = append(s.commandBuf, seg.Bytes...)
		if seg.End {
			break
		}
		if seg.Literal.Size > 0 {
			literals += seg.Literal.Size
		}
		s.recordLiteral(seg)
		if literals > maxBufferedLiterals || len(s.commandBuf) > 2*maxBufferedLiterals {
			return s.rejectBuffered(" BAD [TOOBIG] Command is too large.", seg)
		}
		if seg.Kind == imap.LineEnd && !seg.Literal.NonSync {
			if err := s.reply("+ OK"); err != nil {
				return err
			}
		}
		var err error
		if seg, err = s.readClientSegment(); err != nil {
			return err
		}
		switch {
		case seg.Kind == imap.LinePart:
			return s.rejectBuffered(refusalLineTooLong, seg)
		case hasStrayCR(seg):
			return s.rejectBuffered(refusalStrayCR, seg)
		}
	}
	s.request.raw, s.request.unsent = s.commandBuf, s.commandBuf
	s.request.tag = s.commandBuf[:len(s.request.tag)]
	if hasUnterminatedString(seg) {
		s.request.raw = nil
		return s.rejectCommand(refusalUnterminatedString, seg)
	}
	return nil
}

// execute does a whole command.
func (s *session) execute(r *request) error {
	s.expungePolicy = r.facts.ExpungePolicy
	defer func() { s.expungePolicy = command.FlushExpunges }()
	local := r.spec.Upstream == command.NoUpstream || r.spec.Name == "NOOP" && s.mailbox == nil
	if r.spec.Barrier || r.facts.Pins || r.parseFailed || local || s.outstanding.hasTag(r.tag) {
		if err := s.awaitReplies(); err != nil {
			return err
		}
	}
	if s.pinReason != "" && !hasLiteral(r.raw) { // by what has been answered just now
		return s.pin(bytes.Clone(r.raw))
	}
	selects := r.spec.ExpungePolicy == command.DropExpunges
	switch {
	case r.spec.Forbidden, r.parseFailed && (local || selects && hasLiteral(r.raw)):
		return s.replyTagged("BAD Command is not allowed now, or not understood.")
	case local:
		return s.answerLocally(r)
	case r.parseFailed && selects: // what is selected behind it, nobody knows
		s.pinReason = audit.PinSelectBad
		return s.pin(bytes.Clone(r.raw))
	case r.parseFailed:
		return s.forwardCommand(r)
	}
	switch r.spec.Name {
	case "SELECT", "EXAMINE":
		return s.selectMailbox(r)
	case "CLOSE", "UNSELECT":
		return s.closeMailbox(r)
	}
	return s.forwardCommand(r)
}

// answerLocally answers what is about the gateway, or needs no backend.
func (s *session) answerLocally(r *request) error {
	switch r.spec.Name {
	case "CAPABILITY":
		return s.reply("* CAPABILITY ", s.offeredCaps.String(), "\r\n", string(r.tag), " OK Capability completed.")
	case "NOOP":
		return s.replyTagged("OK NOOP completed.")
	case "ID":
		return s.answerID(r)
	case "ENABLE":
		return s.enableExtensions(r)
	case "IDLE":
		return s.startIdle(r)
	}
	if err := s.reply("* BYE Logging out\r\n", string(r.tag), " OK Logout completed."); err != nil {
		return err
	}
	return &closeError{reason: audit.ClientLogout}
}

// enableExtensions is ENABLE (RFC 5161). The connection on which it counts is chosen, or
// made, when one is needed.
func (s *session) enableExtensions(r *request) error {
	if s.mailbox != nil && slices.ContainsFunc(r.facts.EnableNames, s.isHidden) {
		return s.replyTagged("NO Not enabled.")
	}
	if s.mailbox != nil { // too late (RFC 5161 §3.1), but some servers do it: this one may say
		return s.forwardCommand(r)
	}
	if s.upstream != nil { // as it is, another may need it; and what is enabled may have to be tried
		s.returnUpstream()
	}
	requested := slices.DeleteFunc(slices.Clone(r.facts.EnableNames), s.isHidden)
	var names []string
	err := s.retryTransient(s.backend.settings.CommandHoldTimeout, func(*holdTimer) (err error) {
		ctx, cancel := context.WithDeadline(s.hub.ctx, s.tryDeadline())
		defer cancel()
		names, err = s.account.ProbeExtensions(ctx, requested)
		return s.checkRevoked(err)
	})
	if err != nil {
		return s.answerUnattached(err)
	}
	enabled, response := s.enabled, "* ENABLED"
	for _, name := range names {
		upper := strings.ToUpper(name)
		enabled = enabled.With(upper)
		if slices.Contains(requested, upper) { // some bring others along
			response += " " + name
		}
	}
	s.enabled = enabled
	return s.reply(response, "\r\n", string(r.tag), " OK Enabled.")
}

// isHidden says whether the client was not offered what the backend has.
func (s *session) isHidden(name string) bool {
	return s.account.Caps().Has(name) && !s.offeredCaps.Has(name)
}

// addEnabled is ENABLED, as an answer to the client on its own connection.
func (s *session) addEnabled(names []byte) {
	more := strings.Fields(string(names))
	s.enabled = s.enabled.With(more...)
	s.upstream.Enabled = s.upstream.Enabled.With(more...)
}

// forwardCommand sends a command on the lease, which is got, and brought in step, first.
func (s *session) forwardCommand(r *request) error {
	if hasLiteral(r.raw) { // which the backend may have to ask for
		if err := s.awaitReplies(); err != nil {
			return err
		}
	}
	s.enableCondstore(r)
	visible := s.visibleRange()
	err := s.prepareUpstream(r)
	if errors.Is(err, errPendingExpunges) && r.facts.ExpungePolicy == command.FlushExpunges {
		r.unsent = nil
		return s.runWithoutMailbox(r.outstandingCommand(), r.raw)
	}
	unparsable, isUnparsable := asUnparsable(err)
	if isUnparsable { // the client may have been told what changes the meaning of its command
		err = nil
	}
	raw := r.raw
	if err == nil {
		raw, err = s.rewriteCommand(r, visible)
	}
	switch {
	case isUnparsable && err != nil:
		r.unsent = nil
		return errors.Join(s.answerUnattached(err), unparsable)
	case isUnparsable:
		r.unsent = raw
		return unparsable
	case err != nil:
		return s.answerUnattached(err)
	}
	s.avoidTagPrefix(r.tag)
	s.upstream.Enabled = s.enabled
	s.tainted = s.tainted || r.parseFailed
	e := r.outstandingCommand()
	e.pinReason = s.pinReasonFor(r)
	s.outstanding.add(e, raw)
	r.unsent = nil
	return s.sendCommand(raw)
}

// rewriteCommand is a command as the client means it, whose view was seen when it sent it: a COPY
// by number may have come out with UIDs for its numbers, and "*" is what it knew of.
func (s *session) rewriteCommand(r *request, visible visibleRange) ([]byte, error) {
	switch {
	case s.uidSet == untranslatable:
		return nil, errPendingExpunges
	case s.uidSet == outOfRange:
		return nil, errNoSuchMessage
	case s.uidSet != "":
		raw, _ := command.RewriteAsUID(nil, r.raw, r.facts, s.uidSet)
		return raw, nil
	case s.visibleRange() != visible && changesMessages(r.spec):
		return visible.clamp(r.raw, r.spec)
	}
	return r.raw, nil
}

// outstandingCommand is the command as it is outstanding.
func (r *request) outstandingCommand() outstandingCommand {
	return outstandingCommand{
		spec: r.spec, tagLen: len(r.tag), retryable: r.facts.Retryable, expungePolicy: r.facts.ExpungePolicy,
		isSyncPoint:    r.spec.Name == "NOOP" || r.spec.Name == "CHECK",
		withoutMailbox: r.spec.Upstream == command.AnyUpstream && !r.parseFailed && !r.facts.EnablesCondstore,
	}
}

// prepareUpstream makes sure of a lease in step with the client, and that the backend has
// not hung up if the command must not be sent in vain. What the command means then,
// meant says.
func (s *session) prepareUpstream(r *request) error {
	m := r.attachOptions()
	s.uidSet = ""
	for range maxRetries {
		if !r.facts.Retryable {
			if err := s.relayPending(); err != nil {
				return err
			}
		}
		if s.isInSync() {
			if err := s.recoverLoss(s.confirmModseq(m.expungePolicy)); err != nil { // what it brings is behind the horizon
				return err
			}
		}
		if s.isInSync() {
			return nil
		}
		s.expungePolicy = command.FlushExpunges // its own moment is m
		if err := s.attachWithin(m, s.backend.settings.CommandHoldTimeout); err != nil {
			return err
		}
		s.expungePolicy = m.expungePolicy
	}
	if !s.isInSync() {
		return errBusy
	}
	return nil
}

// enableCondstore notes that a command makes its connection tell of mod-sequences (RFC 7162
// §3.1), if the backend can.
func (s *session) enableCondstore(r *request) {
	if caps := s.account.Caps(); r.facts.EnablesCondstore && (caps.Has(lease.Condstore) || caps.Has(lease.Qresync)) {
		s.enabled = s.enabled.With(lease.Condstore)
	}
}

// isInSync says whether the lease can take a command as it came.
func (s *session) isInSync() bool { return s.upstream != nil && (s.mailbox == nil || s.attached) }

// pinReasonFor says why the session is pinned once the command is answered, unless by
// BAD; "" if it is not.
func (s *session) pinReasonFor(r *request) audit.Why {
	switch {
	case r.parseFailed && (r.spec.Name == "SELECT" || r.spec.Name == "EXAMINE"):
		return audit.PinSelectBad
	case r.parseFailed:
		return audit.PinSyntax
	case !r.facts.Pins:
		return ""
	case r.facts.RequestsUpdates:
		return audit.PinContext
	case r.facts.SavesResult, r.facts.UsesSavedResult:
		return audit.PinSavedSearch
	}
	switch r.spec.Name {
	case "NOTIFY":
		return audit.PinNotify
	case "LANGUAGE", "COMPARATOR":
		return audit.PinLanguage
	}
	return audit.PinAnnotate
}

// avoidTagPrefix makes sure that no tag of ours begins as the client's does.
func (s *session) avoidTagPrefix(tag []byte) {
	if strings.HasPrefix(string(tag), s.upstream.TagPrefix()) {
		s.upstream.ChangeTagPrefix()
	}
}

// readUpstream reads from the backend, if it says something soon.
func (s *session) readUpstream() error {
	err := s.upstream.AwaitInput()
	if errors.Is(err, wire.ErrIdle) {
		return nil
	}
	return s.wrapUpstreamError(err)
}

// readReply is hear where the backend owes something. One that owes it for too
// long is lost: nobody looks at the client meanwhile.
func (s *session) readReply() error {
	if s.hub.shared.Clock.Now()-s.upstream.LastByteTick() > toTicks(s.hub.cfg.StallTimeout) {
		return s.wrapUpstreamError(wire.ErrStalled)
	}
	if err := s.checkSilence(); err != nil {
		return err
	}
	return s.readUpstream()
}

// awaitReplies waits until nothing is outstanding. Losses are survived on the way.
func (s *session) awaitReplies() error {
	for !s.outstanding.isEmpty() {
		if err := s.recoverLoss(s.readReplies()); err != nil {
			return err
		}
	}
	return nil
}

// relayPending reads what the backend may have said since it was last listened to, so
// that a command that must not be repeated is not sent into a connection that is
// known to be dead.
func (s *session) relayPending() error {
	for s.upstream != nil {
		more, err := s.relayMore()
		if err = s.recoverLoss(err); err != nil || !more {
			return err
		}
	}
	return nil
}

// relayMore passes on what there is, and says whether there was something.
func (s *session) relayMore() (bool, error) {
	if err := s.relay(); err != nil {
		return false, err
	}
	buffered, err := s.upstream.ReadTLSBuffered()
	if buffered || err != nil {
		return true, s.wrapUpstreamError(err)
	}
	if !s.upstream.IsReadable() {
		return false, nil
	}
	return true, s.readUpstream()
}
