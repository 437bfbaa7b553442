package audit

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"imapgate/internal/identity"
)

const (
	// probeEvery is how often the probes of one address are written down.
	probeEvery = time.Minute
	// maxProbing bounds the addresses that are told apart; those beyond are counted
	// together, without one.
	maxProbing = 256
)

// probe is one or several probes of an address since the last record of them.
type probe struct {
	fold
	reasons map[Reason]uint64 // how many ended for each
	kinds   map[string]uint64 // how many were of each
}

// reason is that of most of them; of equally many, the first in the alphabet.
func (p *probe) reason() Reason {
	reasons := slices.Sorted(maps.Keys(p.reasons))
	return slices.MaxFunc(reasons, func(a, b Reason) int { return cmp.Compare(p.reasons[a], p.reasons[b]) })
}

// probes counts what the health checks of balancers do, so that they are a record a
// minute and not one each.
type probes struct {
	mu     sync.Mutex
	counts map[netip.Prefix]*probe // Guarded by mu. At most maxProbing, and one more.
}

// add reports whether a probe is written down now; else it is counted.
func (p *probes) add(from netip.Prefix, next fold, kind string, why Reason, now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.counts == nil {
		p.counts = make(map[netip.Prefix]*probe)
	}
	e := p.counts[from]
	if e == nil && len(p.counts) >= maxProbing {
		from, next.client = netip.Prefix{}, Client{}
		e = p.counts[from]
	}
	if e == nil {
		p.counts[from] = &probe{fold: fold{since: now}}
		return true
	}
	if e.count == 0 {
		e.reasons, e.kinds = map[Reason]uint64{}, map[string]uint64{}
	}
	e.reasons[why]++
	e.kinds[kind]++
	next.since, next.count = e.since, e.count+1
	e.fold = next
	return false
}

// due takes what is to be written by now. An address that has not come since its last
// record is forgotten.
func (p *probes) due(now time.Time) []probe {
	p.mu.Lock()
	defer p.mu.Unlock()
	var ready []probe
	for from, e := range p.counts {
		switch {
		case now.Sub(e.since) < probeEvery:
		case e.count == 0:
			delete(p.counts, from)
		default:
			ready = append(ready, *e)
			e.since, e.count = now, 0
		}
	}
	return ready
}

// Probe records the end of a connection from a trusted address that was no more than a
// health check: kind says what it did. Of an address there is one record a minute, and
// one line in the ordinary log, which counts the others.
func (l *Log) Probe(c *Client, kind string, why Reason, took time.Duration) {
	next := fold{client: *c, took: took}
	if l.probes.add(identity.Home(c.addr()), next, kind, why, time.Now()) {
		next.count = 1
		l.writeProbe(&probe{next, map[Reason]uint64{why: 1}, map[string]uint64{kind: 1}})
	}
}

func (l *Log) writeProbe(p *probe) {
	why := p.reason()
	_ = l.connectionRefused(&p.client, why, &p.fold) // else it counts as lost
	l.log.Info("probe", zap.String("listener", p.client.Listener), zap.Stringer("address", p.client.addr()),
		zap.Any("kinds", p.kinds), zap.String("reason", string(why)), zap.Uint64("count", p.count))
}
