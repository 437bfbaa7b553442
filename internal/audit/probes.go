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

const (
	// probeInterval is the interval of the records of one address's probes.
	probeInterval = time.Minute
	// maxProbeNets bounds the addresses that are counted separately. Those beyond are
	// counted together, without an address.
	maxProbeNets = 256
)

// probeAggregate is the probes of an address since the last record of them.
type probeAggregate struct {
	aggregate
	reasons map[event.Reason]uint64 // number of probes per reason
	kinds   map[event.Probe]uint64  // number of probes per kind
}

// mainReason returns the most frequent reason; of equally frequent ones, the first
// in the alphabet.
func (p *probeAggregate) mainReason() event.Reason {
	reasons := slices.Sorted(maps.Keys(p.reasons))
	return slices.MaxFunc(reasons, func(a, b event.Reason) int { return cmp.Compare(p.reasons[a], p.reasons[b]) })
}

// probeAggregator counts the health checks of load balancers, so that they cause one
// record a minute instead of one each.
type probeAggregator struct {
	mu         sync.Mutex
	aggregates map[netip.Prefix]*probeAggregate // Guarded by mu. At most maxProbeNets, plus one.
}

// add reports whether a probe is recorded now; otherwise it is counted.
func (p *probeAggregator) add(net netip.Prefix, next aggregate, kind event.Probe, reason event.Reason, now time.Time) bool {
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
		a.reasons, a.kinds = map[event.Reason]uint64{}, map[event.Probe]uint64{}
	}
	a.reasons[reason]++
	a.kinds[kind]++
	next.start, next.count = a.start, a.count+1
	a.aggregate = next
	return false
}

// takeDue returns and resets the counts whose minute is over. It removes addresses
// without a probe since their last record.
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

// ProbeEnded records the end of a connection from a trusted address that was only a
// health check; kind is what it did. An address has one record a minute, and one
// line in the ordinary log, which count the others.
func (l *Log) ProbeEnded(c *Client, kind event.Probe, reason event.Reason, duration time.Duration) {
	next := aggregate{client: *c, duration: duration}
	if l.probes.add(identity.AddrPrefix(c.effectiveAddr()), next, kind, reason, time.Now()) {
		next.count = 1
		l.writeProbe(&probeAggregate{next, map[event.Reason]uint64{reason: 1}, map[event.Probe]uint64{kind: 1}})
	}
}

func (l *Log) writeProbe(p *probeAggregate) {
	reason := p.mainReason()
	_ = l.writeConnectionRefused(&p.client, reason, &p.aggregate) // an error is counted as lost
	l.log.Info("probe", zap.String("listener", p.client.Listener), zap.Stringer("address", p.client.effectiveAddr()),
		zap.Any("kinds", p.kinds), zap.String("reason", string(reason)), zap.Uint64("count", p.count))
}
