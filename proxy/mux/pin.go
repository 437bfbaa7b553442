package mux

import (
	"imapgate/internal/audit"
	"imapgate/internal/event"
	"imapgate/proxy/splice"
)

// pin hands over a session with connection state that no other connection can be given.
// All commands are answered first. unread goes to the backend next.
func (s *session) pin(unread []byte) error {
	if err := s.awaitReplies(); err != nil {
		return err
	}
	if !s.isInSync() {
		if err := s.attachWithin(attachOptions{withoutMailbox: true}, s.backend.settings.CommandHoldTimeout); err != nil {
			return &closeError{event.UpstreamUnavailable, byeUnavailable, err}
		}
	}
	return s.handOver(s.pinReason, unread)
}

// handOver hands the session over to package splice and returns errHandedOver. unread is
// the client's input that the backend has not received.
func (s *session) handOver(reason event.PinReason, unread []byte) error {
	h := s.hub
	rec := audit.MuxEvent{User: s.account.User(), Backend: s.backend.name}
	if s.mailbox != nil {
		rec.Mailbox = s.mailbox.name
	}
	_ = h.deps.Audit.SessionPinned(s.auditClient, &rec, reason) // if the log is full, it is counted as lost
	h.deps.Metrics.Mux.CountPin(reason)
	s.abortRecords() // the answers bypass this package
	s.commandLog = nil
	conn := s.unbindUpstream()
	h.poller.Disarm(&s.client.ParkWaiter)
	client, fromClient := s.client.Detach()
	backend, fromBackend := conn.Detach()
	s.unregister()
	s.setStateMetric(event.StatePinned)
	unread = append(unread, fromClient...)
	s.live.Detach(len(unread))
	throttleClient, throttleBackend := s.readThrottles()
	h.deps.Splices.Start(s.live, splice.Side{Conn: client, Buffered: fromBackend, Throttle: throttleClient}, splice.Side{Conn: backend, Buffered: unread, Throttle: throttleBackend}, func() {
		s.account.Discard(conn, event.DiscardPinned)
		s.account.Close()
		s.setStateMetric("")
	})
	return errHandedOver
}
