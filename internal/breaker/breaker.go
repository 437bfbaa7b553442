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
	After = 5           // failures in a row
	For   = time.Second // until one question is let through again

	// MaxBeside bounds the callers that wait for the outcome of such a question, at one
	// service.
	MaxBeside = 256
)

// Breaker stops asking a service that is away. The zero Breaker lets everybody
// ask. It is not safe for concurrent use.
type Breaker struct {
	failures int       // in a row
	next     time.Time // no question before this; zero while closed
}

// Allow says whether the service may be asked now. While open, one caller per
// period is let through as a probe.
func (b *Breaker) Allow(now time.Time) bool {
	if b.failures < After {
		return true
	}
	if now.Before(b.next) {
		return false
	}
	b.pause(now)
	return true
}

// Failed notes that the service gave no answer.
func (b *Breaker) Failed(now time.Time) {
	b.failures++
	if b.failures >= After {
		b.pause(now)
	}
}

// open has the service left alone at once.
func (b *Breaker) open(now time.Time) {
	b.failures = After
	b.pause(now)
}

// Answered notes that the service spoke sense, whatever it said.
func (b *Breaker) Answered() { *b = Breaker{} }

// Open says whether the service is being left alone.
func (b *Breaker) Open() bool { return b.failures >= After }

// pause sets the next probe, at a time of its own in each gateway.
func (b *Breaker) pause(now time.Time) {
	b.next = now.Add(For*4/5 + rand.N(For*2/5))
}
