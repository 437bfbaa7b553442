// Package logaggregator bounds log lines that unauthenticated clients can cause at will.
package logaggregator

import (
	"maps"
	"net/netip"
	"sync"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"imapgate/internal/event"
	"imapgate/internal/identity"
)

const (
	// aggregateInterval is the period in which excess lines become one line.
	aggregateInterval = time.Minute
	// maxLinesPerNet and maxLines bound the lines of an event in aggregateInterval, for one
	// network and in total.
	maxLinesPerNet = 10
	maxLines       = 60
	// maxCountedNets bounds the networks counted for the summary line.
	maxCountedNets = 1024
)

// Aggregator bounds the log lines of an event that unauthenticated clients can cause at
// will. The first lines of a minute are written. The rest are summarized in one line with a
// count for each reason, and written at debug level.
type Aggregator struct {
	// Set once.
	log     *zap.Logger
	summary string // message of the summary line

	mu sync.Mutex
	// Guarded by mu.
	timer        *time.Timer // ends the minute; nil: none has begun
	written      int         // lines in this minute
	writtenByNet map[netip.Prefix]int
	aggregated   map[event.Reason]uint64 // lines not written
	level        zapcore.Level           // highest level of lines not written
	nets         map[netip.Prefix]bool   // networks of lines not written
}

// New returns an Aggregator that writes to log; summary is the message of the summary line.
func New(log *zap.Logger, summary string) *Aggregator {
	return &Aggregator{log: log, summary: summary}
}

// Write writes a line about the client at addr, or counts it.
func (a *Aggregator) Write(level zapcore.Level, msg string, addr netip.Addr, reason event.Reason, fields []zap.Field) {
	switch {
	case level == zapcore.DebugLevel || a.log.Core().Enabled(level) && !a.reserveLine(level, identity.AddrPrefix(addr), reason):
		a.log.Debug(msg, fields...)
	default:
		a.log.Log(level, msg, fields...)
	}
}

// reserveLine reports whether the line may be written; otherwise it counts it.
func (a *Aggregator) reserveLine(level zapcore.Level, network netip.Prefix, reason event.Reason) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.timer == nil {
		a.writtenByNet, a.aggregated, a.nets = map[netip.Prefix]int{}, map[event.Reason]uint64{}, map[netip.Prefix]bool{}
		a.timer = time.AfterFunc(aggregateInterval, a.Flush)
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

// Flush writes the summary line, if any, and resets the counts. It runs at the end of the
// minute and when the gateway stops.
func (a *Aggregator) Flush() {
	a.mu.Lock()
	if a.timer == nil {
		a.mu.Unlock()
		return
	}
	a.timer.Stop()
	level, aggregated, nets := a.level, a.aggregated, len(a.nets) // the next minute makes new maps
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
