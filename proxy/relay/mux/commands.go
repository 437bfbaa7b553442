package mux

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"

	"imapgate/internal/event"
	"imapgate/internal/imap"
	"imapgate/proxy/relay"
	"imapgate/proxy/relay/mux/command"
	"imapgate/proxy/relay/mux/mailbox"
	"imapgate/proxy/relay/mux/wire"
)

// Bounds on client input.
const (
	maxBufferedLiterals = 64 << 10 // octets of all literals of a buffered command
	maxSkipped          = 1 << 20  // octets skipped after the first line of a refused command
	maxBadCommands      = 20       // consecutive invalid commands
)

// request is the current command. Its slices point into the client's buffer or into
// clientWork.commandBuf, and are valid until the next command is read.
type request struct {
	tag             []byte
	spec            *command.Spec
	facts           command.Properties
	raw             []byte // with literals inline
	unsent          []byte // the part that has been read but not sent to a backend
	upstreamDropped bool   // a silent connection was dropped while it was outstanding
	parseFailed     bool   // command.Parse failed
	uidSet          string // UIDs translated from the command's numbers; "": none
	upload          command.AppendChecker
}

// runCommands executes the commands that are completely buffered, up to the bound on
// outstanding commands.
func (s *session) runCommands() error {
	for !s.mustHold() && s.client.stopReason.Load() == nil { // buffered commands must not delay a requested stop
		if s.live.IsLeaving() {
			if !s.upstream.outstanding.isEmpty() { // asked since mustHold
				return nil
			}
			if err := s.leave(); err != nil {
				return err
			}
		}
		if s.upstream.pinReason != "" && s.client.idle == nil {
			return s.pin(nil)
		}
		seg, ok, err := s.client.NextBuffered()
		if err != nil {
			return s.endInvalidClient()
		}
		if !ok {
			return nil
		}
		if s.client.idle != nil {
			err = s.readDone(seg)
		} else {
			s.client.commandCount.Add(1)
			s.client.throttleCommand()
			err = s.runCommand(seg)
		}
		if err != nil {
			return err
		}
		s.client.request.unsent, s.client.discardingInput = nil, false
	}
	return nil
}

// mustHold reports whether the client's next command must wait for answers: with a full
// queue, and before a move, which pipelined commands would delay.
func (x *exchange) mustHold() bool {
	queue := &x.upstream.outstanding
	return queue.isFull() || !queue.isEmpty() && x.live.IsLeaving()
}

// endInvalidClient ends a session whose client no longer sends lines: the start of the
// next command is unknown.
func (s *session) endInvalidClient() error {
	s.client.discardingInput = true
	if err := s.awaitReplies(); err != nil {
		return err
	}
	return &relay.CloseError{Reason: event.ClientProtocol, Bye: byeProtocol}
}

// runCommand executes one command, of which seg is the first line.
func (s *session) runCommand(seg imap.Segment) error {
	s.client.request = request{unsent: seg.Bytes}
	head, err := command.Lookup(seg.Bytes)
	if err != nil {
		return s.rejectInvalid(head.Tag, seg)
	}
	s.client.badCommands = 0
	s.client.request.tag, s.client.request.spec = head.Tag, head.Spec
	s.client.records.begin(head.Tag, head.Spec)
	if refusal := checkFirstLine(head.Spec, seg); refusal != "" {
		return s.rejectCommand(refusal, seg)
	}
	if head.Spec.Streams {
		return s.streamCommand(seg)
	}
	if head.Spec.Name == "" {
		return s.runUnknown(seg)
	}
	s.client.request.raw = seg.Bytes
	if !seg.End {
		if err := s.bufferCommand(seg); err != nil || s.client.request.raw == nil {
			return err
		}
	}
	s.client.request.facts, err = command.Parse(s.client.request.raw)
	s.client.request.parseFailed = err != nil
	s.client.records.describe(&s.client.request, s.mailbox)
	return s.execute(&s.client.request)
}

func (s *session) rejectInvalid(tag []byte, seg imap.Segment) error {
	s.client.badCommands++
	if s.client.badCommands > maxBadCommands {
		return s.endInvalidClient()
	}
	answer := "* BAD Invalid tag."
	if len(tag) > 0 {
		answer = string(tag) + " BAD Invalid command."
	}
	s.client.discardingInput = true
	if err := s.awaitReplies(); err != nil {
		return err
	}
	if err := s.client.reply(answer); err != nil {
		return err
	}
	return s.skipCommand(seg, maxSkipped)
}

// bufferCommand reads a command with literals completely. The gateway requests the
// literals itself: their content does not affect routing, and no EXPUNGE may be sent
// until the command is complete (RFC 9051 §7.5.1). It refuses commands that are too large
// or invalid, and leaves request.raw nil.
func (s *session) bufferCommand(seg imap.Segment) error {
	c := &s.client
	c.commandBuf, c.request.raw, c.request.unsent = c.commandBuf[:0], nil, nil // unsent is in a buffer that is reused
	literals := int64(0)
	for {
		c.commandBuf = append(c.commandBuf, seg.Bytes...)
		c.request.tag = c.commandBuf[:len(c.request.tag)]
		if seg.End {
			break
		}
		if seg.Literal.Size > 0 {
			literals += seg.Literal.Size
		}
		c.records.addLiteral(seg)
		if literals > maxBufferedLiterals || len(c.commandBuf) > 2*maxBufferedLiterals {
			return s.rejectCommand(" BAD [TOOBIG] Command is too large.", seg)
		}
		if seg.Kind == imap.LineEnd && !seg.Literal.NonSync {
			if err := c.reply("+ OK"); err != nil {
				return err
			}
		}
		var err error
		if seg, err = c.readSegment(); err != nil {
			return err
		}
		switch {
		case seg.Kind == imap.LinePart:
			return s.rejectCommand(refusalLineTooLong, seg)
		case hasStrayCR(seg):
			return s.rejectCommand(refusalStrayCR, seg)
		}
	}
	c.request.unsent = c.commandBuf
	if hasUnterminatedString(seg) {
		return s.rejectCommand(refusalUnterminatedString, seg)
	}
	c.request.raw = c.commandBuf
	return nil
}

// execute executes a complete command: here, or at the backend after the outstanding ones that
// it must not overtake.
func (s *session) execute(r *request) error {
	s.client.expungePolicy = r.facts.ExpungePolicy
	defer func() { s.client.expungePolicy = command.FlushExpunges }()
	local := r.spec.Upstream == command.NoUpstream || r.spec.Name == "NOOP" && s.mailbox == nil
	if r.spec.Barrier || r.facts.Pins || r.parseFailed || local || s.upstream.outstanding.hasTag(r.tag) {
		if err := s.awaitReplies(); err != nil {
			return err
		}
	}
	if s.upstream.pinReason != "" && !hasLiteral(r.raw) { // pinned by an answer received just now
		return s.pin(bytes.Clone(r.raw))
	}
	switch {
	case r.spec.Forbidden, r.parseFailed && local:
		return s.client.reply(string(r.tag), refusalNotUnderstood)
	case r.parseFailed:
		return s.executeUnparsed(r)
	case local:
		return s.answerLocally(r)
	}
	switch r.spec.Name {
	case "SELECT", "EXAMINE":
		return s.selectMailbox(r)
	case "CLOSE", "UNSELECT":
		return s.closeMailbox(r)
	}
	return s.forwardCommand(r)
}

// executeUnparsed lets the backend decide on a command that command.Parse rejects. After one that
// selects or closes a mailbox, the selection is unknown.
func (s *session) executeUnparsed(r *request) error {
	switch selects := r.spec.ExpungePolicy == command.DropExpunges; {
	case !selects:
		return s.forwardCommand(r)
	case hasLiteral(r.raw):
		return s.client.reply(string(r.tag), refusalNotUnderstood)
	}
	s.upstream.pinReason = event.PinSelectBad
	return s.pin(bytes.Clone(r.raw))
}

// answerLocally answers a command that concerns the gateway or needs no backend.
func (s *session) answerLocally(r *request) error {
	switch r.spec.Name {
	case "CAPABILITY":
		return s.client.reply("* CAPABILITY ", s.client.offeredCaps.String(), "\r\n", string(r.tag), " OK Capability completed.")
	case "NOOP":
		return s.client.replyTagged("OK NOOP completed.")
	case "ID":
		return s.answerID(r)
	case "ENABLE":
		return s.enableExtensions(r)
	case "IDLE":
		return s.startIdle(r)
	}
	if err := s.client.reply("* BYE Logging out\r\n", string(r.tag), " OK Logout completed."); err != nil {
		return err
	}
	return &relay.CloseError{Reason: event.ClientLogout}
}

// enableExtensions executes ENABLE (RFC 5161). The connection with these extensions is
// chosen or made when one is needed.
func (s *session) enableExtensions(r *request) error {
	isHidden := func(name string) bool { return s.upstream.account.Caps().Has(name) && !s.client.offeredCaps.Has(name) }
	if s.mailbox != nil && slices.ContainsFunc(r.facts.EnableNames, isHidden) {
		return s.client.replyTagged("NO Not enabled.")
	}
	if s.mailbox != nil { // too late (RFC 5161 §3.1), but some servers accept it
		return s.forwardCommand(r)
	}
	if s.upstream.Conn != nil { // another session may use it, and the probe may need a connection
		s.returnUpstream()
	}
	requested := slices.DeleteFunc(slices.Clone(r.facts.EnableNames), isHidden)
	var names []string
	err := s.retryTransient(s.upstream.backend.settings.CommandHoldTimeout, func(*holdTimer) (err error) {
		ctx, cancel := context.WithDeadline(s.hub.ctx, s.upstream.tryDeadline())
		defer cancel()
		names, err = s.upstream.account.ProbeExtensions(ctx, requested)
		return s.upstream.checkRevoked(err)
	})
	if err != nil {
		return s.answerUnattached(err)
	}
	enabled, response := s.client.enabled, "* ENABLED"
	for _, name := range names {
		upper := strings.ToUpper(name)
		enabled = enabled.With(upper)
		if slices.Contains(requested, upper) { // some extensions enable others
			response += " " + name
		}
	}
	s.client.enabled = enabled
	return s.client.reply(response, "\r\n", string(r.tag), " OK Enabled.")
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
	visible := s.mailbox.VisibleRange()
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
		raw, err = r.rewrite(visible, s.mailbox.VisibleRange())
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
	s.upstream.avoidTagPrefix(r.tag)
	s.upstream.Enabled = s.client.enabled
	s.upstream.tainted = s.upstream.tainted || r.parseFailed
	e := r.outstandingCommand()
	e.pinReason = r.pinReason()
	s.upstream.outstanding.add(e, raw)
	r.unsent = nil
	return s.sendCommand(raw)
}

// rewrite rewrites a command so that it means what the client meant: visible is the range
// of messages when the client sent it, now the present one. Numbers may become UIDs, and "*" is
// limited to visible.
func (r *request) rewrite(visible, now mailbox.VisibleRange) ([]byte, error) {
	switch {
	case r.uidSet == untranslatable:
		return nil, errPendingExpunges
	case r.uidSet == outOfRange:
		return nil, mailbox.ErrRange
	case r.uidSet != "":
		raw, _ := command.RewriteAsUID(r.raw, r.facts, r.uidSet)
		return raw, nil
	case now != visible && changesMessages(r.spec):
		return clampCommand(r.raw, r.spec, visible)
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
// connection is alive if the command must not be repeated. request.rewrite then gives the
// command its meaning.
func (s *session) prepareUpstream(r *request) error {
	opts := r.attachOptions()
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
		s.client.expungePolicy = command.FlushExpunges // opts has the command's own policy
		if err := s.attach(opts); err != nil {
			return err
		}
		s.client.expungePolicy = opts.expungePolicy
	}
	if !s.isInSync() {
		return errBusy
	}
	return nil
}

// enableCondstore records that a command enables mod-sequences on its connection (RFC
// 7162 §3.1), if the backend supports them.
func (x *exchange) enableCondstore(r *request) {
	if caps := x.upstream.account.Caps(); r.facts.EnablesCondstore && (caps.Has(imap.Condstore) || caps.Has(imap.Qresync)) {
		x.client.enabled = x.client.enabled.With(imap.Condstore)
	}
}

// isInSync reports whether the lease can take a command unchanged.
func (x *exchange) isInSync() bool {
	return x.upstream.Conn != nil && (x.mailbox == nil || x.upstream.attached)
}

// pinReason returns the reason to pin the session once the command is answered, unless
// by BAD; "" for none.
func (r *request) pinReason() event.PinReason {
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

// readReply reads from the backend while an answer is due. A backend that stays silent for
// StallTimeout is lost, because the client is not read in the meantime.
func (x *exchange) readReply() error {
	if x.upstream.silenceDuration() >= x.hub.cfg.StallTimeout && !x.upstream.IsReadable() {
		return wrapLost(wire.ErrStalled)
	}
	if err := x.checkSilence(); err != nil {
		return err
	}
	x.publishStatus()
	return x.upstream.read()
}

// awaitReplies waits until nothing is outstanding, and recovers from losses.
func (s *session) awaitReplies() error {
	for !s.upstream.outstanding.isEmpty() {
		if err := s.recoverLoss(s.readReplies()); err != nil {
			return err
		}
	}
	return nil
}

// relayPending reads everything the backend has sent since the last read. So a command
// that must not be repeated is not sent on a dead connection.
func (s *session) relayPending() error {
	for s.upstream.Conn != nil {
		more, err := s.relayMore()
		if err = s.recoverLoss(err); err != nil || !more {
			return err
		}
	}
	return nil
}

// relayMore relays the available responses, and reports whether there may be more.
func (x *exchange) relayMore() (bool, error) {
	if err := x.relay(); err != nil {
		return false, err
	}
	buffered, err := x.upstream.ReadTLSBuffered()
	if buffered || err != nil {
		return true, wrapLost(err)
	}
	if !x.upstream.IsReadable() {
		return false, nil
	}
	return true, x.upstream.read()
}
