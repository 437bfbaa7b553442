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
	// linesEvery is how long a flood is written as one line.
	linesEvery = time.Minute
	// linesPerAddress and maxLines bound the lines of an event in linesEvery: of one
	// address, and of all together.
	linesPerAddress = 10
	maxLines        = 60
	// maxCounted bounds the addresses that are told apart where there are more lines.
	maxCounted = 1024
)

// floodLines writes the lines of an event that strangers cause as often as they like.
// The first of a minute have a line each, the others one at its end, with how many there
// were for which reason, and at debug a line all the same.
type floodLines struct {
	// Set once.
	log *zap.Logger
	sum string // message of the line that stands for the others

	mu sync.Mutex
	// Guarded by mu.
	minute    *time.Timer // ends it; nil: none has begun
	lines     int         // in this minute
	single    map[netip.Prefix]int
	more      map[audit.Reason]uint64 // without a line
	level     zapcore.Level           // the highest of those
	addresses map[netip.Prefix]bool   // of those
}

func newFloodLines(log *zap.Logger, sum string) *floodLines { return &floodLines{log: log, sum: sum} }

// write writes a line about a client at from, or counts it.
func (f *floodLines) write(level zapcore.Level, line string, from netip.Addr, why audit.Reason, fields []zap.Field) {
	switch {
	case level == zapcore.DebugLevel || f.log.Core().Enabled(level) && !f.mayWrite(level, identity.Home(from), why):
		f.log.Debug(line, fields...)
	default:
		f.log.Log(level, line, fields...)
	}
}

// mayWrite reports whether there is room for a line of its own. What has none is counted.
func (f *floodLines) mayWrite(level zapcore.Level, from netip.Prefix, why audit.Reason) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.minute == nil {
		f.single, f.more, f.addresses = map[netip.Prefix]int{}, map[audit.Reason]uint64{}, map[netip.Prefix]bool{}
		f.minute = time.AfterFunc(linesEvery, f.endMinute)
	}
	if f.lines < maxLines && f.single[from] < linesPerAddress {
		f.lines++
		f.single[from]++
		return true
	}
	f.more[why]++
	f.level = max(f.level, level)
	if len(f.addresses) < maxCounted {
		f.addresses[from] = true
	}
	return false
}

// endMinute writes what was counted, and forgets it. It is called when the minute is
// over, and when the gateway stops.
func (f *floodLines) endMinute() {
	f.mu.Lock()
	if f.minute == nil {
		f.mu.Unlock()
		return
	}
	f.minute.Stop()
	level, more, addresses := f.level, f.more, len(f.addresses) // the next minute makes maps of its own
	f.minute, f.lines, f.level = nil, 0, zapcore.InfoLevel
	f.mu.Unlock() // the log may block
	var count uint64
	for n := range maps.Values(more) {
		count += n
	}
	if count > 0 {
		f.log.Log(level, f.sum, zap.Uint64("count", count), zap.Any("reasons", more), zap.Int("addresses", addresses))
	}
}
