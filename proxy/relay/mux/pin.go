package mux

import (
	"errors"

	"imapgate/internal/audit"
	"imapgate/internal/event"
	"imapgate/proxy/relay"
	"imapgate/proxy/relay/splice"
)

// pin hands over a session with connection state that no other connection can be given.
// All commands are answered first. unread goes to the backend next.
func (s *session) pin(unread []byte) error {
	if err := s.awaitReplies(); err != nil {
		return err
	}
	if !s.isInSync() {
		err := s.attach(attachOptions{withoutMailbox: true})
		if _, isEnd := errors.AsType[*relay.CloseError](err); isEnd {
			return err
		}
		if err != nil {
			return &relay.CloseError{Reason: event.UpstreamUnavailable, Bye: byeUnavailable, Err: err}
		}
	}
	return s.handOver(s.upstream.pinReason, unread)
}

// handOver hands the session over to package splice and returns errHandedOver. unread is
// the client's input that the backend has not received. A session that must leave its
// connection, or take none, ends instead.
func (s *session) handOver(reason event.PinReason, unread []byte) error {
	if s.live.IsLeaving() || s.live.Paused() != nil {
		return &relay.CloseError{Reason: event.Moved, Bye: byeMoved}
	}
	h := s.hub
	rec := audit.MuxEvent{User: s.upstream.account.User(), Backend: s.upstream.backend.name}
	if s.mailbox != nil {
		rec.Mailbox = s.mailbox.Name()
	}
	_ = h.deps.Audit.SessionPinned(s.client.audit, &rec, reason) // if the log is full, it is counted as lost
	h.deps.Metrics.Mux.CountPin(reason)
	s.client.abortRecords(s.mailbox) // the answers bypass this package
	s.client.records.log = nil
	conn := s.unbindUpstream()
	h.poller.Disarm(&s.client.ParkWaiter)
	client, fromClient := s.client.Detach()
	backend, fromBackend := conn.Detach()
	s.unregister()
	s.setStateMetric(event.StatePinned)
	unread = append(unread, fromClient...)
	s.live.Detach(len(unread))
	throttleClient, throttleBackend := s.client.readThrottles()
	account := s.upstream.account // all that is kept of the session
	h.deps.Splices.Start(s.live, splice.Side{Conn: client, SendFirst: fromBackend, Throttle: throttleClient}, splice.Side{Conn: backend, SendFirst: unread, Throttle: throttleBackend}, func() {
		account.Discard(conn, event.DiscardPinned)
		account.Close()
		h.deps.Metrics.Mux.ChangeState(event.StatePinned, "")
	})
	return errHandedOver
}
