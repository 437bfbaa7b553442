// Package breaker leaves a service alone that gives no answer, so that those
// who do not need it do not wait for it.
//
// It does not know what is asked, and starts no goroutine. A Breaker is guarded
// by its owner's lock; a Probed guards itself.
package breaker

import (
	"math/rand/v2"
	"time"
)

// When a service is left alone, and for how long.
const (
	Threshold     = 5           // failures in a row
	TrialInterval = time.Second // until one question is let through again

	// MaxWaiting bounds the callers that wait for the outcome of such a question, at one
	// service.
	MaxWaiting = 256
)

// Breaker stops asking a service that is away. The zero Breaker lets everybody
// ask. It is not safe for concurrent use.
type Breaker struct {
	failures  int       // in a row
	nextTrial time.Time // no question before this; zero while closed
}

// Allow says whether the service may be asked now. While open, one caller per
// period is let through as a probe.
func (b *Breaker) Allow(now time.Time) bool {
	if b.failures < Threshold {
		return true
	}
	if now.Before(b.nextTrial) {
		return false
	}
	b.scheduleTrial(now)
	return true
}

// RecordFailure notes that the service gave no answer.
func (b *Breaker) RecordFailure(now time.Time) {
	b.failures++
	if b.failures >= Threshold {
		b.scheduleTrial(now)
	}
}

// trip has the service left alone at once.
func (b *Breaker) trip(now time.Time) {
	b.failures = Threshold
	b.scheduleTrial(now)
}

// RecordSuccess notes that the service spoke sense, whatever it said.
func (b *Breaker) RecordSuccess() { *b = Breaker{} }

// IsOpen says whether the service is being left alone.
func (b *Breaker) IsOpen() bool { return b.failures >= Threshold }

// scheduleTrial sets the next probe, at a time of its own in each gateway.
func (b *Breaker) scheduleTrial(now time.Time) {
	b.nextTrial = now.Add(TrialInterval*4/5 + rand.N(TrialInterval*2/5))
}
