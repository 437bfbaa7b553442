// Package breaker stops requests to a service that does not answer, so that they fail at once
// and do not wait.
//
// It does not send requests and starts no goroutine. The owner of a Breaker guards it with a
// lock; a Monitor is safe for concurrent use.
package breaker

import (
	"math/rand/v2"
	"time"
)

// When a breaker opens, and how often it lets a trial through.
const (
	Threshold     = 5           // consecutive failures
	TrialInterval = time.Second // between trials while open

	// MaxWaiting bounds the callers that wait for the outcome of a trial, for one service.
	MaxWaiting = 256
)

// Breaker is a circuit breaker. The zero Breaker is closed. It is not safe for concurrent use.
type Breaker struct {
	failures  int       // consecutive
	nextTrial time.Time // time of the next trial; zero while closed
}

// Allow reports whether a request may be sent now. While open, it allows one request per
// period as a trial.
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

// RecordFailure records that the service did not answer.
func (b *Breaker) RecordFailure(now time.Time) {
	b.failures++
	if b.failures >= Threshold {
		b.scheduleTrial(now)
	}
}

// trip opens the breaker at once.
func (b *Breaker) trip(now time.Time) {
	b.failures = Threshold
	b.scheduleTrial(now)
}

// RecordSuccess records that the service answered, whatever the answer is, and closes the
// breaker.
func (b *Breaker) RecordSuccess() { *b = Breaker{} }

// IsOpen reports whether the breaker is open.
func (b *Breaker) IsOpen() bool { return b.failures >= Threshold }

// scheduleTrial sets the time of the next trial. It is random, so that gateways try at
// different times.
func (b *Breaker) scheduleTrial(now time.Time) {
	b.nextTrial = now.Add(TrialInterval*4/5 + rand.N(TrialInterval*2/5))
}
