package audit

import (
	"time"

	"go.uber.org/zap"
)

// Limit names a limit. Other values than the constants below are recorded as other.
type Limit string

// Limits of connections and failures, as in internal/limit, and of the load of
// sessions and backends.
const (
	LimitTotal       Limit = "total"                // sessions of all users
	LimitPreauth     Limit = "address_before_login" // unauthenticated connections of an address
	LimitPreauthNet  Limit = "network_before_login" // unauthenticated connections of a network
	LimitAddress     Limit = "address_connections"  // connections of an address
	LimitUser        Limit = "user_connections"     // sessions of a user
	LimitUserAddress Limit = "user_address"         // sessions of a user from one address
	LimitRate        Limit = "connection_rate"      // new connections of an address
	LimitFailures    Limit = "address_failures"     // wrong passwords from an address or its network
	LimitUserGuesses Limit = "user_failures"        // wrong passwords for a user
	LimitPairGuesses Limit = "pair_failures"        // wrong passwords for a user from one network
	LimitBanned      Limit = "banned"               // a ban; it has no number
	LimitCommands    Limit = "commands"             // of a user, per second
	LimitBytesIn     Limit = "bytes_in"             // from a user, per second
	LimitBytesOut    Limit = "bytes_out"            // to a user, per second
	LimitAppend      Limit = "append"               // bytes of APPEND of a user, per day
	LimitUpstream    Limit = "upstream_logins"      // concurrent logins at a backend
	LimitUpstreamNew Limit = "upstream_rate"        // new connections to a backend
)

// Measure is the effect of a limit. Other values than the constants below are
// recorded as other.
type Measure string

// Values of Measure.
const (
	Refused Measure = refused // refused a connection or login
	Delayed Measure = delayed // delayed a login
	Slowed  Measure = slowed  // throttles bytes or commands
)

// Cause is the reason of a ban. Other values than the constants below are recorded
// as other.
type Cause string

// Reasons to add or remove a ban.
const (
	CauseFailures  Cause = "failures"  // too many wrong passwords
	CauseNeighbors Cause = "neighbors" // too many banned networks within a larger one
	CauseMerged    Cause = "merged"    // too many bans to keep: a larger network replaces some of them
	CauseOperator  Cause = "operator"  // a command of an operator
)

// Constant tables: every Limit, Measure and Cause.
var (
	limits = map[Limit]bool{
		LimitTotal: true, LimitPreauth: true, LimitPreauthNet: true, LimitAddress: true, LimitUser: true, LimitUserAddress: true, LimitRate: true,
		LimitFailures: true, LimitUserGuesses: true, LimitPairGuesses: true, LimitBanned: true, LimitCommands: true,
		LimitBytesIn: true, LimitBytesOut: true, LimitAppend: true, LimitUpstream: true, LimitUpstreamNew: true,
	}
	measures = map[Measure]bool{Refused: true, Delayed: true, Slowed: true}
	causes   = map[Cause]bool{CauseFailures: true, CauseNeighbors: true, CauseMerged: true, CauseOperator: true}
)

// Known reports whether l is one of the constants.
func (l Limit) Known() bool { return limits[l] }

// Known reports whether m is one of the constants.
func (m Measure) Known() bool { return measures[m] }

// Known reports whether c is one of the constants.
func (c Cause) Known() bool { return causes[c] }

// LimitHit is one effect of a limit.
type LimitHit struct {
	Limit   Limit
	Subject string // a user, an address, a network, or a backend
	Result  Measure
}

// Ban is a ban that is added or removed.
type Ban struct {
	Subject  string // an address or a network
	Reason   Cause
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
	result, limit := string(h.Result), string(h.Limit)
	if !h.Result.Known() {
		result = other
	}
	if !h.Limit.Known() {
		limit = other
	}
	fields := []zap.Field{
		zap.String("limit", limit), zap.String("subject", h.Subject), zap.String("result", result), zap.Uint64("count", count),
	}
	if c.Session != "" {
		fields = append(fields, zap.String("session", c.Session), zap.String("listener", c.Listener), zap.Stringer("address", c.effectiveAddr()))
	}
	l.log.Info("limit hit", fields...)
	return l.appendRecord(recordMeta{eventType: limitHit, result: result}, func(b []byte) []byte {
		b = appendText(c.appendTo(b), "limit", limit, maxNameBytes)
		b = appendText(b, "subject", h.Subject, maxUserBytes)
		b = appendText(b, "result", result, maxNameBytes)
		return appendCount(b, "count", count)
	})
}

// BanAdded records a ban.
func (l *Log) BanAdded(ban *Ban) error { return l.writeBan(banAdded, ban) }

// BanRemoved records that a ban was removed before its end.
func (l *Log) BanRemoved(ban *Ban) error { return l.writeBan(banRemoved, ban) }

func (l *Log) writeBan(t eventType, ban *Ban) error {
	reason := string(ban.Reason)
	if !ban.Reason.Known() {
		reason = other
	}
	return l.appendRecord(recordMeta{eventType: t, priority: priorityNormal}, func(b []byte) []byte {
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
	return l.appendRecord(recordMeta{eventType: spraySuspected, priority: priorityNormal}, func(b []byte) []byte {
		b = appendText(b, "subject", s.Subject, maxUserBytes)
		b = appendCount(b, "users", uint64(max(s.Users, 0)))
		b = appendNonZero(b, "addresses", uint64(max(s.Addresses, 0)))
		return appendNonZero(b, "window_ms", milliseconds(s.Window))
	})
}
