package audit

import (
	"time"

	"go.uber.org/zap"

	"imapgate/internal/event"
)

// OperatorAction is a command of an operator to the gateway.
type OperatorAction struct {
	Action   event.Action
	Operator string // a name, an address, or "signal"
	Subject  string // a user, an address, or a network
	Err      error  // why it was refused
}

// GatewayStarted records that a gateway began to serve.
func (l *Log) GatewayStarted(version string) error {
	return l.appendRecord(event.Started, "", func(b []byte) []byte {
		return appendText(b, "version", version, maxNameBytes)
	})
}

// GatewayStopped records that a gateway shut down cleanly, and why.
func (l *Log) GatewayStopped(reason event.Reason) error {
	return l.appendRecord(event.Stopped, "", func(b []byte) []byte {
		return appendReason(b, reason)
	})
}

// ConfigReloaded records a reload: reread names the reloaded files, and err reports
// those that were not read, or were read but are not used.
func (l *Log) ConfigReloaded(reread string, err error) error {
	e := event.ConfigReloaded
	if err != nil {
		e = event.ConfigRejected
	}
	result, detail := resultOf(err)
	return l.appendRecord(e, result, func(b []byte) []byte {
		b = appendText(b, "result", result, maxNameBytes)
		b = appendText(b, "reread", reread, maxTextBytes)
		return appendText(b, "detail", detail, maxTextBytes)
	})
}

// AddressState is a change of the state of a backend's address.
type AddressState struct {
	Backend, Address string
	State, Old       event.AddressState
	Why              string // "" for an address that is up
}

// AddressState records that an address is used otherwise than before.
func (l *Log) AddressState(a *AddressState) error {
	return l.appendRecord(event.AddressChanged, "", func(b []byte) []byte {
		b = appendText(b, "backend", a.Backend, maxNameBytes)
		b = appendText(b, "address", a.Address, maxTextBytes)
		b = appendText(b, "state", event.OrOther(a.State), maxNameBytes)
		b = appendText(b, "was", event.OrOther(a.Old), maxNameBytes)
		return appendText(b, "detail", a.Why, maxTextBytes)
	})
}

// OperatorAction records a command of an operator.
func (l *Log) OperatorAction(a *OperatorAction) error {
	result, detail := resultOf(a.Err)
	action := event.OrOther(a.Action)
	return l.appendRecord(event.OperatorAction, result, func(b []byte) []byte {
		b = appendText(b, "action", action, maxNameBytes)
		b = appendText(b, "by", a.Operator, maxNameBytes)
		b = appendText(b, "subject", a.Subject, maxUserBytes)
		b = appendText(b, "result", result, maxNameBytes)
		return appendText(b, "detail", detail, maxTextBytes)
	})
}

// resultOf returns the fields result and detail for an error.
func resultOf(err error) (result, detail string) {
	if err == nil {
		return string(event.ResultAccepted), ""
	}
	return string(event.ResultRefused), err.Error()
}

// appendTime appends a time, or nothing for the zero time.
func appendTime(b []byte, key string, t time.Time) []byte {
	if t.IsZero() {
		return b
	}
	b = append(appendKey(b, key), '"')
	b = t.UTC().AppendFormat(b, timeLayout)
	return append(b, '"')
}

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
	if l.limitHits.add(*h, LimitHit{Limit: h.Limit, Result: h.Result}, time.Now(), (*count[struct{}]).foldAfterFirst) {
		return l.writeLimitHit(c, h, 1)
	}
	return nil
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
	return l.appendRecord(event.LimitHit, result, func(b []byte) []byte {
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
	return l.appendRecord(e, "", func(b []byte) []byte {
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
	return l.appendRecord(event.SpraySuspected, "", func(b []byte) []byte {
		b = appendText(b, "subject", s.Subject, maxUserBytes)
		b = appendCount(b, "users", uint64(max(s.Users, 0)))
		b = appendNonZero(b, "addresses", uint64(max(s.Addresses, 0)))
		return appendNonZero(b, "window_ms", milliseconds(s.Window))
	})
}

// RouteStore is a Redis that has lost route records, or has them again.
type RouteStore struct {
	Node     string // address of the node; "" if there is only one
	Present  int    // number of checked records that are present
	Missing  int
	Operator string // the operator who confirmed the loss
}

// RoutesEmptied records that most of the known route records are missing from Redis.
// From then on no user is treated as unknown.
func (l *Log) RoutesEmptied(s *RouteStore) error {
	return l.appendRecord(event.RoutesEmptied, "", s.appendTo)
}

// RoutesRestored records that the records are back, or that an operator confirmed
// their loss.
func (l *Log) RoutesRestored(s *RouteStore) error {
	return l.appendRecord(event.RoutesRestored, "", func(b []byte) []byte {
		return appendText(s.appendTo(b), "by", s.Operator, maxNameBytes)
	})
}

func (r *RouteStore) appendTo(b []byte) []byte {
	b = appendText(b, "subject", r.Node, maxUserBytes)
	b = appendCount(b, "present", uint64(max(r.Present, 0)))
	return appendCount(b, "missing", uint64(max(r.Missing, 0)))
}
