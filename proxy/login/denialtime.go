package login

import (
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"imapgate/proxy/upstream"
)

// denialTimes samples how long backends recently took to deny a password that they verify
// themselves. A denial without a backend takes one of these times. Otherwise its timing
// would reveal that the user has no route.
type denialTimes struct {
	mu sync.Mutex

	// Guarded by mu.
	durations [64]time.Duration // ring buffer
	total     int               // durations ever added
}

// add records the duration of a denial by a backend.
func (d *denialTimes) add(duration time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.durations[d.total%len(d.durations)] = duration
	d.total++
}

// pick returns a random sample, or 0 if no backend has denied a password yet.
func (d *denialTimes) pick() time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.total == 0 {
		return 0
	}
	return d.durations[rand.N(min(d.total, len(d.durations)))]
}

// minRefusalTime returns the minimum time of a refusal before jitter is added.
func (d *denialTimes) minRefusalTime(a *Attempt, r Refusal) time.Duration {
	switch {
	case a.minTime > 0:
		return a.minTime
	case a.verdict >= upstream.VerdictUnclear:
		return a.upstreamTime
	case r.IsDenial:
		return d.pick()
	}
	return 0
}

// recordVerdict records a backend's verdict on credentials that the gateway has not
// verified.
func (c *Connector) recordVerdict(a *Attempt, err error) {
	a.verdict = upstream.VerdictOf(err)
	if a.verdict != upstream.VerdictNone && errors.Is(err, upstream.ErrDenied) {
		c.denialTimes.add(a.upstreamTime)
	}
}
