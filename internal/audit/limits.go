package audit

import (
	"time"

	"go.uber.org/zap"

	"imapgate/internal/event"
)

// LimitHit is one effect of a limit.
type LimitHit struct {
	Limit   event.Limit
	Subject string // a user, an address, a network, or a backend
	Result  event.Result
}

// Ban is a ban that is added or removed.
type Ban struct {
	Subject  string // an address or a network
	Reason   event.BanReason
	Until    time.Time // zero: permanent, or already over
	Operator string    // "" for the gateway itself
	Note     string    // the operator's remark
}

// Spray is a suspicion that a few passwords are being tried for many users.
type Spray struct {
	Users     int    // number of users tried
	Addresses int    // number of source addresses; 0 is left out
	Subject   string // the source network, if there is only one
	Window    time.Duration
}

// LimitHit records that a limit affected a client. In a flood there is one record a
// minute for each limit and subject, which counts the hits. The ordinary log has a
// line for each record.
func (l *Log) LimitHit(c *Client, h *LimitHit) error {
	count := l.limitHits.add(limitHitKey{h.Limit, h.Result, h.Subject}, time.Now())
	if count == 0 {
		return nil
	}
	return l.writeLimitHit(c, h, count)
}

func (l *Log) writeLimitHit(c *Client, h *LimitHit, count uint64) error {
	result, limit := event.OrOther(h.Result), event.OrOther(h.Limit)
	fields := []zap.Field{
		zap.String("limit", limit), zap.String("subject", h.Subject), zap.String("result", result), zap.Uint64("count", count),
	}
	if c.Session != "" {
		fields = append(fields, zap.String("session", c.Session), zap.String("listener", c.Listener), zap.Stringer("address", c.effectiveAddr()))
	}
	l.log.Info("limit hit", fields...)
	return l.appendRecord(recordMeta{event.LimitHit, result}, func(b []byte) []byte {
		b = appendText(c.appendTo(b), "limit", limit, maxNameBytes)
		b = appendText(b, "subject", h.Subject, maxUserBytes)
		b = appendText(b, "result", result, maxNameBytes)
		return appendCount(b, "count", count)
	})
}

// BanAdded records a ban.
func (l *Log) BanAdded(ban *Ban) error { return l.writeBan(event.BanAdded, ban) }

// BanRemoved records that a ban was removed before its end.
func (l *Log) BanRemoved(ban *Ban) error { return l.writeBan(event.BanRemoved, ban) }

func (l *Log) writeBan(e event.Event, ban *Ban) error {
	reason := event.OrOther(ban.Reason)
	return l.appendRecord(recordMeta{event: e}, func(b []byte) []byte {
		b = appendText(b, "subject", ban.Subject, maxUserBytes)
		b = appendText(b, "reason", reason, maxNameBytes)
		b = appendTime(b, "until", ban.Until)
		b = appendText(b, "by", ban.Operator, maxNameBytes)
		return appendText(b, "detail", ban.Note, maxTextBytes)
	})
}

// SpraySuspected records the suspicion that a few passwords are being tried for many
// users.
func (l *Log) SpraySuspected(s *Spray) error {
	return l.appendRecord(recordMeta{event: event.SpraySuspected}, func(b []byte) []byte {
		b = appendText(b, "subject", s.Subject, maxUserBytes)
		b = appendCount(b, "users", uint64(max(s.Users, 0)))
		b = appendNonZero(b, "addresses", uint64(max(s.Addresses, 0)))
		return appendNonZero(b, "window_ms", milliseconds(s.Window))
	})
}
