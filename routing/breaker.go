package routing

import (
	"math/rand/v2"
	"time"
)

const (
	breakAfter = 5           // failures in a row
	breakFor   = time.Second // until one question is let through again
)

// breaker stops asking a Redis that is away, so that known users do not wait for
// it. It is not safe for concurrent use; the cache's lock guards it.
type breaker struct {
	failures int       // in a row
	next     time.Time // no question before this; zero while closed
}

// allow says whether Redis may be asked now. While open, one caller per period is
// let through as a probe.
func (b *breaker) allow(now time.Time) bool {
	if b.failures < breakAfter {
		return true
	}
	if now.Before(b.next) {
		return false
	}
	b.pause(now)
	return true
}

// failed notes that Redis gave no answer.
func (b *breaker) failed(now time.Time) {
	b.failures++
	if b.failures >= breakAfter {
		b.pause(now)
	}
}

// answered notes that Redis spoke sense, whatever it said.
func (b *breaker) answered() { *b = breaker{} }

// open says whether Redis is being left alone.
func (b *breaker) open() bool { return b.failures >= breakAfter }

// pause sets the next probe, at a time of its own in each gateway.
func (b *breaker) pause(now time.Time) {
	b.next = now.Add(breakFor*4/5 + rand.N(breakFor*2/5))
}
