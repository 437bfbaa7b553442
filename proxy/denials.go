package proxy

import (
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"imapgate/proxy/upstream"
)

// denials are the times that backends have lately taken to deny a password which
// they judge themselves. A denial that no backend was asked for takes as long as
// one of them, else its time would tell that the user lives nowhere.
type denials struct {
	mu sync.Mutex

	// Guarded by mu.
	took [64]time.Duration // a ring
	n    int               // of all that were noted
}

// note keeps how long a denial took, at a backend.
func (d *denials) note(took time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.took[d.n%len(d.took)] = took
	d.n++
}

// any is one of them, 0 while there is none: where no backend judges.
func (d *denials) any() time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.n == 0 {
		return 0
	}
	return d.took[rand.N(min(d.n, len(d.took)))]
}

// least is the time of a refusal before the jitter, which blurs both kinds alike.
func (d *denials) least(a *attempt, r refusal) time.Duration {
	switch {
	case a.least > 0:
		return a.least
	case a.verdict >= upstream.VerdictUnclear:
		return a.asked
	case r.denied:
		return d.any()
	}
	return 0
}

// judged notes what a backend has said to credentials that nobody else had judged.
func (s *session) judged(a *attempt, err error) {
	a.verdict = upstream.VerdictOf(err)
	if a.verdict != upstream.VerdictNone && errors.Is(err, upstream.ErrDenied) {
		s.server.denials.note(a.asked)
	}
}
