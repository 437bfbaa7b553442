package cluster

import (
	"context"
	"maps"
	"slices"
	"time"

	"imapgate/internal/breaker"
)

const (
	// probeInterval is how often a gateway tries whether what has failed works again.
	probeInterval = time.Second
	// maxFailed bounds the keys that are probed. One server needs one. In a Redis Cluster
	// with more broken parts the others are found when the first are repaired.
	maxFailed = 32
	// maxMissedProbes without an answer in a row mean that Redis is down too: a part of a
	// cluster hangs, and other writes succeed in between.
	maxMissedProbes = 3
)

// health is what commands have shown about Redis. Reads and writes are separate: a replica, a
// full server or one that cannot save refuses every write and answers every read. Nor does
// one write prove another, in a cluster of which a part is down. Only a probe of each key at
// which something has failed proves that all is well again. It is guarded by Cluster.mu.
type health struct {
	reads    breaker.Breaker // open only while closed
	lost     int             // failures since a write has succeeded
	missed   int             // consecutive probes without an answer
	closed   bool            // only probes may write, until they succeed: the fleet does not count together
	failed   map[string]bool // keys to probe
	proven   bool            // a write or probe has succeeded
	why      error           // of the latest failure
	reported state           // the latest report
	busy     bool            // a report is in progress
}

// state is what OnHealth reports.
type state uint8

const (
	unknown state = iota
	up
	down
)

// state returns what there is to report.
func (h *health) state() state {
	switch {
	case h.closed:
		return down
	case h.proven:
		return up
	}
	return unknown
}

// record records how a round trip has ended. Where it failed is to be probed. A refusal is
// certain, a missing answer only when it is one of several. A success that wrote shows that
// answers are not missing five times in a row.
func (h *health) record(err error, writes bool, failed []string) {
	now := time.Now()
	switch {
	case err == nil:
		h.reads.RecordSuccess()
		if writes && !h.closed {
			h.lost, h.proven = 0, true
		}
		return
	case IsRefusal(err) && writes:
		h.reads.RecordSuccess()
	default:
		h.reads.RecordFailure(now)
		h.lost++
	}
	h.why, h.closed = err, h.closed || IsRefusal(err) || h.lost >= breaker.Threshold
	for _, key := range failed {
		if len(h.failed) < maxFailed {
			h.failed[key] = true
		}
	}
}

// recordProbe records the result of a probe. What has failed since it was sent, or in it, is
// yet to be probed.
func (h *health) recordProbe(err error, failed []string) {
	if err != nil {
		h.record(err, true, failed)
		if !IsRefusal(err) {
			h.missed++
			h.closed = h.closed || h.missed >= maxMissedProbes
		}
		return
	}
	h.reads.RecordSuccess()
	h.missed = 0
	if len(h.failed) == 0 {
		h.lost, h.closed, h.proven = 0, false, true
	}
}

// Health returns whether the latest exchanges have succeeded, and why not.
func (c *Cluster) Health() (isUp bool, why string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	isUp = c.health.state() == up
	if !isUp && c.health.why != nil {
		why = c.health.why.Error()
	}
	return isUp, why
}

// allowed reports whether Redis may be asked.
func (c *Cluster) allowed(writes bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if writes {
		return !c.health.closed
	}
	return c.health.reads.Allow(time.Now())
}

// heal tries everything that a gateway does in Redis at each place where something has failed,
// and sends a heartbeat when all of it works again.
func (c *Cluster) heal(ctx context.Context) {
	c.mu.Lock()
	var calls []Call
	for _, key := range slices.Sorted(maps.Keys(c.health.failed)) {
		calls = append(calls, Call{"probe", []string{key}, nil})
	}
	clear(c.health.failed)
	c.mu.Unlock()
	if len(calls) == 0 {
		return
	}
	limited, cancel := context.WithTimeout(ctx, Wait)
	defer cancel()
	_, failed, err := c.send(limited, calls)
	if ctx.Err() == nil && c.update(func(h *health) { h.recordProbe(err, failed) }) {
		c.heartbeat(ctx)
	}
}

// update applies what a round trip has shown, and returns whether Redis is up again. It calls
// OnHealth with the latest state, once. If another goroutine is reporting it is left to that
// one, so that the last report is the latest state.
func (c *Cluster) update(apply func(*health)) (again bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	h := &c.health
	was := h.closed
	apply(h)
	again = was && !h.closed
	for !h.busy && h.state() != h.reported {
		now, why := h.state(), h.why
		h.busy, h.reported = true, now
		c.mu.Unlock()
		c.OnHealth(now == up, why)
		c.mu.Lock()
		h.busy = false
	}
	return again
}
