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
	// probeInterval is how often the probes of one address are written down.
	probeInterval = time.Minute
	// maxProbeNets bounds the addresses that are told apart; those beyond are counted
	// together, without one.
	maxProbeNets = 256
)

// probeAggregate is one or several probes of an address since the last record of them.
type probeAggregate struct {
	aggregate
	reasons map[Reason]uint64 // how many ended for each
	kinds   map[string]uint64 // how many were of each
}

// mainReason is that of most of them; of equally many, the first in the alphabet.
func (p *probeAggregate) mainReason() Reason {
	reasons := slices.Sorted(maps.Keys(p.reasons))
	return slices.MaxFunc(reasons, func(a, b Reason) int { return cmp.Compare(p.reasons[a], p.reasons[b]) })
}

// probeAggregator counts what the health checks of balancers do, so that they are a record a
// minute and not one each.
type probeAggregator struct {
	mu         sync.Mutex
	aggregates map[netip.Prefix]*probeAggregate // Guarded by mu. At most maxProbeNets, and one more.
}

// add reports whether a probe is written down now; else it is counted.
func (p *probeAggregator) add(net netip.Prefix, next aggregate, kind string, reason Reason, now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.aggregates == nil {
		p.aggregates = make(map[netip.Prefix]*probeAggregate)
	}
	a := p.aggregates[net]
	if a == nil && len(p.aggregates) >= maxProbeNets {
		net, next.client = netip.Prefix{}, Client{}
		a = p.aggregates[net]
	}
	if a == nil {
		p.aggregates[net] = &probeAggregate{aggregate: aggregate{start: now}}
		return true
	}
	if a.count == 0 {
		a.reasons, a.kinds = map[Reason]uint64{}, map[string]uint64{}
	}
	a.reasons[reason]++
	a.kinds[kind]++
	next.start, next.count = a.start, a.count+1
	a.aggregate = next
	return false
}

// takeDue takes what is to be written by now. An address that has not come since its last
// record is forgotten.
func (p *probeAggregator) takeDue(now time.Time) []probeAggregate {
	p.mu.Lock()
	defer p.mu.Unlock()
	var due []probeAggregate
	for net, a := range p.aggregates {
		switch {
		case now.Sub(a.start) < probeInterval:
		case a.count == 0:
			delete(p.aggregates, net)
		default:
			due = append(due, *a)
			a.start, a.count = now, 0
		}
	}
	return due
}

// ProbeEnded records the end of a connection from a trusted address that was no more than a
// health check: kind says what it did. Of an address there is one record a minute, and
// one line in the ordinary log, which counts the others.
func (l *Log) ProbeEnded(c *Client, kind string, reason Reason, duration time.Duration) {
	next := aggregate{client: *c, duration: duration}
	if l.probes.add(identity.AddrPrefix(c.effectiveAddr()), next, kind, reason, time.Now()) {
		next.count = 1
		l.writeProbe(&probeAggregate{next, map[Reason]uint64{reason: 1}, map[string]uint64{kind: 1}})
	}
}

func (l *Log) writeProbe(p *probeAggregate) {
	reason := p.mainReason()
	_ = l.writeConnectionRefused(&p.client, reason, &p.aggregate) // else it counts as lost
	l.log.Info("probe", zap.String("listener", p.client.Listener), zap.Stringer("address", p.client.effectiveAddr()),
		zap.Any("kinds", p.kinds), zap.String("reason", string(reason)), zap.Uint64("count", p.count))
}
