package audit

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"imapgate/internal/event"
	"imapgate/internal/identity"
)

// A client without an account can cause some records at will, so these are folded: a
// record at the end of a minute counts the events that have none of their own. The
// bounds below hold for all addresses together, because an IPv6 network has
// practically unlimited addresses.
const (
	// aggregateInterval is how often folded records are written.
	aggregateInterval = time.Minute
	// maxSingles bounds the refusals of a minute that are not folded.
	maxSingles = 600
	// maxRefusalKeys, maxProbeNets and maxLimitHits bound the addresses, reasons and
	// subjects that are counted separately. Those beyond are counted together, without
	// an address or subject, so a flood from many addresses is one record a minute too.
	maxRefusalKeys = 512
	maxProbeNets   = 256
	maxLimitHits   = 1024
)

// tally counts the events of each key by the minute.
type tally[K comparable, V any] struct {
	// Set once.
	maxKeys  int  // beyond it, events are counted under shared keys
	restarts bool // each minute, not only the first, begins with single events

	mu     sync.Mutex
	counts map[K]*count[V] // Guarded by mu. At most maxKeys, plus the shared keys.
}

// count has the events of a key since its last record.
type count[V any] struct {
	start    time.Time
	isShared bool   // the key is a shared one
	singles  int    // events with their own records
	folded   uint64 // events without one
	value    V      // content of the record of folded events
}

// add counts an event under k, or under shared if there are too many keys. It reports
// whether the event has a record of its own, which fold decides.
func (t *tally[K, V]) add(k, shared K, now time.Time, fold func(*count[V]) bool) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.counts == nil {
		t.counts = make(map[K]*count[V])
	}
	c := t.counts[k]
	if c == nil && len(t.counts) >= t.maxKeys {
		k = shared
		c = t.counts[k]
	}
	if c == nil {
		c = &count[V]{start: now, isShared: k == shared}
		t.counts[k] = c
	}
	return fold(c)
}

// foldAfterFirst gives the first event a record of its own, and folds the others.
func (c *count[V]) foldAfterFirst() bool {
	if c.singles == 0 {
		c.singles++
		return true
	}
	c.folded++
	return false
}

// takeDue resets the counts whose minute is over, and returns those that need a record.
// It removes those without a folded event, so that their next event has a record of its
// own.
func (t *tally[K, V]) takeDue(now time.Time) map[K]count[V] {
	t.mu.Lock()
	defer t.mu.Unlock()
	due := make(map[K]count[V])
	for k, c := range t.counts {
		if now.Sub(c.start) < aggregateInterval {
			continue
		}
		delete(t.counts, k)
		if c.folded == 0 {
			continue
		}
		due[k] = *c
		if !t.restarts {
			t.counts[k] = &count[V]{start: now, isShared: c.isShared, singles: c.singles}
		}
	}
	return due
}

// refusalKey identifies the refusals that are counted together.
type refusalKey struct {
	event  event.Event
	reason event.Reason
	net    netip.Prefix  // the client's; zero: counted for all addresses together
	user   identity.User // of a login; zero also for an invalid name
}

// refusal is the last of the refusals that are counted together.
type refusal struct {
	client   Client
	login    Login
	detail   string
	duration time.Duration
}

// refusals folds refused logins and connections. Of one key, the first of a minute
// have their own records.
type refusals struct {
	tally[refusalKey, refusal]

	// Guarded by mu.
	budgetStart time.Time // when the budget of maxSingles began
	singles     int       // used part of the budget
}

// effectiveAddr returns the client's own address if a trusted proxy named it, else
// the peer's.
func (c *Client) effectiveAddr() netip.Addr {
	addr := c.Peer.Addr()
	if c.Addr.IsValid() {
		addr = c.Addr.Addr()
	}
	return addr.Unmap().WithZone("")
}

// foldRefusal reports whether a refusal is folded; r has the content of its record.
func (l *Log) foldRefusal(e event.Event, reason event.Reason, r refusal) bool {
	if l.cfg.FirstPerMinute == 0 {
		return false
	}
	now := time.Now()
	k := refusalKey{e, reason, identity.AddrPrefix(r.client.effectiveAddr()), r.login.User}
	a := &l.refusals
	return !a.add(k, refusalKey{event: e, reason: reason}, now, func(c *count[refusal]) bool {
		if now.Sub(a.budgetStart) >= aggregateInterval {
			a.budgetStart, a.singles = now, 0
		}
		if !c.isShared && c.singles < l.cfg.FirstPerMinute && a.singles < maxSingles {
			c.singles++
			a.singles++
			return true
		}
		if c.isShared {
			r.client, r.login = Client{}, Login{}
		}
		c.folded++
		c.value = r
		return false
	})
}

// isUnverified reports whether a login was refused before its credentials were
// verified. Such a login reveals nothing about the password.
func isUnverified(login *Login, reason event.Reason) bool {
	switch reason {
	case event.Cleartext, event.BadMechanism, event.BadExchange, event.ClientAborted:
		return true
	case event.LimitReached:
		return login.Method == "" // with a method, the limit applies after a correct password
	}
	return false
}

// probes are the folded health checks of an address.
type probes struct {
	client   Client // of the last one
	duration time.Duration
	reasons  map[event.Reason]uint64 // number of probes per reason
	kinds    map[event.Probe]uint64  // number of probes per kind
}

// mainReason returns the most frequent reason; of equally frequent ones, the first
// in the alphabet.
func (p *probes) mainReason() event.Reason {
	reasons := slices.Sorted(maps.Keys(p.reasons))
	return slices.MaxFunc(reasons, func(a, b event.Reason) int { return cmp.Compare(p.reasons[a], p.reasons[b]) })
}

// ProbeEnded records the end of a connection from a trusted address that was only a
// health check; kind is what it did. An address has one record a minute, and one
// line in the ordinary log, which count the others.
func (l *Log) ProbeEnded(c *Client, kind event.Probe, reason event.Reason, duration time.Duration) {
	single := probes{*c, duration, map[event.Reason]uint64{reason: 1}, map[event.Probe]uint64{kind: 1}}
	isSingle := l.probes.add(identity.AddrPrefix(c.effectiveAddr()), netip.Prefix{}, time.Now(), func(n *count[probes]) bool {
		if n.foldAfterFirst() {
			return true
		}
		if n.folded == 1 {
			n.value.reasons, n.value.kinds = map[event.Reason]uint64{}, map[event.Probe]uint64{}
		}
		n.value.reasons[reason]++
		n.value.kinds[kind]++
		n.value.client, n.value.duration = *c, duration
		if n.isShared {
			n.value.client = Client{}
		}
		return false
	})
	if isSingle {
		l.writeProbes(&single, 1)
	}
}

func (l *Log) writeProbes(p *probes, count uint64) {
	reason := p.mainReason()
	_ = l.writeConnectionRefused(reason, &refusal{client: p.client, duration: p.duration}, count) // an error is counted as lost
	l.log.Info("probe", zap.String("listener", p.client.Listener), zap.Stringer("address", p.client.effectiveAddr()),
		zap.Any("kinds", p.kinds), zap.String("reason", string(reason)), zap.Uint64("count", count))
}

// writeDueAggregates writes the records of folded events whose minute is over. An error
// is counted as lost.
func (l *Log) writeDueAggregates(now time.Time) {
	for k, c := range l.refusals.takeDue(now) {
		if k.event == event.LoginRefused {
			_ = l.writeLoginRefused(&c.value.client, &c.value.login, k.reason, c.folded)
		} else {
			_ = l.writeConnectionRefused(k.reason, &c.value, c.folded)
		}
	}
	for _, c := range l.probes.takeDue(now) {
		l.writeProbes(&c.value, c.folded)
	}
	for hit, c := range l.limitHits.takeDue(now) {
		_ = l.writeLimitHit(&Client{}, &hit, c.folded)
	}
}
