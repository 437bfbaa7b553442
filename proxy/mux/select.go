package mux

import (
	"bytes"
	"errors"
	"time"

	"imapgate/internal/event"
	"imapgate/internal/imap"
	"imapgate/proxy/mux/lease"
	"imapgate/proxy/mux/mailbox"
)

// maxBufferedSelect bounds the part of the answer to SELECT that is held back. While it
// is held back, SELECT can be repeated elsewhere without the client seeing two different
// answers.
const maxBufferedSelect = 256 << 10

// selectMailbox executes SELECT and EXAMINE. Whatever the answer, the previous mailbox is
// left (RFC 9051 §6.3.2), along with its pending expunges.
func (s *session) selectMailbox(r *request) error {
	tries := 0
	err := s.retryTransient(s.backend.settings.CommandHoldTimeout, func(h *holdTimer) error {
		if tries++; tries > 1 {
			s.hub.deps.Metrics.Mux.CountRetry(r.spec.Name)
		}
		err := s.selectOnce(r, s.tryDeadline())
		lost, ok := asLost(err)
		if ok && (s.responsePartial || s.attached) { // the answer has begun
			return s.onUpstreamLost(lost)
		}
		if ok {
			s.dropUpstream(lost)
		}
		if ok && tries == 1 {
			h.startedAt = time.Now() // until now the backend was up
		}
		return err
	})
	if !isTransient(err) && !isLost(err) {
		return err
	}
	s.mailbox = nil
	s.updateStateMetric()
	return s.replyTagged("NO [UNAVAILABLE] Mail store is temporarily unavailable.")
}

// selectOnce executes SELECT on one connection.
func (s *session) selectOnce(r *request, deadline time.Time) error {
	if s.upstream == nil {
		if err := s.acquireLease(deadline); err != nil {
			return err
		}
	}
	closedCode := ""
	if caps := s.upstream.Caps(); s.mailbox != nil && !s.upstream.Selected && (caps.Has(imap.Qresync) || caps.Has(imap.Rev2)) {
		closedCode = "* OK [CLOSED] Previous mailbox closed.\r\n" // RFC 7162 §3.2.11: this connection has none to close
	}
	s.avoidTagPrefix(r.tag)
	s.enableCondstore(r)
	s.upstream.Enabled = s.enabled
	s.hadMailbox = s.upstream.Selected
	s.attached = false         // to the previous mailbox, so that a loss counts as one before the answer
	s.upstream.Selected = true // even after a NO the pool must assume a selected mailbox
	s.outstanding.add(outstandingCommand{spec: r.spec, tagLen: len(r.tag), retryable: true, selectsMailbox: true, upstreamDropped: r.upstreamDropped}, r.raw)
	r.unsent = nil
	err := s.sendCommand(r.raw)
	switch {
	case s.outstanding.isEmpty(): // a literal was refused, and a loss may follow the answer
		return s.recoverLoss(err)
	case err == nil:
		err = s.readSelectReply(r, []byte(closedCode))
	}
	if err != nil {
		s.outstanding.clear()
	}
	return err
}

// readSelectReply reads the answer to SELECT and relays it in one piece.
func (s *session) readSelectReply(r *request, buffered []byte) error {
	var data mailbox.SelectData
	left := 1 << 30 // a QRESYNC client may receive large responses
	for s.upstream.Buffered() == 0 {
		if err := s.readReply(); err != nil {
			return err
		}
	}
	for {
		response, err := s.upstream.ReadResponse(&left)
		if errors.Is(err, lease.ErrProtocol) {
			return s.writeUnparsableSelect(append(buffered, response...), err)
		}
		if err != nil {
			return s.wrapUpstreamError(err)
		}
		if bytes.HasPrefix(response, []byte("* ")) {
			if err := s.readSelectUntagged(response, &data); err != nil {
				return err
			}
			if !isGatewayOnly(response[2:]) {
				buffered = append(buffered, response...)
			}
			if len(buffered) > maxBufferedSelect {
				if err := s.writePartialSelect(buffered); err != nil {
					return err
				}
				buffered = buffered[:0]
			}
			continue
		}
		_, matched := s.outstanding.takeAnswered(response)
		if !matched && s.upstream.IsDoneRejection(response) {
			continue
		}
		if !matched && isTaggedResponse(response) {
			return s.reportStrayAnswer()
		}
		res, err := imap.ParseResponse(bytes.TrimSuffix(response, []byte("\r\n")))
		if !matched || err != nil {
			return s.writeUnparsableSelect(append(buffered, response...), errNotResponse)
		}
		s.upstream.ClearDone()
		s.finishRecord(response)
		s.applySelect(r, &data, res)
		if s.stripCode(response) == replace {
			response = s.outBuf
		}
		if s.enabled.Has(imap.Qresync) && s.backend.settings.UIDPrefetch == PrefetchEager {
			return s.flushAfterUIDs(buffered, response)
		}
		s.responsePartial = false
		_, err = s.client.Write(append(buffered, response...))
		return s.wrapClientError(err)
	}
}

// isGatewayOnly reports whether an untagged response is for the gateway alone:
// capabilities and referrals.
func isGatewayOnly(line []byte) bool {
	if imap.HasWordPrefix(line, "CAPABILITY") {
		return true
	}
	i := bytes.Index(line, []byte(" ["))
	return i >= 0 && (imap.HasWordPrefix(line, "OK") || imap.HasWordPrefix(line, "NO")) && i == 2 &&
		(imap.HasWordPrefix(line[4:], "CAPABILITY") || imap.HasWordPrefix(line[4:], "REFERRAL"))
}

// writePartialSelect sends the client a part of the answer. From here on SELECT cannot be
// repeated.
func (s *session) writePartialSelect(buffered []byte) error {
	s.responsePartial = true
	_, err := s.client.Write(buffered)
	return s.wrapClientError(err)
}

// writeUnparsableSelect relays an unparsable response and everything held back before it.
func (s *session) writeUnparsableSelect(buffered []byte, err error) error {
	s.countUnparsable()
	return errors.Join(s.writePartialSelect(buffered), &unparsableError{err: err}) // the selection, whatever it is, belongs to the client
}

// readSelectUntagged reads one untagged response to SELECT.
func (s *session) readSelectUntagged(response []byte, data *mailbox.SelectData) error {
	if imap.HasWordPrefix(response[2:], "BYE") {
		return s.byeError(response)
	}
	data.ReadUntagged(response)
	data.Fetches = nil // relayed to the client directly
	return nil
}

// applySelect updates the session after the answer to SELECT.
func (s *session) applySelect(r *request, data *mailbox.SelectData, res imap.Response) {
	s.retries = 0
	s.mailbox, s.attached = nil, false
	switch res.Name {
	case "OK":
		data.ReadTagged(res)
		s.mailbox = mailbox.New(r.spec.Name, r.facts.Mailbox, data)
		s.mailbox.SelectedAt = s.hub.uptime()
		s.attached = true
		if data.UIDNotSticky {
			s.pinReason = event.PinUIDNotSticky
		}
		if r.facts.Pins {
			s.pinReason = event.PinAnnotate
		}
		s.updateStateMetric()
	default:
		s.applyUnselected([]byte(res.Name))
	}
}

// applyUnselected updates the session after an answer, without its tag, that selects no
// mailbox.
func (s *session) applyUnselected(answer []byte) {
	s.mailbox, s.attached = nil, false
	if imap.HasWordPrefix(answer, "NO") {
		s.upstream.Selected = s.hadMailbox // some backends keep the previous mailbox
	} else { // the selection is unknown
		s.pinReason = event.PinSelectBad
	}
	s.updateStateMetric()
}

// closeMailbox executes CLOSE and UNSELECT. If the mailbox is not attached and nothing
// would be expunged, it answers without a backend.
func (s *session) closeMailbox(r *request) error {
	if err := s.relayPending(); err != nil {
		return err
	}
	if s.mailbox == nil {
		return s.forwardCommand(r)
	}
	if !s.attached && (r.spec.Name == "UNSELECT" || s.mailbox.IsReadOnly()) {
		s.mailbox = nil
		s.updateStateMetric()
		return s.replyTagged("OK " + r.spec.Name + " completed.")
	}
	unsynced := !s.isInSync() // the view need not be synchronized: it is about to be dropped
	if unsynced {
		if err := s.attach(r); err != nil {
			return s.answerUnattached(err)
		}
	}
	s.outstanding.add(outstandingCommand{spec: r.spec, tagLen: len(r.tag), retryable: r.facts.Retryable, closesMailbox: true}, r.raw)
	previous := s.mailbox
	if unsynced {
		s.mailbox = nil // responses do not apply to the client's view
	}
	r.unsent = nil
	err := s.sendCommand(r.raw)
	if err == nil {
		err = s.readReplies()
	}
	if unsynced && s.upstream != nil && s.upstream.Selected { // refused
		s.mailbox = previous
		if err == nil {
			s.returnUpstream()
		}
	}
	return err
}

// applyClose updates the session after an OK to CLOSE or UNSELECT.
func (s *session) applyClose() {
	s.mailbox, s.attached = nil, false
	s.upstream.Selected = false
	s.updateStateMetric()
}
