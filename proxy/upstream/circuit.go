package upstream

import (
	"slices"
	"time"

	"imapgate/internal/identity"
)

// BreakerSettings are when logins pass an address over because logins there fail.
type BreakerSettings struct {
	Failures int           `yaml:"failures" default:"5" min:"1" max:"1000" reload:"new" doc:"So many failed logins in a row, within the time below, and the address is passed over while there is another one. Only the address's own failures count: no connection, no TLS, no answer, or one that violates the protocol. Those after the password was sent count once for each user."`
	Within   time.Duration `yaml:"within" default:"10s" min:"1s" max:"1h" reload:"new" doc:"The time in which they must happen."`
	Hold     time.Duration `yaml:"hold" default:"5s" min:"100ms" max:"1h" reload:"new" doc:"How long it is passed over before one login at a time may try it again. With health checks, one of those must have succeeded first."`
}

// circuit opens after consecutive failures of an address, so that logins go elsewhere. While it
// is open, one login at a time is the probe that may close it. Whether the last address of a
// backend is tried is decided by health alone. It is guarded by address.mu.
type circuit struct {
	failures  []loginFailure // consecutive ones; at most BreakerSettings.Failures
	open      bool
	probing   bool      // a login is the probe
	confirmed bool      // a health check has succeeded since the last failure
	probeAt   time.Time // when the next probe may begin, while open
	failedAt  time.Time // the last failure
	why       string    // of the last failure
}

// loginFailure is one failed login.
type loginFailure struct {
	at   time.Time
	user identity.User // zero if the credentials were not sent
}

// recordFailure records a failure and reports whether the circuit has opened. A failure after
// the credentials were sent may be due to the user's own mailbox or password, so those of one
// user count once.
func (c *circuit) recordFailure(f loginFailure, s *BreakerSettings, why string) (opened bool) {
	c.why, c.failedAt, c.confirmed = why, f.at, false
	if c.open {
		c.probeAt = f.at.Add(s.Hold)
		return false
	}
	c.failures = slices.DeleteFunc(c.failures, func(old loginFailure) bool {
		return f.at.Sub(old.at) > s.Within || !f.user.IsZero() && old.user == f.user
	})
	c.failures = append(c.failures, f)
	if len(c.failures) < s.Failures {
		return false
	}
	c.open, c.failures, c.probeAt = true, nil, f.at.Add(s.Hold)
	return true
}

// recordSuccess closes the circuit.
func (c *circuit) recordSuccess() { c.open, c.failures = false, nil }

// recordCheck records the outcome of a health check, which may not reach as far as a login: it
// permits a probe. It closes the circuit itself if it is a login too, or if no login has failed
// for a while.
func (c *circuit) recordCheck(now time.Time, s *BreakerSettings, succeeded, isLogin bool) {
	switch {
	case !c.open:
	case !succeeded:
		c.confirmed = false
	case now.Before(c.probeAt), c.probing:
		c.confirmed = true
	case isLogin, now.Sub(c.failedAt) > s.Within:
		c.recordSuccess()
	default:
		c.confirmed = true
	}
}

// mayProbe reports whether a login may be the probe. needsCheck requires a successful health
// check before it.
func (c *circuit) mayProbe(now time.Time, needsCheck bool) bool {
	return c.open && !c.probing && !now.Before(c.probeAt) && (c.confirmed || !needsCheck)
}

// untilCheck returns how long it is until a health check could permit a probe; ok is false if
// none is needed.
func (c *circuit) untilCheck(now time.Time) (wait time.Duration, ok bool) {
	return max(c.probeAt.Sub(now), 0), c.open && !c.confirmed
}
