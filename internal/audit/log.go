package audit

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"

	"imapgate/internal/event"
)

const (
	// maxBufferedRecords and maxBufferedBytes bound the buffer of one sink. Logins stop
	// at three quarters, so that the ends of live sessions still fit.
	maxBufferedRecords = 10_000
	maxBufferedBytes   = 8 << 20
	maxRecordsForLogin = maxBufferedRecords / 4 * 3
	// maxRecordsForLow reserves the rest for logins and ends: when a backend restarts,
	// all its sessions lose their upstream at once, and unauthenticated clients connect
	// without bound.
	maxRecordsForLow = maxBufferedRecords / 2
	// maxKeptBuffer is the largest buffer kept after a burst.
	maxKeptBuffer = 256 << 10
	// flushDelay collects records for one write. Commands may arrive by the ten thousand
	// a second, and each write takes CPU time from the sessions. They therefore wait
	// longer, unless there are many of them.
	flushDelay        = 5 * time.Millisecond
	commandFlushDelay = 50 * time.Millisecond
	commandBurst      = maxRecordsForLow / 2
	// maintainInterval is how often a file is synced and checked for rotation, and a
	// failed sink is tried again.
	maintainInterval = time.Second
	// sinkTimeout bounds one write to a sink whose reader has stopped.
	sinkTimeout = 5 * time.Second
	// aggregateCheckInterval is how often the counts are checked for due records.
	aggregateCheckInterval = 10 * time.Second
)

// ErrUnavailable is what Ready returns, possibly wrapped, while records cannot be
// written.
var ErrUnavailable = errors.New("audit log is unavailable")

var (
	errFull        = fmt.Errorf("%w: too many records are waiting to be written", ErrUnavailable)
	errSinkFailing = fmt.Errorf("%w: the last write failed", ErrUnavailable)
	errClosed      = fmt.Errorf("%w: closed", ErrUnavailable)
)

// Config is the configuration of a Log.
type Config struct {
	Settings
	Redis redis.UniversalClient // for sinks of the type redis
}

// Log is an open audit log. Its methods may be called by any goroutine and never
// wait for a sink.
type Log struct {
	// Set once.
	cfg         Config
	log         *zap.Logger
	fileTimeout time.Duration // sinkTimeout, but in tests
	maintenance time.Duration // maintainInterval, but in tests
	writers     []*sinkWriter
	stop        chan struct{} // closed by Close
	writersDone sync.WaitGroup

	// Close ends the aggregation before the writers, so that its last records are still
	// written.
	stopAggregates context.CancelFunc
	aggregatesDone sync.WaitGroup

	limitHits  limitHitAggregator
	aggregator aggregator
	probes     probeAggregator

	mu sync.Mutex
	// Guarded by mu, as are the fields of sink writers that say so.
	record []byte // one record
	header headerWriter
	closed bool
}

// Open opens the log and starts its writers. It appends to an existing file. A
// server that is down is not an error, but with on_failure: block the log is not
// ready.
func Open(cfg Config, log *zap.Logger) (*Log, error) { return newLog(cfg, log).start() }

// newLog returns a Log that is not started.
func newLog(cfg Config, log *zap.Logger) *Log {
	return &Log{
		cfg: cfg, log: log, fileTimeout: sinkTimeout, maintenance: maintainInterval,
		stop: make(chan struct{}), aggregator: aggregator{maxSinglesPerKey: cfg.FirstPerMinute},
	}
}

// start opens the sinks and starts their writers.
func (l *Log) start() (*Log, error) {
	sinks := l.cfg.Sinks
	if len(sinks) == 0 && l.cfg.Path != "" {
		sinks = []SinkSettings{sinkForPath(l.cfg.Path)}
	}
	for _, s := range sinks {
		w, err := l.openSinkWriter(s)
		if err != nil {
			for _, opened := range l.writers {
				_ = opened.sink.close() // no record was written
			}
			return nil, fmt.Errorf("audit: %w", err)
		}
		l.writers = append(l.writers, w)
	}
	for _, w := range l.writers {
		l.writersDone.Go(w.run)
	}
	ctx, cancel := context.WithCancel(context.Background())
	l.stopAggregates = cancel
	l.aggregatesDone.Go(func() { l.runAggregates(ctx) })
	return l, nil
}

// Ready returns nil while records can be written. With on_failure: block the gateway
// must refuse logins while it returns an error; with drop it is always nil.
func (l *Log) Ready() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.readyLocked()
}

// readyLocked is Ready with mu held.
func (l *Log) readyLocked() error {
	for _, w := range l.writers {
		switch {
		case !w.blocksLogins:
		case l.closed:
			return errClosed
		case w.failing:
			return errSinkFailing
		case w.isFullFor(event.PriorityRequired):
			return errFull
		}
	}
	return nil
}

// LostRecords returns the number of records lost since Open, by all sinks.
func (l *Log) LostRecords() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	var sum uint64
	for _, w := range l.writers {
		sum += w.totalLost
	}
	return sum
}

// SinkStatus is the state of one sink.
type SinkStatus struct {
	Name           string
	WrittenRecords uint64
	LostRecords    uint64
	Failing        bool // the last write failed
}

// Sinks returns the state of each sink.
func (l *Log) Sinks() []SinkStatus {
	l.mu.Lock()
	defer l.mu.Unlock()
	list := make([]SinkStatus, len(l.writers))
	for i, w := range l.writers {
		list[i] = SinkStatus{Name: w.name, WrittenRecords: w.totalWritten, LostRecords: w.totalLost, Failing: w.failing}
	}
	return list
}

// Reopen makes the writers check their paths for a new file at once, after a log
// rotation by rename. Without it they notice within a second.
func (l *Log) Reopen() {
	for _, w := range l.writers {
		select {
		case w.maintainNow <- struct{}{}:
		default: // already requested
		}
	}
}

// Close writes the waiting records, and syncs and closes the sinks. It waits a
// bounded time for a reader that has stopped reading.
func (l *Log) Close() error {
	l.stopAggregates()
	l.aggregatesDone.Wait()
	l.writeDueAggregates(time.Now().Add(limitHitInterval)) // as if their minute were over
	l.mu.Lock()
	wasClosed := l.closed
	l.closed = true
	l.mu.Unlock()
	if !wasClosed {
		close(l.stop)
	}
	done := make(chan struct{})
	go l.awaitWriters(done)
	select {
	case <-done:
	case <-time.After(2 * l.fileTimeout): // a blocked standard output cannot be interrupted
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	unwritten := 0
	for _, w := range l.writers {
		unwritten += w.bufferedRecords
	}
	if unwritten > 0 {
		return fmt.Errorf("audit: %d records were not written before the end", unwritten)
	}
	return nil
}

// awaitWriters is a goroutine of Close. It ends after the writers, which is never
// while standard output is blocked.
func (l *Log) awaitWriters(done chan<- struct{}) {
	l.writersDone.Wait()
	close(done)
}

// runAggregates is a goroutine that ends with Close. It writes the records of
// counted events.
func (l *Log) runAggregates(ctx context.Context) {
	ticker := time.NewTicker(aggregateCheckInterval)
	defer ticker.Stop()
	for {
		select {
		case now := <-ticker.C:
			l.writeDueAggregates(now)
		case <-ctx.Done():
			return
		}
	}
}

func (l *Log) writeDueAggregates(now time.Time) {
	l.writeAggregates(now)
	for _, p := range l.probes.takeDue(now) {
		l.writeProbe(&p)
	}
	for k, count := range l.limitHits.takeDue(now) {
		_ = l.writeLimitHit(&Client{}, &LimitHit{Limit: k.limit, Result: k.result, Subject: k.subject}, count) // an error is counted as lost
	}
}

// appendRecord builds a record with appendFields and adds it to the buffer of each
// sink whose filter matches. A sink with a full buffer counts it as lost.
// appendRecord returns the result of Ready, and for a required record nil once it is
// buffered.
func (l *Log) appendRecord(m recordMeta, appendFields func([]byte) []byte) error {
	if len(l.writers) == 0 {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.readyLocked(); err != nil && m.event.Priority() == event.PriorityRequired {
		return err
	}
	l.record = append(appendFields(l.header.appendHeader(l.record[:0], m.event)), '}', '\n')
	for _, w := range l.writers {
		switch {
		case !w.filter.matches(m):
		case l.closed || w.isFullFor(m.event.Priority()):
			w.totalLost++
		default:
			w.bufferRecord(l.record)
			w.signal(m.event)
		}
	}
	if m.event.Priority() == event.PriorityRequired {
		return nil
	}
	return l.readyLocked()
}

// appendReason appends a reason. A value outside the closed set is written as
// internal, so that readers can rely on the set.
func appendReason(b []byte, reason event.Reason) []byte {
	if !reason.Known() {
		reason = event.InternalError
	}
	b = append(b, `,"reason":"`...)
	b = append(b, reason...)
	return append(b, '"')
}

// appendAddress appends an address without its IPv6 zone, which is the name of an
// interface.
func appendAddress(b []byte, key string, a netip.AddrPort) []byte {
	if !a.IsValid() {
		return b
	}
	b = append(b, ',', '"')
	b = append(b, key...)
	b = append(b, '"', ':', '"')
	b = netip.AddrPortFrom(a.Addr().Unmap().WithZone(""), a.Port()).AppendTo(b)
	return append(b, '"')
}

func appendCount(b []byte, key string, n uint64) []byte {
	b = append(b, ',', '"')
	b = append(b, key...)
	b = append(b, '"', ':')
	return strconv.AppendUint(b, n, 10)
}

// appendNonZero is appendCount, but appends nothing for 0.
func appendNonZero(b []byte, key string, n uint64) []byte {
	if n == 0 {
		return b
	}
	return appendCount(b, key, n)
}

func milliseconds(d time.Duration) uint64 { return uint64(max(d, 0).Milliseconds()) }

func appendDuration(b []byte, d time.Duration) []byte {
	return appendCount(b, "duration_ms", milliseconds(d))
}
