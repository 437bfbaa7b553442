package audit

import (
	"sync"
	"time"
)

const (
	// hitEvery is how often one limit of one subject is written down.
	hitEvery = time.Minute
	// maxHits bounds the subjects remembered; those beyond are counted together,
	// with no subject, so that a flood from everywhere is a record a minute too.
	maxHits = 1024
)

type hitKey struct {
	limit   Limit
	measure Measure
	subject string
}

// hitCount is one limit of one subject since it was written down.
type hitCount struct {
	since  time.Time
	unsaid uint64
}

// hits counts what limits did, so that a flood is not one record each.
type hits struct {
	mu sync.Mutex
	// Guarded by mu.
	counts map[hitKey]*hitCount // at most maxHits, and one more for each limit
}

// count notes a hit and gives the number to write down now; 0 is not yet.
func (h *hits) count(k hitKey, now time.Time) uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.counts == nil {
		h.counts = make(map[hitKey]*hitCount)
	}
	c := h.counts[k]
	if c == nil && len(h.counts) >= maxHits {
		k.subject = ""
		c = h.counts[k]
	}
	if c == nil {
		h.counts[k] = &hitCount{since: now}
		return 1
	}
	c.unsaid++
	return 0
}

// due gives, and forgets, what is to be told by now: each count whose minute is
// over. One that stayed at nothing is forgotten, so its next hit is told at once.
func (h *hits) due(now time.Time) map[hitKey]uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	told := make(map[hitKey]uint64)
	for k, c := range h.counts {
		switch {
		case now.Sub(c.since) < hitEvery:
		case c.unsaid == 0:
			delete(h.counts, k)
		default:
			told[k] = c.unsaid
			c.since, c.unsaid = now, 0
		}
	}
	return told
}
