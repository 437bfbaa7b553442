package mux

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"

	"imapgate/internal/event"
	"imapgate/internal/imap"
	"imapgate/proxy/mux/command"
	"imapgate/proxy/mux/lease"
	"imapgate/proxy/mux/wire"
)

// Bounds on client input.
const (
	maxBufferedLiterals = 64 << 10 // octets of all literals of a buffered command
	maxSkipped          = 1 << 20  // octets skipped after the first line of a refused command
	maxBadCommands      = 20       // consecutive invalid commands
)

// request is the current command. Its slices point into the client's buffer or into
// session.commandBuf, and are valid until the next command is read.
type request struct {
	tag             []byte
	spec            *command.Spec
	facts           command.Properties
	raw             []byte // with literals inline
	unsent          []byte // the part that has been read but not sent to a backend
	upstreamDropped bool   // a silent connection was dropped while it was outstanding
	parseFailed     bool   // command.Parse failed
	upload          command.AppendChecker
}

// runCommands executes the commands that are completely buffered, up to the bound on
// outstanding commands.
func (s *session) runCommands() error {
	for !s.outstanding.isFull() && s.stopReason.Load() == nil { // buffered commands must not delay a requested stop
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

// endInvalidClient ends a session whose client no longer sends lines: the start of the
// next command is unknown.
func (s *session) endInvalidClient() error {
	s.discardingInput = true
	if err := s.awaitReplies(); err != nil {
		return err
	}
	return &closeError{event.ClientProtocol, byeProtocol, nil}
}

// runCommand executes one command, of which seg is the first line.
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

// rejectInvalid answers an invalid command.
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

// readClientSegment reads the next segment of a command. A LinePart belongs to a line
// that is too long.
func (s *session) readClientSegment() (imap.Segment, error) {
	for {
		seg, ok, err := s.client.NextBuffered()
		if err != nil {
			return seg, &closeError{event.ClientProtocol, byeProtocol, err}
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

// bufferCommand reads a command with literals completely. The gateway requests the
// literals itself: their content does not affect routing, and no EXPUNGE may be sent
// until the command is complete (RFC 9051 §7.5.1). It refuses commands that are too large
// or invalid, and leaves request.raw nil.
func (s *session) bufferCommand(seg imap.Segment) error {
	s.commandBuf, s.request.unsent = s.commandBuf[:0], nil // unsent is in a buffer that is reused
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

// execute executes a complete command.
func (s *session) execute(r *request) error {
	s.expungePolicy = r.facts.ExpungePolicy
	defer func() { s.expungePolicy = command.FlushExpunges }()
	local := r.spec.Upstream == command.NoUpstream || r.spec.Name == "NOOP" && s.mailbox == nil
	if r.spec.Barrier || r.facts.Pins || r.parseFailed || local || s.outstanding.hasTag(r.tag) {
		if err := s.awaitReplies(); err != nil {
			return err
		}
	}
	if s.pinReason != "" && !hasLiteral(r.raw) { // pinned by an answer received just now
		return s.pin(bytes.Clone(r.raw))
	}
	selects := r.spec.ExpungePolicy == command.DropExpunges
	switch {
	case r.spec.Forbidden, r.parseFailed && (local || selects && hasLiteral(r.raw)):
		return s.replyTagged("BAD Command is not allowed now, or not understood.")
	case local:
		return s.answerLocally(r)
	case r.parseFailed && selects: // the resulting selection is unknown
		s.pinReason = event.PinSelectBad
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

// answerLocally answers a command that concerns the gateway or needs no backend.
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
	return &closeError{reason: event.ClientLogout}
}

// enableExtensions executes ENABLE (RFC 5161). The connection with these extensions is
// chosen or made when one is needed.
func (s *session) enableExtensions(r *request) error {
	if s.mailbox != nil && slices.ContainsFunc(r.facts.EnableNames, s.isHidden) {
		return s.replyTagged("NO Not enabled.")
	}
	if s.mailbox != nil { // too late (RFC 5161 §3.1), but some servers accept it
		return s.forwardCommand(r)
	}
	if s.upstream != nil { // another session may use it, and the probe may need a connection
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
		if slices.Contains(requested, upper) { // some extensions enable others
			response += " " + name
		}
	}
	s.enabled = enabled
	return s.reply(response, "\r\n", string(r.tag), " OK Enabled.")
}

// isHidden reports whether the backend has a capability that the client was not offered.
func (s *session) isHidden(name string) bool {
	return s.account.Caps().Has(name) && !s.offeredCaps.Has(name)
}

// addEnabled records the extensions of an ENABLED response to the client's own command.
func (s *session) addEnabled(names []byte) {
	more := strings.Fields(string(names))
	s.enabled = s.enabled.With(more...)
	s.upstream.Enabled = s.upstream.Enabled.With(more...)
}

// forwardCommand sends a command on the lease, after it has acquired and synchronized
// one.
func (s *session) forwardCommand(r *request) error {
	if hasLiteral(r.raw) { // the backend may have to request it
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
	if isUnparsable { // the client may have received responses that change the meaning of its command
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

// rewriteCommand rewrites a command so that it means what the client meant: visible is
// the range of messages when the client sent it. Numbers may become UIDs, and "*" is
// limited to visible.
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

// outstandingCommand returns the queue entry for the command.
func (r *request) outstandingCommand() outstandingCommand {
	return outstandingCommand{
		spec: r.spec, tagLen: len(r.tag), retryable: r.facts.Retryable, expungePolicy: r.facts.ExpungePolicy,
		isSyncPoint:    r.spec.Name == "NOOP" || r.spec.Name == "CHECK",
		withoutMailbox: r.spec.Upstream == command.AnyUpstream && !r.parseFailed && !r.facts.EnablesCondstore,
	}
}

// prepareUpstream ensures that the lease is in sync with the client, and that its
// connection is alive if the command must not be repeated. rewriteCommand then gives the
// command its meaning.
func (s *session) prepareUpstream(r *request) error {
	opts := r.attachOptions()
	s.uidSet = ""
	for range maxRetries {
		if !r.facts.Retryable {
			if err := s.relayPending(); err != nil {
				return err
			}
		}
		if s.isInSync() {
			if err := s.recoverLoss(s.confirmModseq(opts.expungePolicy)); err != nil { // its responses concern messages outside the visible range
				return err
			}
		}
		if s.isInSync() {
			return nil
		}
		s.expungePolicy = command.FlushExpunges // opts has the command's own policy
		if err := s.attachWithin(opts, s.backend.settings.CommandHoldTimeout); err != nil {
			return err
		}
		s.expungePolicy = opts.expungePolicy
	}
	if !s.isInSync() {
		return errBusy
	}
	return nil
}

// enableCondstore records that a command enables mod-sequences on its connection (RFC
// 7162 §3.1), if the backend supports them.
func (s *session) enableCondstore(r *request) {
	if caps := s.account.Caps(); r.facts.EnablesCondstore && (caps.Has(lease.Condstore) || caps.Has(lease.Qresync)) {
		s.enabled = s.enabled.With(lease.Condstore)
	}
}

// isInSync reports whether the lease can take a command unchanged.
func (s *session) isInSync() bool { return s.upstream != nil && (s.mailbox == nil || s.attached) }

// pinReasonFor returns the reason to pin the session once the command is answered, unless
// by BAD; "" for none.
func (s *session) pinReasonFor(r *request) event.PinReason {
	switch {
	case r.parseFailed && (r.spec.Name == "SELECT" || r.spec.Name == "EXAMINE"):
		return event.PinSelectBad
	case r.parseFailed:
		return event.PinSyntax
	case !r.facts.Pins:
		return ""
	case r.facts.RequestsUpdates:
		return event.PinContext
	case r.facts.SavesResult, r.facts.UsesSavedResult:
		return event.PinSavedSearch
	}
	switch r.spec.Name {
	case "NOTIFY":
		return event.PinNotify
	case "LANGUAGE", "COMPARATOR":
		return event.PinLanguage
	}
	return event.PinAnnotate
}

// avoidTagPrefix ensures that the gateway's tags do not share a prefix with the client's.
func (s *session) avoidTagPrefix(tag []byte) {
	if strings.HasPrefix(string(tag), s.upstream.TagPrefix()) {
		s.upstream.ChangeTagPrefix()
	}
}

// readUpstream reads from the backend, and returns nil if nothing arrives soon.
func (s *session) readUpstream() error {
	err := s.upstream.AwaitInput()
	if errors.Is(err, wire.ErrIdle) {
		return nil
	}
	return s.wrapUpstreamError(err)
}

// readReply is readUpstream while an answer is due. A backend that stays silent for
// StallTimeout is lost, because the client is not read in the meantime.
func (s *session) readReply() error {
	if s.silenceDuration() >= s.hub.cfg.StallTimeout && !s.upstream.IsReadable() {
		return s.wrapUpstreamError(wire.ErrStalled)
	}
	if err := s.checkSilence(); err != nil {
		return err
	}
	return s.readUpstream()
}

// awaitReplies waits until nothing is outstanding, and recovers from losses.
func (s *session) awaitReplies() error {
	for !s.outstanding.isEmpty() {
		if err := s.recoverLoss(s.readReplies()); err != nil {
			return err
		}
	}
	return nil
}

// relayPending reads everything the backend has sent since the last read. So a command
// that must not be repeated is not sent on a dead connection.
func (s *session) relayPending() error {
	for s.upstream != nil {
		more, err := s.relayMore()
		if err = s.recoverLoss(err); err != nil || !more {
			return err
		}
	}
	return nil
}

// relayMore relays the available responses, and reports whether there may be more.
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
