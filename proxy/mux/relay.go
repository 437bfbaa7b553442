package mux

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	"go.uber.org/zap"

	"imapgate/internal/audit"
	"imapgate/internal/imap"
	"imapgate/internal/metrics"
	"imapgate/proxy/mux/command"
	"imapgate/proxy/mux/lease"
	"imapgate/proxy/mux/view"
)

// errProtocol is what a backend cannot have meant. Nothing of it goes any further.
var errProtocol = errors.New("backend broke the protocol")

// disposition is what becomes of a response.
type disposition uint8

const (
	relayAsIs     disposition = iota // on to the client as it is
	discard                          // it is for us
	replace                          // s.out goes on instead
	relayUnparsed                    // on to the client, and then nothing is followed any more
)

// relay passes on what the backend has said, as far as it has been read; what it
// has begun, to its end. Responses that follow each other go out in one piece.
func (s *session) relay() error {
	var run []byte // of the reader's buffer, to be passed on
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

// mustFetchUIDsFirst says whether an answer is to wait for the UIDs of what has come.
func (s *session) mustFetchUIDsFirst(line []byte) bool {
	return line[0] != '*' && s.outstanding.isEmpty() && s.idleState == nil && s.canResume && s.mailbox != nil && s.attached &&
		s.mailbox.hasArrivals && s.mailbox.view.UnknownCount() > 0 && s.pinReason == "" && s.enabled.Has(lease.Qresync)
}

// extendRun lengthens a run by the segment behind it, which lies beside it.
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

// writeUnparsable passes on a run, and the line behind it, which cannot be followed.
func (s *session) writeUnparsable(run []byte, seg imap.Segment) error {
	if lease.IsAmbiguous(seg) && !s.canHandOver() {
		return errors.Join(s.writeRun(run), s.onUnparsable(errUnterminatedString))
	}
	if err := s.writeRun(extendRun(run, seg.Bytes)); err != nil {
		return err
	}
	return s.onUnparsable(errNotResponse)
}

// classify decides about a response by its first line, and takes from it what it
// says of the mailbox. An error is the loss of the upstream, or the session's end.
func (s *session) classify(seg imap.Segment) (disposition, error) {
	line := seg.Bytes
	switch {
	case len(line) > 2 && line[0] == '*' && line[1] == ' ':
		return s.classifyUntagged(seg)
	case len(line) > 0 && line[0] == '+' && s.awaitingContinuation:
		s.awaitingContinuation = false
		return discard, nil // whoever waits for it sees that it has come
	case len(line) > 0 && line[0] == '+' && s.literalDeclined: // it would take commands for the literal
		return discard, s.wrapUpstreamError(fmt.Errorf("%w: a literal is asked for behind the answer", errProtocol))
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
	default: // or the answer to what the client's own octets were taken for
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
	if e.pinReason == audit.PinSelectBad || e.pinReason != "" && !imap.HasWordPrefix(line[e.tagLen+1:], "BAD") {
		s.pinReason = e.pinReason
	}
	if e.expungePolicy == command.FlushExpunges && s.mailbox != nil {
		s.mailbox.uidsDeferred = false // it has had its chance to announce what is gone
	}
	if e.isSyncPoint && s.mailbox != nil && s.mailbox.pendingModseq > 0 {
		s.mailbox.modseq, s.mailbox.pendingModseq = s.mailbox.pendingModseq, 0
	}
	return s.stripCode(line), nil
}

// stripCode takes response codes out of a tagged answer that would lead the
// client around the gateway or tell it of another's capabilities.
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

// classifyUntagged decides about "* …".
func (s *session) classifyUntagged(seg imap.Segment) (disposition, error) {
	line := seg.Bytes[2:]
	if n, rest, ok := parseLeadingNumber(line); ok {
		return s.classifyNumbered(n, rest)
	}
	switch {
	case s.upstream.IsDoneRejection(seg.Bytes):
		return discard, nil
	case imap.HasWordPrefix(line, "OK"), imap.HasWordPrefix(line, "NO"), imap.HasWordPrefix(line, "BAD"):
		return s.classifyStatus(line)
	case imap.HasWordPrefix(line, "BYE"):
		return discard, s.byeError(seg.Bytes)
	case imap.HasWordPrefix(line, "VANISHED"):
		return s.classifyVanished(seg)
	case imap.HasWordPrefix(line, "ENABLED"):
		s.addEnabled(line[len("ENABLED"):])
	case imap.HasWordPrefix(line, "CAPABILITY"):
		return discard, nil // the client's list does not change
	case imap.HasWordPrefix(line, "PREAUTH"):
		return discard, s.reportViolation(metrics.ResponseSyntax, fmt.Errorf("%w: PREAUTH", errProtocol))
	case imap.HasWordPrefix(line, "FLAGS") && s.mailbox != nil && seg.End:
		s.mailbox.flags.set(line)
	}
	return relayAsIs, nil
}

// classifyNumbered decides about "* n …" and keeps the view in step.
func (s *session) classifyNumbered(n uint32, rest []byte) (disposition, error) {
	if s.mailbox == nil {
		return relayAsIs, nil
	}
	var err error
	violation := ""
	switch {
	case imap.HasWordPrefix(rest, "EXISTS"):
		s.mailbox.hasArrivals = s.mailbox.hasArrivals || n > s.mailbox.view.Exists()
		err, violation = s.mailbox.view.SetExists(n), metrics.ExistsShrank
	case imap.HasWordPrefix(rest, "EXPUNGE"):
		s.mailbox.uidsDeferred = false
		err, violation = s.mailbox.view.Expunge(n), metrics.ExpungeRange
	case imap.HasWordPrefix(rest, "RECENT"):
		s.mailbox.recent = n
	case imap.HasWordPrefix(rest, "FETCH") && s.mailbox.view.UnknownCount() > 0 && n == s.mailbox.view.KnownCount()+1:
		if uid, ok := findUID(rest); ok {
			s.mailbox.view.AddUID(n, uid)
		}
	}
	if err != nil {
		return s.desyncView(violation, err)
	}
	return relayAsIs, nil
}

// desyncView is the verdict on a response that the view cannot follow: the client
// gets it, as it would if nobody listened, and the session stays with this
// upstream from now on.
func (s *session) desyncView(violation string, err error) (disposition, error) {
	if s.mailbox.desynced {
		return relayAsIs, nil
	}
	s.mailbox.desynced = true
	s.countViolation(violation)
	if s.pinReason == "" {
		s.pinReason = audit.PinViolation
	}
	s.hub.deps.Log.Warn("view is lost", zap.String("session", s.auditClient.Session), zap.Error(err))
	return relayAsIs, nil
}

// classifyVanished is "* VANISHED …" (RFC 7162 §3.2.10).
func (s *session) classifyVanished(seg imap.Segment) (disposition, error) {
	if s.mailbox == nil {
		return relayAsIs, nil
	}
	set := bytes.TrimSuffix(seg.Bytes[len("* VANISHED "):], []byte("\r\n"))
	if len(set) > 0 && set[0] == '(' {
		return relayAsIs, nil // EARLIER: nothing that the view has
	}
	if !seg.End {
		return s.desyncView(metrics.ExpungeRange, view.ErrRange) // longer than any line we hold
	}
	s.mailbox.uidsDeferred = false
	if _, err := s.mailbox.view.Vanish(set); err != nil {
		return s.desyncView(metrics.ExpungeRange, err)
	}
	return relayAsIs, nil
}

// classifyStatus decides about "* OK …" by its response code.
func (s *session) classifyStatus(line []byte) (disposition, error) {
	i := bytes.IndexByte(line, ' ')
	if i < 0 || i+1 >= len(line) || line[i+1] != '[' {
		return relayAsIs, nil
	}
	code := line[i+2:]
	switch {
	case imap.HasWordPrefix(code, "CAPABILITY"), imap.HasWordPrefix(code, "REFERRAL"):
		return discard, nil
	case imap.HasWordPrefix(code, "INPROGRESS") && bytes.Contains(code, []byte(s.upstream.TagPrefix())): // of a command of ours (RFC 9585)
		return discard, nil
	case s.mailbox == nil:
		return relayAsIs, nil
	case imap.HasWordPrefix(code, "UIDVALIDITY"):
		if n, _, ok := parseLeadingNumber(bytes.TrimLeft(code[len("UIDVALIDITY"):], " ")); ok && n != s.mailbox.uidValidity {
			return discard, &closeError{audit.MailboxChanged, byeChanged, nil}
		}
	case imap.HasWordPrefix(code, "UIDNOTSTICKY"):
		s.pinReason = audit.PinUIDNotSticky
	case imap.HasWordPrefix(code, "PERMANENTFLAGS"):
		s.mailbox.permanentFlags.set(line)
	case imap.HasWordPrefix(code, "READ-ONLY"), imap.HasWordPrefix(code, "READ-WRITE"):
		if word, _, ok := bytes.Cut(code, []byte("]")); ok {
			s.mailbox.access = strings.ToUpper(string(word))
		}
	}
	return relayAsIs, nil
}

// parseLeadingNumber reads "n " off b.
func parseLeadingNumber(b []byte) (n uint32, rest []byte, ok bool) {
	i := 0
	for ; i < len(b) && b[i] >= '0' && b[i] <= '9'; i++ {
		if n > (1<<32-1-9)/10 {
			return 0, nil, false
		}
		n = n*10 + uint32(b[i]-'0')
	}
	if i == 0 || i == len(b) {
		return 0, nil, false
	}
	if b[i] == ' ' {
		return n, b[i+1:], true
	}
	return n, b[i:], true
}

// findUID finds "UID u" in "FETCH (…", before any string and outside of lists: a
// keyword may be called UID.
func findUID(line []byte) (uint32, bool) {
	depth := 0
	for i, c := range line {
		switch {
		case c == '"', c == '{':
			return 0, false
		case c == '(':
			depth++
		case c == ')':
			depth--
		case depth == 1 && c == 'U' && (line[i-1] == ' ' || line[i-1] == '(') && imap.HasWordPrefix(line[i:], "UID"):
			uid, _, ok := parseLeadingNumber(line[min(i+len("UID "), len(line)):])
			return uid, ok
		}
	}
	return 0, false
}

// reportStrayAnswer is an answer to no command: whatever it answers, it is not for this client.
func (s *session) reportStrayAnswer() error {
	return s.reportViolation(metrics.TagUnknown, fmt.Errorf("%w: an answer to nothing", errProtocol))
}

// reportViolation counts a promise the backend has broken, and is the loss of the
// connection on which it did.
func (s *session) reportViolation(violation string, err error) error {
	s.countViolation(violation)
	return s.wrapUpstreamError(fmt.Errorf("%w: %w", errProtocol, err))
}

// countViolation counts a promise that the backend has broken to the session's user. On a
// connection that was sent what the backend may have taken for commands, or may have
// repeated in an answer, it is the client that may have broken it.
func (s *session) countViolation(violation string) {
	s.backend.recordViolation(violation, s.account.User(), !s.tainted && !s.violationCounted)
	s.violationCounted = s.violationCounted || !s.tainted
}
