package proxy

import (
	"maps"
	"net/netip"
	"sync"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"imapgate/internal/audit"
	"imapgate/internal/identity"
)

const (
	// aggregateInterval is how long a flood is written as one line.
	aggregateInterval = time.Minute
	// maxLinesPerNet and maxLines bound the lines of an event in aggregateInterval: of one
	// address, and of all together.
	maxLinesPerNet = 10
	maxLines       = 60
	// maxCountedNets bounds the addresses that are told apart where there are more lines.
	maxCountedNets = 1024
)

// logAggregator writes the lines of an event that strangers cause as often as they like.
// The first of a minute have a line each, the others one at its end, with how many there
// were for which reason, and at debug a line all the same.
type logAggregator struct {
	// Set once.
	log     *zap.Logger
	summary string // message of the line that stands for the others

	mu sync.Mutex
	// Guarded by mu.
	timer        *time.Timer // ends it; nil: none has begun
	written      int         // in this minute
	writtenByNet map[netip.Prefix]int
	aggregated   map[audit.Reason]uint64 // without a line
	level        zapcore.Level           // the highest of those
	nets         map[netip.Prefix]bool   // of those
}

func newLogAggregator(log *zap.Logger, summary string) *logAggregator {
	return &logAggregator{log: log, summary: summary}
}

// write writes a line about a client at from, or counts it.
func (a *logAggregator) write(level zapcore.Level, msg string, addr netip.Addr, reason audit.Reason, fields []zap.Field) {
	switch {
	case level == zapcore.DebugLevel || a.log.Core().Enabled(level) && !a.reserveLine(level, identity.AddrPrefix(addr), reason):
		a.log.Debug(msg, fields...)
	default:
		a.log.Log(level, msg, fields...)
	}
}

// reserveLine reports whether there is room for a line of its own. What has none is counted.
func (a *logAggregator) reserveLine(level zapcore.Level, network netip.Prefix, reason audit.Reason) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.timer == nil {
		a.writtenByNet, a.aggregated, a.nets = map[netip.Prefix]int{}, map[audit.Reason]uint64{}, map[netip.Prefix]bool{}
		a.timer = time.AfterFunc(aggregateInterval, a.flush)
	}
	if a.written < maxLines && a.writtenByNet[network] < maxLinesPerNet {
		a.written++
		a.writtenByNet[network]++
		return true
	}
	a.aggregated[reason]++
	a.level = max(a.level, level)
	if len(a.nets) < maxCountedNets {
		a.nets[network] = true
	}
	return false
}

// flush writes what was counted, and forgets it. It is called when the minute is
// over, and when the gateway stops.
func (a *logAggregator) flush() {
	a.mu.Lock()
	if a.timer == nil {
		a.mu.Unlock()
		return
	}
	a.timer.Stop()
	level, aggregated, nets := a.level, a.aggregated, len(a.nets) // the next minute makes maps of its own
	a.timer, a.written, a.level = nil, 0, zapcore.InfoLevel
	a.mu.Unlock() // the log may block
	var count uint64
	for n := range maps.Values(aggregated) {
		count += n
	}
	if count > 0 {
		a.log.Log(level, a.summary, zap.Uint64("count", count), zap.Any("reasons", aggregated), zap.Int("addresses", nets))
	}
}
