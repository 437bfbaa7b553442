package cluster

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/redis/go-redis/v9"

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
	reads    breaker.Breaker
	writes   breaker.Breaker   // of writes without an answer; once open, until a probe
	missed   int               // consecutive probes without an answer
	refused  bool              // Redis has answered with an error; until a probe
	failed   map[string]uint64 // keys to probe, each with the failure, by its number
	failures uint64            // their count
	proven   bool              // a write or probe has succeeded
	why      error             // of the latest failure
	reported state             // the latest report
	busy     bool              // a report is in progress
}

// state is what OnChange reports.
type state uint8

const (
	unknown state = iota
	up
	down
)

// outage is the error of a round trip in which Redis, or a part of it, was down or refused to
// work.
type outage struct {
	keys    []string // one of each failed call
	refused bool     // Redis has answered, with an error
	err     error    // the first
}

func (o *outage) Error() string { return o.err.Error() }
func (o *outage) Unwrap() error { return o.err }

// add adds a failed call. A nil outage is none yet.
func (o *outage) add(key string, err error) *outage {
	if o == nil {
		o = &outage{err: err}
	}
	var reply redis.Error
	o.refused = o.refused || errors.As(err, &reply)
	o.keys = append(o.keys, key)
	return o
}

// orNil returns o as an error.
func (o *outage) orNil() error {
	if o == nil {
		return nil
	}
	return o
}

// IsRefusal reports whether err is one with which Redis answered.
func IsRefusal(err error) bool {
	var o *outage
	return errors.As(err, &o) && o.refused
}

// down reports whether the fleet does not count together.
func (h *health) down() bool { return h.reads.IsOpen() || h.closed() }

// state returns what there is to report.
func (h *health) state() state {
	switch {
	case h.down():
		return down
	case h.proven:
		return up
	}
	return unknown
}

// closed reports whether only probes may write.
func (h *health) closed() bool {
	return h.refused || h.writes.IsOpen() || h.missed >= maxMissedProbes
}

// recordAnswer records a successful round trip. One that wrote shows that answers are not
// missing five times in a row.
func (h *health) recordAnswer(wrote bool) {
	h.reads.RecordSuccess()
	if wrote && !h.closed() {
		h.writes.RecordSuccess()
		h.proven = true
	}
}

// recordOutage records a failed round trip. keys are to be probed. A refusal is certain, a
// missing answer only when it is one of several.
func (h *health) recordOutage(o *outage, writes bool, keys []string) {
	h.failures++
	switch now := time.Now(); {
	case !o.refused:
		h.reads.RecordFailure(now)
		h.writes.RecordFailure(now)
	case writes:
		h.reads.RecordSuccess()
		h.refused = true
	default:
		h.reads.RecordFailure(now)
		h.refused = true
	}
	for _, key := range keys {
		if _, known := h.failed[key]; known || len(h.failed) < maxFailed {
			h.failed[key] = h.failures
		}
	}
}

// recordProbe records the result of a probe of keys. What has failed since the probe was sent
// stays as it is.
func (h *health) recordProbe(err error, keys map[string]uint64) {
	var o *outage
	if errors.As(err, &o) {
		h.recordOutage(o, true, o.keys)
		if !o.refused {
			h.missed++
		}
		return
	}
	h.reads.RecordSuccess()
	h.missed = 0
	for key, failure := range keys {
		if h.failed[key] == failure {
			delete(h.failed, key)
		}
	}
	if len(h.failed) == 0 {
		h.writes.RecordSuccess()
		h.refused, h.proven = false, true
	}
}

// allowed reports whether Redis may be asked.
func (c *Cluster) allowed(writes bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if writes {
		return !c.health.closed()
	}
	return c.health.reads.Allow(time.Now())
}

// record records how a round trip has ended.
func (c *Cluster) record(err error, writes bool) {
	c.update(err, func(h *health) {
		var o *outage
		if !errors.As(err, &o) {
			h.recordAnswer(writes)
			return
		}
		keys := make([]string, len(o.keys))
		for i, key := range o.keys {
			keys[i] = c.keys.probe(key)
		}
		h.recordOutage(o, writes, keys)
	})
}

// probe tries everything that a gateway does in Redis at each place where something has
// failed. It reports whether all of it works, if it did not before.
func (c *Cluster) probe(ctx context.Context) bool {
	c.mu.Lock()
	failed := maps.Clone(c.health.failed)
	c.mu.Unlock()
	if len(failed) == 0 {
		return false
	}
	calls := make([]Call, 0, len(failed))
	for _, key := range slices.Sorted(maps.Keys(failed)) {
		calls = append(calls, Call{"probe", []string{key}, nil})
	}
	limited, cancel := context.WithTimeout(ctx, Wait)
	defer cancel()
	_, err := c.send(limited, calls)
	return ctx.Err() == nil && c.update(err, func(h *health) { h.recordProbe(err, failed) })
}

// update applies what a round trip has shown, reports when Redis is up or down, and returns
// whether it is up again.
func (c *Cluster) update(err error, apply func(*health)) (again bool) {
	c.mu.Lock()
	was := c.health.down()
	apply(&c.health)
	again = was && !c.health.down()
	if err != nil {
		c.health.why = err
	}
	c.mu.Unlock()
	c.report()
	return again
}

// report calls OnChange with the latest state, once. If another goroutine is reporting it is
// left to that one, so that the last report is the latest state.
func (c *Cluster) report() {
	for {
		c.mu.Lock()
		h := &c.health
		now, why := h.state(), h.why
		if h.busy || now == h.reported {
			c.mu.Unlock()
			return
		}
		h.busy, h.reported = true, now
		c.mu.Unlock()
		c.OnChange(now == up, why)
		c.mu.Lock()
		h.busy = false
		c.mu.Unlock()
	}
}
