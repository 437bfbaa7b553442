package mux

import (
	"bytes"
	"errors"
	"time"

	"imapgate/internal/event"
	"imapgate/internal/imap"
	"imapgate/proxy/relay/mux/lease"
	"imapgate/proxy/relay/mux/mailbox"
)

// maxBufferedSelect bounds the part of the answer to SELECT that is held back. While it
// is held back, SELECT can be repeated elsewhere without the client seeing two different
// answers.
const maxBufferedSelect = 256 << 10

// selectMailbox executes SELECT and EXAMINE. Whatever the answer, the previous mailbox is
// left (RFC 9051 §6.3.2), along with its pending expunges.
func (s *session) selectMailbox(r *request) error {
	tries := 0
	err := s.retryTransient(s.upstream.backend.settings.CommandHoldTimeout, func(h *holdTimer) error {
		if tries++; tries > 1 {
			s.hub.deps.Metrics.Mux.CountRetry(r.spec.Name)
		}
		err := s.selectOnce(r, s.upstream.tryDeadline())
		lost, ok := asLost(err)
		if ok && (s.client.responsePartial || s.upstream.attached) { // the answer has begun
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
	return s.client.replyTagged("NO [UNAVAILABLE] Mail store is temporarily unavailable.")
}

func (s *session) selectOnce(r *request, deadline time.Time) error {
	if s.upstream.Conn == nil {
		if err := s.acquireLease(deadline); err != nil {
			return err
		}
		if err := s.client.forwardResponses(s.upstream.TakeAlerts()); err != nil {
			return err
		}
	}
	closedCode := ""
	if caps := s.upstream.Caps(); s.mailbox != nil && !s.upstream.Selected && (caps.Has(imap.Qresync) || caps.Has(imap.Rev2)) {
		closedCode = "* OK [CLOSED] Previous mailbox closed.\r\n" // RFC 7162 §3.2.11: this connection has none to close
	}
	s.upstream.avoidTagPrefix(r.tag)
	s.enableCondstore(r)
	s.upstream.Enabled = s.client.enabled
	s.upstream.hadMailbox = s.upstream.Selected
	s.upstream.attached = false // to the previous mailbox, so that a loss counts as one before the answer
	s.upstream.Selected = true  // even after a NO the pool must assume a selected mailbox
	s.upstream.outstanding.add(outstandingCommand{spec: r.spec, tagLen: len(r.tag), retryable: true, selectsMailbox: true, upstreamDropped: r.upstreamDropped}, r.raw)
	r.unsent = nil
	err := s.sendCommand(r.raw)
	switch {
	case s.upstream.outstanding.isEmpty(): // a literal was refused, and a loss may follow the answer
		return s.recoverLoss(err)
	case err == nil:
		err = s.readSelectReply(r, []byte(closedCode))
	}
	if err != nil {
		s.upstream.outstanding.clear()
	}
	return err
}

// readSelectReply reads the answer to SELECT and relays it in one piece.
func (x *exchange) readSelectReply(r *request, buffered []byte) error {
	var data mailbox.SelectData
	left := 1 << 30 // a QRESYNC client may receive large responses
	for x.upstream.Buffered() == 0 {
		if err := x.readReply(); err != nil {
			return err
		}
	}
	for {
		response, err := x.upstream.ReadResponse(&left)
		if errors.Is(err, lease.ErrProtocol) {
			return x.writeUnparsableSelect(append(buffered, response...), err)
		}
		if err != nil {
			return wrapLost(err)
		}
		if bytes.HasPrefix(response, []byte("* ")) {
			if err := readSelectUntagged(response, &data); err != nil {
				return err
			}
			if !x.upstream.isGatewayOnly(response[2:]) {
				buffered = append(buffered, response...)
			}
			if len(buffered) > maxBufferedSelect {
				if err := x.client.writePartialSelect(buffered); err != nil {
					return err
				}
				buffered = buffered[:0]
			}
			continue
		}
		_, matched := x.upstream.outstanding.takeAnswered(response)
		if !matched && x.upstream.IsDoneRejection(response) {
			continue
		}
		if !matched && isTaggedResponse(response) {
			return x.upstream.reportStrayAnswer()
		}
		res, err := imap.ParseResponse(bytes.TrimSuffix(response, []byte("\r\n")))
		if !matched || err != nil {
			return x.writeUnparsableSelect(append(buffered, response...), errNotResponse)
		}
		x.upstream.ClearDone()
		x.client.records.finish(response)
		x.applySelect(r, &data, res)
		if x.client.stripCode(response) == replace {
			response = x.client.outBuf
		}
		if x.client.enabled.Has(imap.Qresync) && x.upstream.backend.settings.UIDPrefetch == PrefetchEager {
			return x.flushAfterUIDs(buffered, response)
		}
		x.client.responsePartial = false
		return x.client.send(append(buffered, response...))
	}
}

// isGatewayOnly reports whether an untagged response is for the gateway alone:
// capabilities and referrals.
func (u *upstreamSide) isGatewayOnly(line []byte) bool {
	return imap.HasWordPrefix(line, "CAPABILITY") || (imap.HasWordPrefix(line, "OK") || imap.HasWordPrefix(line, "NO")) && u.isGatewayStatus(line)
}

// writePartialSelect sends the client a part of the answer. From here on SELECT cannot be
// repeated.
func (c *clientSide) writePartialSelect(buffered []byte) error {
	c.responsePartial = true
	return c.send(buffered)
}

// writeUnparsableSelect relays an unparsable response and everything held back before it.
func (x *exchange) writeUnparsableSelect(buffered []byte, err error) error {
	x.upstream.countUnparsable()
	return errors.Join(x.client.writePartialSelect(buffered), &unparsableError{err: err}) // the selection, whatever it is, belongs to the client
}

func readSelectUntagged(response []byte, data *mailbox.SelectData) error {
	if imap.HasWordPrefix(response[2:], "BYE") {
		return byeError(response)
	}
	data.ReadUntagged(response)
	data.Fetches = nil // relayed to the client directly
	return nil
}

// applySelect updates the session after the answer to SELECT.
func (x *exchange) applySelect(r *request, data *mailbox.SelectData, res imap.Response) {
	x.upstream.retries = 0
	x.mailbox, x.upstream.attached = nil, false
	switch res.Name {
	case "OK":
		data.ReadTagged(res)
		x.mailbox = mailbox.New(r.spec.Name, r.facts.Mailbox, data)
		x.mailbox.SelectedAt = x.hub.uptime()
		x.upstream.attached = true
		if data.UIDNotSticky {
			x.upstream.pinReason = event.PinUIDNotSticky
		}
		if r.facts.Pins {
			x.upstream.pinReason = event.PinAnnotate
		}
		x.updateStateMetric()
	default:
		x.applyUnselected([]byte(res.Name))
	}
}

// applyUnselected updates the session after an answer, without its tag, that selects no
// mailbox.
func (x *exchange) applyUnselected(answer []byte) {
	x.mailbox, x.upstream.attached = nil, false
	if imap.HasWordPrefix(answer, "NO") {
		x.upstream.Selected = x.upstream.hadMailbox // some backends keep the previous mailbox
	} else { // the selection is unknown
		x.upstream.pinReason = event.PinSelectBad
	}
	x.updateStateMetric()
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
	if !s.upstream.attached && (r.spec.Name == "UNSELECT" || s.mailbox.IsReadOnly()) {
		s.mailbox = nil
		s.updateStateMetric()
		return s.client.replyTagged("OK " + r.spec.Name + " completed.")
	}
	unsynced := !s.isInSync() // the view need not be synchronized: it is about to be dropped
	if unsynced {
		if err := s.attach(r.attachOptions()); err != nil {
			return s.answerUnattached(err)
		}
	}
	s.upstream.outstanding.add(outstandingCommand{spec: r.spec, tagLen: len(r.tag), retryable: r.facts.Retryable, closesMailbox: true}, r.raw)
	previous := s.mailbox
	if unsynced {
		s.mailbox = nil // responses do not apply to the client's view
	}
	r.unsent = nil
	err := s.sendCommand(r.raw)
	if err == nil {
		err = s.readReplies()
	}
	if unsynced && s.upstream.Conn != nil && s.upstream.Selected { // refused
		s.mailbox = previous
		if err == nil {
			s.returnUpstream()
		}
	}
	return err
}
