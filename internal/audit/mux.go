package audit

import (
	"time"

	"imapgate/internal/event"
	"imapgate/internal/identity"
)

// MuxEvent is an event of a session that may outlive its upstream.
type MuxEvent struct {
	User     identity.User
	Backend  string
	Mailbox  string // the selected mailbox; in the client's bytes
	Expunged uint32 // by a reattach: expunged messages that the client did not know of
	Arrived  uint32 // by a reattach: new messages that the client did not know of
	Duration time.Duration
}

// SessionReattached records that a session was reattached, or that reattaching
// failed.
func (l *Log) SessionReattached(c *Client, m *MuxEvent, reason event.ReattachReason, result event.Result) error {
	text := event.OrOther(result)
	return l.appendRecord(recordMeta{event.SessionAttached, text}, func(b []byte) []byte {
		b = appendText(m.appendTo(c.appendTo(b), event.OrOther(reason)), "result", text, maxNameBytes)
		b = appendCount(b, "expunged", uint64(m.Expunged))
		b = appendCount(b, "arrived", uint64(m.Arrived))
		return appendDuration(b, m.Duration)
	})
}

// UpstreamLost records that a session lost its upstream and continues. Duration is
// the time it was attached.
func (l *Log) UpstreamLost(c *Client, m *MuxEvent, reason event.LossReason) error {
	return l.appendRecord(recordMeta{event: event.UpstreamLostEvent}, func(b []byte) []byte {
		return appendDuration(m.appendTo(c.appendTo(b), event.OrOther(reason)), m.Duration)
	})
}

// SessionPinned records that a session will end with its upstream, and why.
func (l *Log) SessionPinned(c *Client, m *MuxEvent, reason event.PinReason) error {
	return l.appendRecord(recordMeta{event: event.SessionPinned}, func(b []byte) []byte {
		return m.appendTo(c.appendTo(b), event.OrOther(reason))
	})
}

func (m *MuxEvent) appendTo(b []byte, reason string) []byte {
	b = appendText(b, "user", m.User.String(), maxUserBytes)
	b = appendText(b, "backend", m.Backend, maxNameBytes)
	b = appendText(b, "mailbox", m.Mailbox, maxTextBytes)
	return appendText(b, "reason", reason, maxNameBytes)
}
