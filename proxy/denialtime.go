package proxy

import (
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"imapgate/proxy/upstream"
)

// denialTimes are the times that backends have lately taken to deny a password which
// they judge themselves. A denial that no backend was asked for takes as long as
// one of them, else its time would tell that the user lives nowhere.
type denialTimes struct {
	mu sync.Mutex

	// Guarded by mu.
	durations [64]time.Duration // a ring
	total     int               // of all that were noted
}

// add keeps how long a denial took, at a backend.
func (d *denialTimes) add(duration time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.durations[d.total%len(d.durations)] = duration
	d.total++
}

// pick is one of them, 0 while there is none: where no backend judges.
func (d *denialTimes) pick() time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.total == 0 {
		return 0
	}
	return d.durations[rand.N(min(d.total, len(d.durations)))]
}

// minRefusalTime is the time of a refusal before the jitter, which blurs both kinds alike.
func (d *denialTimes) minRefusalTime(a *attempt, r refusal) time.Duration {
	switch {
	case a.minTime > 0:
		return a.minTime
	case a.verdict >= upstream.VerdictUnclear:
		return a.upstreamTime
	case r.isDenial:
		return d.pick()
	}
	return 0
}

// recordVerdict notes what a backend has said to credentials that nobody else had judged.
func (c *connection) recordVerdict(a *attempt, err error) {
	a.verdict = upstream.VerdictOf(err)
	if a.verdict != upstream.VerdictNone && errors.Is(err, upstream.ErrDenied) {
		c.server.denialTimes.add(a.upstreamTime)
	}
}
