package upstream

import (
	"sync"
	"time"
)

// BreakerSettings are when logins pass an address over because logins there fail.
type BreakerSettings struct {
	Failures int           `yaml:"failures" default:"5" min:"1" max:"1000" reload:"new" doc:"So many failed logins in a row, within the time below, and the address is passed over while there is another one. Only the address's own failures count: no connection, no TLS, no answer, or one that violates the protocol."`
	Within   time.Duration `yaml:"within" default:"10s" min:"1s" max:"1h" reload:"new" doc:"The time in which they must happen."`
	Hold     time.Duration `yaml:"hold" default:"5s" min:"100ms" max:"1h" reload:"new" doc:"How long it is passed over before a health check tries it again; without health checks one login does."`
}

// circuit opens after consecutive failures of an address, so that logins go elsewhere. After a
// while it lets one probe through. Whether the last address of a backend is tried is decided by
// health alone.
type circuit struct {
	mu sync.Mutex
	// Guarded by mu.
	failures []time.Time // consecutive ones; at most BreakerSettings.Failures
	open     bool
	probeAt  time.Time // when a probe may be made, while open
	why      string    // the latest failure
}

// isOpen reports whether logins should go elsewhere, and why.
func (c *circuit) isOpen(time.Time) (bool, string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.open, c.why
}

// recordFailure records a failure and reports whether the circuit has opened.
func (c *circuit) recordFailure(now time.Time, s *BreakerSettings, why string) (opened bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.why = why
	if c.open {
		c.probeAt = now.Add(s.Hold)
		return false
	}
	if n := len(c.failures) - s.Failures + 1; n > 0 {
		c.failures = c.failures[n:]
	}
	c.failures = append(c.failures, now)
	if len(c.failures) < s.Failures || now.Sub(c.failures[0]) > s.Within {
		return false
	}
	c.open, c.failures, c.probeAt = true, nil, now.Add(s.Hold)
	return true
}

// recordSuccess closes the circuit and reports whether it was open.
func (c *circuit) recordSuccess() (closed bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	closed, c.open, c.failures = c.open, false, nil
	return closed
}

// takeProbe reports whether the caller may make the probe that is due. The next one is due
// after the hold time again.
func (c *circuit) takeProbe(now time.Time, hold time.Duration) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.open || now.Before(c.probeAt) {
		return false
	}
	c.probeAt = now.Add(hold)
	return true
}

// untilProbe returns how long it is until a probe is due; ok is false if none will be.
func (c *circuit) untilProbe(now time.Time) (wait time.Duration, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return max(c.probeAt.Sub(now), 0), c.open
}
