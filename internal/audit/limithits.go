package audit

import (
	"sync"
	"time"

	"imapgate/internal/event"
)

const (
	// limitHitInterval is the interval of the records of one limit and subject.
	limitHitInterval = time.Minute
	// maxLimitHits bounds the subjects that are counted separately. Those beyond are
	// counted together, without a subject, so a flood from many addresses is also one
	// record a minute.
	maxLimitHits = 1024
)

type limitHitKey struct {
	limit   event.Limit
	result  event.Result
	subject string
}

// limitHitCount counts the hits of one limit and subject since the last record.
type limitHitCount struct {
	start      time.Time
	unreported uint64
}

// limitHitAggregator counts the hits of limits, so that a flood does not cause a
// record for each.
type limitHitAggregator struct {
	mu sync.Mutex
	// Guarded by mu.
	counts map[limitHitKey]*limitHitCount // at most maxLimitHits, plus one for each limit and result
}

// add counts a hit and returns the number to record now; 0 means later.
func (l *limitHitAggregator) add(k limitHitKey, now time.Time) uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.counts == nil {
		l.counts = make(map[limitHitKey]*limitHitCount)
	}
	c := l.counts[k]
	if c == nil && len(l.counts) >= maxLimitHits {
		k.subject = ""
		c = l.counts[k]
	}
	if c == nil {
		l.counts[k] = &limitHitCount{start: now}
		return 1
	}
	c.unreported++
	return 0
}

// takeDue returns and resets the counts whose minute is over. It removes those
// without a hit, so that their next hit is recorded at once.
func (l *limitHitAggregator) takeDue(now time.Time) map[limitHitKey]uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	due := make(map[limitHitKey]uint64)
	for k, c := range l.counts {
		switch {
		case now.Sub(c.start) < limitHitInterval:
		case c.unreported == 0:
			delete(l.counts, k)
		default:
			due[k] = c.unreported
			c.start, c.unreported = now, 0
		}
	}
	return due
}
