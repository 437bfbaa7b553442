package mux

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	"go.uber.org/zap"

	"imapgate/internal/event"
	"imapgate/internal/imap"
	"imapgate/proxy/relay"
	"imapgate/proxy/relay/mux/command"
	"imapgate/proxy/relay/mux/lease"
	"imapgate/proxy/relay/mux/mailbox"
)

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
func (x *exchange) relay() error {
	var run []byte // pending part of the reader's buffer
	for {
		isFirst := x.upstream.AtBoundary()
		seg, ok, err := x.upstream.NextBuffered()
		if err != nil {
			return errors.Join(x.writeRun(run), x.onUnparsable(err))
		}
		if !ok {
			if err := x.writeRun(run); err != nil {
				return err
			}
			run = nil
			if x.upstream.AtBoundary() {
				return nil
			}
			x.client.throttleBytes()
			if err := x.upstream.ReadMore(); err != nil {
				return wrapLost(err)
			}
			continue
		}
		if isFirst {
			var err error
			if x.upstream.disposition, err = x.classify(seg); err != nil {
				return errors.Join(x.writeRun(run), err)
			}
		}
		if isFirst && x.upstream.disposition == relayAsIs && seg.End && x.mustFetchUIDsFirst(seg.Bytes) {
			if err := x.flushAfterUIDs(run, seg.Bytes); err != nil {
				return err
			}
			run = nil
			continue
		}
		if x.upstream.disposition == relayUnparsed || seg.Unclosed && x.upstream.disposition == relayAsIs {
			if err := x.writeUnparsable(run, seg); err != nil {
				return err
			}
			run, x.upstream.disposition = nil, relayAsIs
			continue
		}
		if x.upstream.disposition == relayAsIs {
			run = extendRun(run, seg.Bytes)
			continue
		}
		if err := x.writeRun(run); err != nil {
			return err
		}
		run = nil
		if x.upstream.disposition == replace && seg.End {
			if err := x.client.send(x.client.outBuf); err != nil {
				return err
			}
		}
	}
}

// mustFetchUIDsFirst reports whether a tagged response must wait for the UIDs of new
// messages.
func (x *exchange) mustFetchUIDsFirst(line []byte) bool {
	return line[0] != '*' && x.upstream.outstanding.isEmpty() && x.client.idle == nil && x.isResume && x.mailbox != nil && x.upstream.attached &&
		x.mailbox.HasUnknownArrivals() && x.upstream.pinReason == "" && x.client.enabled.Has(imap.Qresync)
}

// extendRun extends a run by the segment that follows it in the same buffer.
func extendRun(run, next []byte) []byte {
	if run == nil {
		return next
	}
	return run[:len(run)+len(next)]
}

func (x *exchange) writeRun(run []byte) error {
	if len(run) == 0 {
		return nil
	}
	x.client.responsePartial = !x.upstream.AtBoundary() && x.upstream.disposition == relayAsIs
	return x.client.send(run)
}

// writeUnparsable relays a run and the unparsable line after it.
func (x *exchange) writeUnparsable(run []byte, seg imap.Segment) error {
	if lease.IsAmbiguous(seg) && !x.canHandOver() {
		return errors.Join(x.writeRun(run), x.onUnparsable(errUnterminatedString))
	}
	if err := x.writeRun(extendRun(run, seg.Bytes)); err != nil {
		return err
	}
	return x.onUnparsable(errNotResponse)
}

// classify decides how to treat a response by its first line, and updates the session's
// state from it. An error is the loss of the upstream or the end of the session.
func (x *exchange) classify(seg imap.Segment) (disposition, error) {
	line := seg.Bytes
	switch {
	case len(line) > 2 && line[0] == '*' && line[1] == ' ':
		return x.classifyUntagged(seg)
	case len(line) > 0 && line[0] == '+' && x.upstream.awaitingContinuation:
		x.upstream.awaitingContinuation = false
		return discard, nil // awaitContinuation sees the cleared flag
	case len(line) > 0 && line[0] == '+' && x.upstream.literalDeclined: // the backend would take commands for the literal
		return discard, wrapLost(fmt.Errorf("%w: literal requested after the command was answered", lease.ErrProtocol))
	}
	if x.client.idle != nil && x.client.idle.takeReply(line) {
		x.upstream.awaitingContinuation = false
		return discard, nil
	}
	e, ok := x.upstream.outstanding.takeAnswered(line)
	switch {
	case ok:
	case x.upstream.IsDoneRejection(line):
		return discard, nil
	case isTaggedResponse(line) && !x.upstream.tainted:
		return discard, x.upstream.reportStrayAnswer()
	default: // possibly an answer to the client's own octets, taken for a command
		return relayUnparsed, nil
	}
	x.upstream.ClearDone()
	x.upstream.literalDeclined = x.upstream.awaitingContinuation
	x.client.records.finish(line)
	x.upstream.retries = 0
	x.upstream.awaitingContinuation = false
	if !imap.HasWordPrefix(line[e.tagLen+1:], "OK") {
		x.upstream.tainted = x.upstream.tainted || e.nonSync || e.spec.Streams && x.client.request.upload.HasNameLiteral
	}
	if e.closesMailbox && imap.HasWordPrefix(line[e.tagLen+1:], "OK") {
		x.mailbox, x.upstream.attached, x.upstream.Selected = nil, false, false
		x.updateStateMetric()
	}
	if e.selectsMailbox {
		x.applyUnselected(line[e.tagLen+1:])
	}
	if e.pinReason == event.PinSelectBad || e.pinReason != "" && !imap.HasWordPrefix(line[e.tagLen+1:], "BAD") {
		x.upstream.pinReason = e.pinReason
	}
	if e.expungePolicy == command.FlushExpunges && x.mailbox != nil {
		x.mailbox.AllowUIDs()
	}
	if e.isSyncPoint && x.mailbox != nil {
		x.mailbox.ConfirmModseq()
	}
	return x.client.stripCode(line), nil
}

// stripCode removes response codes from a tagged response that would lead the client
// around the gateway or list capabilities it is not offered.
func (c *clientSide) stripCode(line []byte) disposition {
	open := bytes.IndexByte(line, '[')
	if open < 0 || bytes.Count(line[:open], []byte(" ")) != 2 {
		return relayAsIs
	}
	code := line[open+1:]
	if !isGatewayCode(code) {
		return relayAsIs
	}
	c.outBuf = append(c.outBuf[:0], line[:open]...)
	if i := bytes.Index(code, []byte("] ")); i >= 0 {
		c.outBuf = append(c.outBuf, code[i+2:]...)
	} else {
		c.outBuf = append(c.outBuf, "Done.\r\n"...)
	}
	return replace
}

// classifyUntagged decides how to treat "* …", and updates the mailbox.
func (x *exchange) classifyUntagged(seg imap.Segment) (disposition, error) {
	line := seg.Bytes[2:]
	switch {
	case line[0] >= '0' && line[0] <= '9':
	case x.upstream.IsDoneRejection(seg.Bytes):
		return discard, nil
	case imap.HasWordPrefix(line, "OK"), imap.HasWordPrefix(line, "NO"), imap.HasWordPrefix(line, "BAD"):
		if x.upstream.isGatewayStatus(line) {
			return discard, nil
		}
	case imap.HasWordPrefix(line, "BYE"):
		return discard, byeError(seg.Bytes)
	case imap.HasWordPrefix(line, "ENABLED"):
		names := strings.Fields(string(line[len("ENABLED"):])) // of a command of the client
		x.client.enabled, x.upstream.Enabled = x.client.enabled.With(names...), x.upstream.Enabled.With(names...)
	case imap.HasWordPrefix(line, "CAPABILITY"):
		return discard, nil // the client's list does not change
	case imap.HasWordPrefix(line, "PREAUTH"):
		return discard, x.upstream.reportViolation(event.ResponseSyntax, errors.New("PREAUTH after the login"))
	}
	if x.mailbox == nil {
		return relayAsIs, nil
	}
	switch err := x.mailbox.ReadUntagged(seg); {
	case err == nil:
	case errors.Is(err, mailbox.ErrChanged):
		return discard, &relay.CloseError{Reason: event.MailboxChanged, Bye: byeChanged}
	case errors.Is(err, mailbox.ErrUIDNotSticky):
		x.upstream.pinReason = event.PinUIDNotSticky
	default:
		x.desyncView(err)
	}
	return relayAsIs, nil
}

// desyncView records that the view cannot follow a response. The client receives the
// response, as it would from a spliced connection, and the session is pinned to this
// upstream.
func (x *exchange) desyncView(err error) {
	if x.mailbox.IsDesynced() {
		return
	}
	x.mailbox.Desync()
	x.upstream.countViolation(mailbox.ViolationOf(err))
	if x.upstream.pinReason == "" {
		x.upstream.pinReason = event.PinViolation
	}
	x.hub.deps.Log.Warn("view does not match the backend", zap.String("session", x.client.audit.Session), zap.Error(err))
}

// isGatewayStatus reports whether the response code of "* OK …" is for the gateway alone.
func (u *upstreamSide) isGatewayStatus(line []byte) bool {
	_, code, _ := bytes.Cut(line, []byte(" "))
	code, hasCode := bytes.CutPrefix(code, []byte("["))
	switch {
	case !hasCode:
		return false
	case imap.HasWordPrefix(code, "INPROGRESS"): // about a command of the gateway, or of the client (RFC 9585)
		return bytes.Contains(code, []byte(u.TagPrefix()))
	}
	return isGatewayCode(code)
}

// isGatewayCode reports whether a response code would lead the client around the gateway, or
// lists capabilities.
func isGatewayCode(code []byte) bool {
	return imap.HasWordPrefix(code, "CAPABILITY") || imap.HasWordPrefix(code, "REFERRAL")
}

// reportStrayAnswer reports a tagged response without a command. It may belong to another
// session.
func (u *upstreamSide) reportStrayAnswer() error {
	return u.reportViolation(event.TagUnknown, errors.New("tagged response without a command"))
}

// reportViolation counts a protocol violation and returns it as the loss of the upstream.
func (u *upstreamSide) reportViolation(violation event.Violation, err error) error {
	u.countViolation(violation)
	return wrapLost(fmt.Errorf("%w: %w", lease.ErrProtocol, err))
}

// countViolation counts a protocol violation for the session's user. On a tainted
// connection the client may have caused it: the backend may have executed or repeated
// octets of the client's.
func (u *upstreamSide) countViolation(violation event.Violation) {
	u.backend.recordViolation(violation, u.account.User(), !u.tainted && !u.violationCounted)
	u.violationCounted = u.violationCounted || !u.tainted
}
