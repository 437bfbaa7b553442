package limit

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"imapgate/internal/breaker"
	"imapgate/internal/sleep"
)

const (
	// probeEvery is how often a gateway tries whether what has failed works again.
	probeEvery = time.Second
	// maxAiling bounds the keys that are tried. One server needs one; of a cluster with
	// more broken parts the rest is found when the first are whole.
	maxAiling = 32
	// missedProbes in a row without an answer are the end of sharing, too: a part of a
	// cluster hangs, and other writes succeed in between.
	missedProbes = 3
)

// health is what trips to Redis have found out. Reads and writes are apart: a replica,
// a full server or one without its disk refuses every write and answers every read, so
// that a read which succeeds proves nothing for writes. Nor does one write for another,
// in a cluster of which a part is down. Only a probe of each key at which something has
// failed proves that all is well again. It is guarded by the mu of shared.
type health struct {
	reads   breaker.Breaker
	writes  breaker.Breaker   // of writes in a row without an answer; once open, until a probe
	missed  int               // probes in a row without an answer
	refused bool              // Redis has answered with an error; until a probe
	ailing  map[string]uint64 // what to probe: key, and when it last failed, by noted
	noted   uint64            // counts failures
	proven  bool              // a write or probe has succeeded once
	why     error             // of the last failure
	told    sharing           // what was told last
	telling bool              // somebody is about to
}

// sharing is what there is to tell of limits.
type sharing uint8

const (
	notKnown sharing = iota
	isShared
	isLocal
)

// trouble is the error of a trip: by these calls Redis, or a part of it, is away or
// refuses to work.
type trouble struct {
	keys    []string // of each such call one
	refused bool     // Redis has answered, with an error
	err     error    // the first
}

func (t *trouble) Error() string { return t.err.Error() }
func (t *trouble) Unwrap() error { return t.err }

// add notes one more call; nil is none yet.
func (t *trouble) add(key string, err error) *trouble {
	if t == nil {
		t = &trouble{err: err}
	}
	var reply redis.Error
	t.refused = t.refused || errors.As(err, &reply)
	t.keys = append(t.keys, key)
	return t
}

// orNil is t as an error.
func (t *trouble) orNil() error {
	if t == nil {
		return nil
	}
	return t
}

// down reports whether limits are not shared.
func (h *health) down() bool { return h.reads.IsOpen() || h.closed() }

// news is what there is to tell.
func (h *health) news() sharing {
	switch {
	case h.down():
		return isLocal
	case h.proven:
		return isShared
	}
	return notKnown
}

// closed reports whether nothing is to be written, but by a probe.
func (h *health) closed() bool { return h.refused || h.writes.IsOpen() || h.missed >= missedProbes }

// answered notes a trip that has succeeded. One that wrote shows that missing answers
// were not the end, which they are five times in a row.
func (h *health) answered(wrote bool) {
	h.reads.RecordSuccess()
	if wrote && !h.closed() {
		h.writes.RecordSuccess()
		h.proven = true
	}
}

// failed notes a trip by which Redis was away or refused to work. A refusal is certain,
// and no matter of how often.
func (h *health) failed(t *trouble, writes bool, now time.Time, probe func(key string) string) {
	h.noted++
	switch {
	case !t.refused:
		h.reads.RecordFailure(now)
		h.writes.RecordFailure(now)
	case writes:
		h.reads.RecordSuccess()
		h.refused = true
	default:
		h.reads.RecordFailure(now)
		h.refused = true
	}
	for _, key := range t.keys {
		key = probe(key)
		if _, known := h.ailing[key]; known || len(h.ailing) < maxAiling {
			h.ailing[key] = h.noted
		}
	}
}

// probeFailed notes a probe that has not succeeded.
func (h *health) probeFailed(t *trouble, now time.Time) {
	h.failed(t, true, now, func(key string) string { return key })
	if !t.refused {
		h.missed++
	}
}

// healed notes a probe of keys, each with when it had failed, that has succeeded. What
// has failed again since stays as it is.
func (h *health) healed(keys map[string]uint64) {
	h.reads.RecordSuccess()
	h.missed = 0
	for key, when := range keys {
		if h.ailing[key] == when {
			delete(h.ailing, key)
		}
	}
	if len(h.ailing) == 0 {
		h.writes.RecordSuccess()
		h.refused, h.proven = false, true
	}
}

// heal probes what has failed until it works again, and then tells Redis what it has
// missed; it ends with ctx.
func (g *Limiter) heal(ctx context.Context) {
	for ctx.Err() == nil {
		if g.shared.probe(ctx) {
			g.beatOnce(ctx)
		}
		_ = sleep.For(ctx, jitter(probeEvery))
	}
}

// probe tries everything that a gateway does in Redis at each place where something has
// failed. It reports whether all of it works, when it did not before.
func (s *shared) probe(ctx context.Context) bool {
	s.mu.Lock()
	keys := maps.Clone(s.health.ailing)
	s.mu.Unlock()
	if len(keys) == 0 {
		return false
	}
	calls := make([]call, 0, len(keys))
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		calls = append(calls, call{s.scripts.probe, []string{key}, nil})
	}
	limited, cancel := context.WithTimeout(ctx, ioTime)
	defer cancel()
	_, err := s.send(limited, s.client.Pipeline(), calls)
	if ctx.Err() != nil {
		return false
	}
	return s.change(err, func(h *health) {
		var t *trouble
		if errors.As(err, &t) {
			h.probeFailed(t, time.Now())
		} else {
			h.healed(keys)
		}
	})
}

// change applies what a trip has found out, tells of it when limits begin or cease to be
// shared, and reports whether they are again.
func (s *shared) change(err error, apply func(*health)) (again bool) {
	s.mu.Lock()
	was := s.health.down()
	apply(&s.health)
	again = was && !s.health.down()
	if err != nil {
		s.health.why = err
	}
	s.mu.Unlock()
	s.announce()
	return again
}

// announce tells of the latest news, once. While somebody is at it, it is left to them,
// so that the last that is told is what is.
func (s *shared) announce() {
	for {
		s.mu.Lock()
		h := &s.health
		now, why := h.news(), h.why
		if h.telling || now == h.told {
			s.mu.Unlock()
			return
		}
		h.telling, h.told = true, now
		s.mu.Unlock()
		s.tell(now == isShared, why)
		s.mu.Lock()
		h.telling = false
		s.mu.Unlock()
	}
}

// probe is a key of nobody's at the same part of a cluster as another, and with the same
// rights.
func (k keys) probe(of string) string {
	area := "limit:probe:"
	if strings.HasPrefix(of, k.prefix+"ban:") {
		area = "ban:probe:"
	}
	return k.prefix + area + "{" + hashTag(of) + "}"
}

// hashTag is the part of a key by which a cluster chooses where it is.
func hashTag(key string) string {
	_, behind, found := strings.Cut(key, "{")
	if tag, _, closed := strings.Cut(behind, "}"); found && closed && tag != "" {
		return tag
	}
	return key
}

// probeScript does to a key all that other scripts do to theirs, in each of the forms
// that these have, and leaves nothing.
const probeScript = `
local key = KEYS[1]
redis.call('SET', key, '1', 'PX', 10000)
redis.call('INCR', key)
redis.call('GET', key)
redis.call('DEL', key)
redis.call('HSET', key, 'a', '1')
redis.call('PEXPIRE', key, 10000)
redis.call('HGET', key, 'a')
redis.call('HMGET', key, 'a')
redis.call('HGETALL', key)
redis.call('HLEN', key)
redis.call('HSCAN', key, '0')
redis.call('HDEL', key, 'a')
redis.call('ZADD', key, now, 'a')
redis.call('PEXPIRE', key, 10000)
redis.call('ZSCORE', key, 'a')
redis.call('ZRANGE', key, 0, 0)
redis.call('ZREVRANGE', key, 0, 0)
redis.call('ZRANGEBYSCORE', key, 0, 0)
redis.call('ZREMRANGEBYSCORE', key, 0, 0)
redis.call('ZREMRANGEBYRANK', key, 1, 1)
redis.call('ZREM', key, 'a')
redis.call('XADD', key, '*', 'a', '1')
redis.call('PEXPIRE', key, 10000)
redis.call('XRANGE', key, '-', '+')
redis.call('XREVRANGE', key, '+', '-')
return redis.call('DEL', key)
`
