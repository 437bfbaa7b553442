package mux

import (
	"imapgate/internal/audit"
	"imapgate/internal/metrics"
)

// pin hands over a session whose connection has a state that no other can be
// given. Nothing is left unanswered; first is what the backend hears next.
func (s *session) pin(unread []byte) error {
	if err := s.awaitReplies(); err != nil {
		return err
	}
	if !s.isInSync() {
		if err := s.attachWithin(attachOptions{withoutMailbox: true}, s.backend.settings.CommandHoldTimeout); err != nil {
			return &closeError{audit.UpstreamAway, byeUnavailable, err}
		}
	}
	return s.handOver(s.pinReason, unread)
}

// handOver makes the session one whose bytes are spliced: errHandedOver. first is
// what the client has said last and the backend has not heard yet.
func (s *session) handOver(reason audit.Why, unread []byte) error {
	h := s.hub
	rec := audit.MuxEvent{User: s.account.User(), Backend: s.backend.name, Reason: reason}
	if s.mailbox != nil {
		rec.Mailbox = s.mailbox.name
	}
	_ = h.deps.Audit.SessionPinned(s.auditClient, &rec) // without room it is counted as lost
	h.deps.Metrics.Mux.CountPin(string(reason))
	s.abortRecords() // nobody sees the answers
	s.commandLog = nil
	expiresAt := h.expiryOf(s)
	conn := s.unbindUpstream()
	h.poller.Disarm(&s.client.ParkWaiter)
	client, fromClient := s.client.Detach()
	backend, fromBackend := conn.Detach()
	s.unregister()
	s.setStateMetric(metrics.Pinned)
	in, out := s.client.ByteCounts()
	in -= int64(len(unread) + len(fromClient))
	throttleClient, throttleBackend := s.readThrottles()
	h.cfg.Splice(SpliceSide{client, fromBackend, throttleClient}, SpliceSide{backend, append(unread, fromClient...), throttleBackend}, expiresAt, func(r Result) {
		s.account.Discard(conn, metrics.DiscardPinned)
		s.account.Close()
		s.setStateMetric("")
		r.BytesIn, r.BytesOut, r.Commands = r.BytesIn+in, r.BytesOut+out, uint64(s.commandCount)
		s.onEnd(r)
	})
	return errHandedOver
}
