package mux

import (
	"bytes"
	"errors"
	"fmt"

	"go.uber.org/zap"

	"imapgate/internal/event"
	"imapgate/internal/imap"
	"imapgate/proxy/mux/command"
	"imapgate/proxy/mux/lease"
	"imapgate/proxy/mux/mailbox"
)

// errProtocol reports a response that violates the protocol. The client receives none of
// it.
var errProtocol = errors.New("backend broke the protocol")

// disposition is what relay does with a response.
type disposition uint8

const (
	relayAsIs     disposition = iota // to the client, unchanged
	discard                          // drop it
	replace                          // send outBuf instead
	relayUnparsed                    // to the client, and then hand the session over
)

// relay passes on the responses that are buffered, and reads the last one to its end. It
// writes consecutive responses in one piece.
func (s *session) relay() error {
	var run []byte // pending part of the reader's buffer
	for {
		isFirst := s.upstream.AtBoundary()
		seg, ok, err := s.upstream.NextBuffered()
		if err != nil {
			return errors.Join(s.writeRun(run), s.onUnparsable(err))
		}
		if !ok {
			if err := s.writeRun(run); err != nil {
				return err
			}
			run = nil
			if s.upstream.AtBoundary() {
				return nil
			}
			s.throttleBytes()
			if err := s.upstream.ReadMore(); err != nil {
				return s.wrapUpstreamError(err)
			}
			continue
		}
		if isFirst {
			var err error
			if s.disposition, err = s.classify(seg); err != nil {
				return errors.Join(s.writeRun(run), err)
			}
		}
		if isFirst && s.disposition == relayAsIs && seg.End && s.mustFetchUIDsFirst(seg.Bytes) {
			if err := s.flushAfterUIDs(run, seg.Bytes); err != nil {
				return err
			}
			run = nil
			continue
		}
		if s.disposition == relayUnparsed || seg.Unclosed && s.disposition == relayAsIs {
			if err := s.writeUnparsable(run, seg); err != nil {
				return err
			}
			run, s.disposition = nil, relayAsIs
			continue
		}
		if s.disposition == relayAsIs {
			run = extendRun(run, seg.Bytes)
			continue
		}
		if err := s.writeRun(run); err != nil {
			return err
		}
		run = nil
		if s.disposition == replace && seg.End {
			if _, err := s.client.Write(s.outBuf); err != nil {
				return s.wrapClientError(err)
			}
		}
	}
}

// mustFetchUIDsFirst reports whether a tagged response must wait for the UIDs of new
// messages.
func (s *session) mustFetchUIDsFirst(line []byte) bool {
	return line[0] != '*' && s.outstanding.isEmpty() && s.idleState == nil && s.canResume && s.mailbox != nil && s.attached &&
		s.mailbox.HasUnknownArrivals() && s.pinReason == "" && s.enabled.Has(imap.Qresync)
}

// extendRun extends a run by the segment that follows it in the same buffer.
func extendRun(run, next []byte) []byte {
	if run == nil {
		return next
	}
	return run[:len(run)+len(next)]
}

// writeRun writes a run to the client.
func (s *session) writeRun(run []byte) error {
	if len(run) == 0 {
		return nil
	}
	s.responsePartial = !s.upstream.AtBoundary() && s.disposition == relayAsIs
	_, err := s.client.Write(run)
	return s.wrapClientError(err)
}

// writeUnparsable relays a run and the unparsable line after it.
func (s *session) writeUnparsable(run []byte, seg imap.Segment) error {
	if lease.IsAmbiguous(seg) && !s.canHandOver() {
		return errors.Join(s.writeRun(run), s.onUnparsable(errUnterminatedString))
	}
	if err := s.writeRun(extendRun(run, seg.Bytes)); err != nil {
		return err
	}
	return s.onUnparsable(errNotResponse)
}

// classify decides how to treat a response by its first line, and updates the session's
// state from it. An error is the loss of the upstream or the end of the session.
func (s *session) classify(seg imap.Segment) (disposition, error) {
	line := seg.Bytes
	switch {
	case len(line) > 2 && line[0] == '*' && line[1] == ' ':
		return s.classifyUntagged(seg)
	case len(line) > 0 && line[0] == '+' && s.awaitingContinuation:
		s.awaitingContinuation = false
		return discard, nil // awaitContinuation sees the cleared flag
	case len(line) > 0 && line[0] == '+' && s.literalDeclined: // the backend would take commands for the literal
		return discard, s.wrapUpstreamError(fmt.Errorf("%w: literal requested after the command was answered", errProtocol))
	}
	if s.idleState != nil && s.idleState.takeReply(line) {
		s.awaitingContinuation = false
		return discard, nil
	}
	e, ok := s.outstanding.takeAnswered(line)
	switch {
	case ok:
	case s.upstream.IsDoneRejection(line):
		return discard, nil
	case isTaggedResponse(line) && !s.tainted:
		return discard, s.reportStrayAnswer()
	default: // possibly an answer to the client's own octets, taken for a command
		return relayUnparsed, nil
	}
	s.upstream.ClearDone()
	s.literalDeclined = s.awaitingContinuation
	s.finishRecord(line)
	s.retries = 0
	s.awaitingContinuation = false
	if !imap.HasWordPrefix(line[e.tagLen+1:], "OK") {
		s.tainted = s.tainted || e.nonSync || e.spec.Streams && s.request.upload.HasNameLiteral
	}
	if e.closesMailbox && imap.HasWordPrefix(line[e.tagLen+1:], "OK") {
		s.applyClose()
	}
	if e.selectsMailbox {
		s.applyUnselected(line[e.tagLen+1:])
	}
	if e.pinReason == event.PinSelectBad || e.pinReason != "" && !imap.HasWordPrefix(line[e.tagLen+1:], "BAD") {
		s.pinReason = e.pinReason
	}
	if e.expungePolicy == command.FlushExpunges && s.mailbox != nil {
		s.mailbox.AllowUIDs()
	}
	if e.isSyncPoint && s.mailbox != nil {
		s.mailbox.ConfirmModseq()
	}
	return s.stripCode(line), nil
}

// stripCode removes response codes from a tagged response that would lead the client
// around the gateway or list capabilities it is not offered.
func (s *session) stripCode(line []byte) disposition {
	open := bytes.IndexByte(line, '[')
	if open < 0 || bytes.Count(line[:open], []byte(" ")) != 2 {
		return relayAsIs
	}
	code := line[open+1:]
	if !imap.HasWordPrefix(code, "CAPABILITY") && !imap.HasWordPrefix(code, "REFERRAL") {
		return relayAsIs
	}
	s.outBuf = append(s.outBuf[:0], line[:open]...)
	if i := bytes.Index(code, []byte("] ")); i >= 0 {
		s.outBuf = append(s.outBuf, code[i+2:]...)
	} else {
		s.outBuf = append(s.outBuf, "Done.\r\n"...)
	}
	return replace
}

// classifyUntagged decides how to treat "* …", and updates the mailbox.
func (s *session) classifyUntagged(seg imap.Segment) (disposition, error) {
	line := seg.Bytes[2:]
	switch {
	case line[0] >= '0' && line[0] <= '9':
	case s.upstream.IsDoneRejection(seg.Bytes):
		return discard, nil
	case imap.HasWordPrefix(line, "OK"), imap.HasWordPrefix(line, "NO"), imap.HasWordPrefix(line, "BAD"):
		if s.isGatewayStatus(line) {
			return discard, nil
		}
	case imap.HasWordPrefix(line, "BYE"):
		return discard, s.byeError(seg.Bytes)
	case imap.HasWordPrefix(line, "ENABLED"):
		s.addEnabled(line[len("ENABLED"):])
	case imap.HasWordPrefix(line, "CAPABILITY"):
		return discard, nil // the client's list does not change
	case imap.HasWordPrefix(line, "PREAUTH"):
		return discard, s.reportViolation(event.ResponseSyntax, fmt.Errorf("%w: PREAUTH", errProtocol))
	}
	if s.mailbox == nil {
		return relayAsIs, nil
	}
	switch err := s.mailbox.ReadUntagged(seg); {
	case errors.Is(err, mailbox.ErrChanged):
		return discard, &closeError{event.MailboxChanged, byeChanged, nil}
	case err != nil:
		s.desyncView(err)
	}
	return relayAsIs, nil
}

// desyncView records that the view cannot follow a response. The client receives the
// response, as it would from a spliced connection, and the session is pinned to this
// upstream.
func (s *session) desyncView(err error) {
	if s.mailbox.IsDesynced() {
		return
	}
	s.mailbox.Desync()
	s.countViolation(mailbox.ViolationOf(err))
	if s.pinReason == "" {
		s.pinReason = event.PinViolation
	}
	s.hub.deps.Log.Warn("view does not match the backend", zap.String("session", s.auditClient.Session), zap.Error(err))
}

// isGatewayStatus reports whether the response code of "* OK …" is for the gateway alone.
func (s *session) isGatewayStatus(line []byte) bool {
	i := bytes.IndexByte(line, ' ')
	if i < 0 || i+1 >= len(line) || line[i+1] != '[' {
		return false
	}
	code := line[i+2:]
	switch {
	case imap.HasWordPrefix(code, "CAPABILITY"), imap.HasWordPrefix(code, "REFERRAL"):
		return true
	case imap.HasWordPrefix(code, "INPROGRESS") && bytes.Contains(code, []byte(s.upstream.TagPrefix())): // about a command of the gateway (RFC 9585)
		return true
	case s.mailbox != nil && imap.HasWordPrefix(code, "UIDNOTSTICKY"):
		s.pinReason = event.PinUIDNotSticky
	}
	return false
}

// reportStrayAnswer reports a tagged response without a command. It may belong to another
// session.
func (s *session) reportStrayAnswer() error {
	return s.reportViolation(event.TagUnknown, fmt.Errorf("%w: tagged response without a command", errProtocol))
}

// reportViolation counts a protocol violation and returns it as the loss of the upstream.
func (s *session) reportViolation(violation event.Violation, err error) error {
	s.countViolation(violation)
	return s.wrapUpstreamError(fmt.Errorf("%w: %w", errProtocol, err))
}

// countViolation counts a protocol violation for the session's user. On a tainted
// connection the client may have caused it: the backend may have executed or repeated
// octets of the client's.
func (s *session) countViolation(violation event.Violation) {
	s.backend.recordViolation(violation, s.account.User(), !s.tainted && !s.violationCounted)
	s.violationCounted = s.violationCounted || !s.tainted
}
