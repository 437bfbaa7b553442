package audit

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"
)

const (
	// maxBufferedRecords and maxBufferedBytes bound what waits for one sink. Logins stop at
	// three quarters, so that the ends of live sessions still find room.
	maxBufferedRecords = 10_000
	maxBufferedBytes   = 8 << 20
	maxRecordsForLogin = maxBufferedRecords / 4 * 3
	// maxRecordsForLow leaves the room above it to logins and ends: when a backend
	// restarts, all its sessions lose their upstream at once, and strangers come
	// without end.
	maxRecordsForLow = maxBufferedRecords / 2
	// maxKeptBuffer is the largest buffer kept after a burst.
	maxKeptBuffer = 256 << 10
	// flushDelay lets records that come together go out in one write. Commands come by
	// the ten thousand a second, and each write takes a processor from those who
	// issue them: they wait for longer, but not when they are many.
	flushDelay        = 5 * time.Millisecond
	commandFlushDelay = 50 * time.Millisecond
	commandBurst      = maxRecordsForLow / 2
	// maintainInterval is how often a file is synced, checked for rotation, and a sink tried
	// again after a failure.
	maintainInterval = time.Second
	// sinkTimeout bounds one write to a sink whose reader has stopped.
	sinkTimeout = 5 * time.Second
	// aggregateCheckInterval is how often it is looked for counts that are due.
	aggregateCheckInterval = 10 * time.Second
)

// ErrUnavailable is what Ready returns, wrapped or not, while records cannot
// be kept.
var ErrUnavailable = errors.New("audit log is not available")

var (
	errFull        = fmt.Errorf("%w: too many records wait to be written", ErrUnavailable)
	errSinkFailing = fmt.Errorf("%w: the last write failed", ErrUnavailable)
	errClosed      = fmt.Errorf("%w: closed", ErrUnavailable)
)

// Config is the `audit` block of the configuration.
type Config struct {
	Path      string        // short for one sink: a file or FIFO; "-" is standard output; "" is none
	OnFailure string        // of each sink that does not say: "block" (also "") or "drop"
	Commands  CommandFilter // "" is none
	Chain     bool          // records in regular files are chained by hashes
	Sinks     []SinkConfig
	// FirstPerMinute is how many ends of connections without a login, and how many refusals without
	// a look at the credentials, have a record of their own: of one address for one reason
	// in a minute. The others are counted in one at its end. 0: each has its own.
	FirstPerMinute int
	Redis          redis.UniversalClient // for sinks of the type redis
}

// Log is an open audit log. Its methods may be called by any goroutine and
// never wait for a sink.
type Log struct {
	// Set once.
	cfg         Config
	log         *zap.Logger
	writers     []*sinkWriter
	stop        chan struct{} // closed by Close
	writersDone sync.WaitGroup

	// The counting ends first: what it says at the same time would come too late.
	stopAggregates context.CancelFunc
	aggregatesDone sync.WaitGroup

	limitHits  limitHitAggregator
	aggregator aggregator
	probes     probeAggregator

	mu sync.Mutex
	// Guarded by mu, as are the parts of outlets that say so.
	record []byte // one record
	header headerWriter
	closed bool
}

// Open opens the log and starts its writers. An existing file is appended to;
// a server that is away is no error, but keeps a log that blocks from being ready.
func Open(cfg Config, log *zap.Logger) (*Log, error) {
	l := &Log{cfg: cfg, log: log, stop: make(chan struct{}), aggregator: aggregator{maxSinglesPerKey: cfg.FirstPerMinute}}
	sinks := cfg.Sinks
	if cfg.Path != "" {
		sinks = append([]SinkConfig{sinkForPath(cfg.Path)}, sinks...)
	}
	for _, s := range sinks {
		w, err := l.openSinkWriter(s)
		if err != nil {
			for _, opened := range l.writers {
				_ = opened.sink.close() // nothing was written
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

// Ready is nil while records can be kept. With on_failure: block the front
// door must let nobody in while it is not; with drop it is always nil.
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
		case w.isFullFor(priorityRequired):
			return errFull
		}
	}
	return nil
}

// LostRecords is how many records could not be kept since Open, by all sinks.
func (l *Log) LostRecords() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	var sum uint64
	for _, w := range l.writers {
		sum += w.totalLost
	}
	return sum
}

// SinkStatus is how one sink fares.
type SinkStatus struct {
	Name           string
	WrittenRecords uint64 // records
	LostRecords    uint64 // records
	Failing        bool   // the last write failed
}

// Sinks says how each sink fares.
func (l *Log) Sinks() []SinkStatus {
	l.mu.Lock()
	defer l.mu.Unlock()
	list := make([]SinkStatus, len(l.writers))
	for i, w := range l.writers {
		list[i] = SinkStatus{Name: w.name, WrittenRecords: w.totalWritten, LostRecords: w.totalLost, Failing: w.failing}
	}
	return list
}

// Reopen makes the writers look at once whether another file stands at their
// path, for log rotation by rename. Without it they notice within a second.
func (l *Log) Reopen() {
	for _, w := range l.writers {
		select {
		case w.maintainNow <- struct{}{}:
		default: // asked already
		}
	}
}

// Close writes what is waiting, syncs and closes the sinks. It waits a bounded
// time for a reader that does not read.
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
	case <-time.After(2 * sinkTimeout): // a blocked standard output cannot be interrupted
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	unwritten := 0
	for _, w := range l.writers {
		unwritten += w.bufferedRecords
	}
	if unwritten > 0 {
		return fmt.Errorf("audit: not all was written before the end, records left: %d", unwritten)
	}
	return nil
}

// awaitWriters is a goroutine of Close; it ends when the writers have, which is
// never while standard output is blocked.
func (l *Log) awaitWriters(done chan<- struct{}) {
	l.writersDone.Wait()
	close(done)
}

// runAggregates is a goroutine that ends with Close: it writes down what was counted and
// has no record of its own.
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
		_ = l.writeLimitHit(&Client{}, &LimitHit{Limit: k.limit, Result: k.result, Subject: k.subject}, count) // else it counts as lost
	}
}

// appendRecord makes a record, whose fields fill writes, and gives it to each sink that wants
// it; a sink without room for it counts it as lost. It returns what Ready would.
func (l *Log) appendRecord(m recordMeta, appendFields func([]byte) []byte) error {
	if len(l.writers) == 0 {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.readyLocked(); err != nil && m.priority == priorityRequired {
		return err
	}
	l.record = append(appendFields(l.header.appendHeader(l.record[:0], m.eventType)), '}', '\n')
	for _, w := range l.writers {
		switch {
		case !w.filter.matches(m):
		case l.closed || w.isFullFor(m.priority):
			w.totalLost++
		default:
			w.bufferRecord(l.record)
			w.signal(m.eventType)
		}
	}
	if m.priority == priorityRequired {
		return nil
	}
	return l.readyLocked()
}
