package audit

import (
	"sync"
	"time"
)

const (
	// limitHitInterval is how often one limit of one subject is written down.
	limitHitInterval = time.Minute
	// maxLimitHits bounds the subjects remembered; those beyond are counted together,
	// with no subject, so that a flood from everywhere is a record a minute too.
	maxLimitHits = 1024
)

type limitHitKey struct {
	limit   Limit
	result  Measure
	subject string
}

// limitHitCount is one limit of one subject since it was written down.
type limitHitCount struct {
	start      time.Time
	unreported uint64
}

// limitHitAggregator counts what limits did, so that a flood is not one record each.
type limitHitAggregator struct {
	mu sync.Mutex
	// Guarded by mu.
	counts map[limitHitKey]*limitHitCount // at most maxLimitHits, and one more for each limit
}

// add notes a hit and gives the number to write down now; 0 is not yet.
func (h *limitHitAggregator) add(k limitHitKey, now time.Time) uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.counts == nil {
		h.counts = make(map[limitHitKey]*limitHitCount)
	}
	c := h.counts[k]
	if c == nil && len(h.counts) >= maxLimitHits {
		k.subject = ""
		c = h.counts[k]
	}
	if c == nil {
		h.counts[k] = &limitHitCount{start: now}
		return 1
	}
	c.unreported++
	return 0
}

// takeDue gives, and forgets, what is to be told by now: each count whose minute is
// over. One that stayed at nothing is forgotten, so its next hit is told at once.
func (h *limitHitAggregator) takeDue(now time.Time) map[limitHitKey]uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	due := make(map[limitHitKey]uint64)
	for k, c := range h.counts {
		switch {
		case now.Sub(c.start) < limitHitInterval:
		case c.unreported == 0:
			delete(h.counts, k)
		default:
			due[k] = c.unreported
			c.start, c.unreported = now, 0
		}
	}
	return due
}
