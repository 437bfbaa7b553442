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
	// maxWaiting and maxPending bound what waits for one sink. Logins stop at
	// three quarters, so that the ends of live sessions still find room.
	maxWaiting   = 10_000
	maxPending   = 8 << 20
	fullForLogin = maxWaiting / 4 * 3
	// fullForRest leaves the room above it to logins and ends: when a backend
	// restarts, all its sessions lose their upstream at once, and strangers come
	// without end.
	fullForRest = maxWaiting / 2
	// keepBuffer is the largest buffer kept after a burst.
	keepBuffer = 256 << 10
	// linger lets records that come together go out in one write. Commands come by
	// the ten thousand a second, and each write takes a processor from those who
	// issue them: they wait for longer, but not when they are many.
	linger         = 5 * time.Millisecond
	lingerCommands = 50 * time.Millisecond
	many           = fullForRest / 2
	// beat is how often a file is synced, checked for rotation, and a sink tried
	// again after a failure.
	beat = time.Second
	// sinkWait bounds one write to a sink whose reader has stopped.
	sinkWait = 5 * time.Second
	// tellCounts is how often it is looked for counts that are due.
	tellCounts = 10 * time.Second
)

// ErrUnavailable is what Ready returns, wrapped or not, while records cannot
// be kept.
var ErrUnavailable = errors.New("audit log is not available")

var (
	errFull   = fmt.Errorf("%w: too many records wait to be written", ErrUnavailable)
	errSink   = fmt.Errorf("%w: the last write failed", ErrUnavailable)
	errClosed = fmt.Errorf("%w: closed", ErrUnavailable)
)

// Config is the `audit` block of the configuration.
type Config struct {
	Path      string   // short for one sink: a file or FIFO; "-" is standard output; "" is none
	OnFailure string   // of each sink that does not say: "block" (also "") or "drop"
	Commands  Commands // "" is none
	Chain     bool     // records in regular files are chained by hashes
	Sinks     []SinkConfig
	// First is how many ends of connections without a login, and how many refusals without
	// a look at the credentials, have a record of their own: of one address for one reason
	// in a minute. The others are counted in one at its end. 0: each has its own.
	First int
	Redis redis.UniversalClient // for sinks of the type redis
}

// Log is an open audit log. Its methods may be called by any goroutine and
// never wait for a sink.
type Log struct {
	// Set once.
	cfg     Config
	log     *zap.Logger
	outlets []*outlet
	stop    chan struct{} // closed by Close
	working sync.WaitGroup

	// The counting ends first: what it says at the same time would come too late.
	enough   context.CancelFunc
	counting sync.WaitGroup

	hits   hits
	folds  folds
	probes probes

	mu sync.Mutex
	// Guarded by mu, as are the parts of outlets that say so.
	scratch []byte // one record
	stamp   stamp
	closed  bool
}

// Open opens the log and starts its writers. An existing file is appended to;
// a server that is away is no error, but keeps a log that blocks from being ready.
func Open(cfg Config, log *zap.Logger) (*Log, error) {
	l := &Log{cfg: cfg, log: log, stop: make(chan struct{}), folds: folds{first: cfg.First}}
	sinks := cfg.Sinks
	if cfg.Path != "" {
		sinks = append([]SinkConfig{pathSink(cfg.Path)}, sinks...)
	}
	for _, s := range sinks {
		o, err := l.openOutlet(s)
		if err != nil {
			for _, made := range l.outlets {
				_ = made.sink.close() // nothing was written
			}
			return nil, fmt.Errorf("audit: %w", err)
		}
		l.outlets = append(l.outlets, o)
	}
	for _, o := range l.outlets {
		l.working.Go(o.run)
	}
	ctx, enough := context.WithCancel(context.Background())
	l.enough = enough
	l.counting.Go(func() { l.tellCounts(ctx) })
	return l, nil
}

// Ready is nil while records can be kept. With on_failure: block the front
// door must let nobody in while it is not; with drop it is always nil.
func (l *Log) Ready() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.ready()
}

// ready is Ready with mu held.
func (l *Log) ready() error {
	for _, o := range l.outlets {
		switch {
		case !o.block:
		case l.closed:
			return errClosed
		case o.failed:
			return errSink
		case o.fullFor(permits):
			return errFull
		}
	}
	return nil
}

// Lost is how many records could not be kept since Open, by all sinks.
func (l *Log) Lost() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	var sum uint64
	for _, o := range l.outlets {
		sum += o.lost
	}
	return sum
}

// Sink is how one sink fares.
type Sink struct {
	Name    string
	Written uint64 // records
	Lost    uint64 // records
	Failed  bool   // the last write failed
}

// Sinks says how each sink fares.
func (l *Log) Sinks() []Sink {
	l.mu.Lock()
	defer l.mu.Unlock()
	list := make([]Sink, len(l.outlets))
	for i, o := range l.outlets {
		list[i] = Sink{Name: o.name, Written: o.kept, Lost: o.lost, Failed: o.failed}
	}
	return list
}

// Reopen makes the writers look at once whether another file stands at their
// path, for log rotation by rename. Without it they notice within a second.
func (l *Log) Reopen() {
	for _, o := range l.outlets {
		select {
		case o.look <- struct{}{}:
		default: // asked already
		}
	}
}

// Close writes what is waiting, syncs and closes the sinks. It waits a bounded
// time for a reader that does not read.
func (l *Log) Close() error {
	l.enough()
	l.counting.Wait()
	l.sayCounts(time.Now().Add(hitEvery)) // as if their minute were over
	l.mu.Lock()
	again := l.closed
	l.closed = true
	l.mu.Unlock()
	if !again {
		close(l.stop)
	}
	done := make(chan struct{})
	go l.awaitWriters(done)
	select {
	case <-done:
	case <-time.After(2 * sinkWait): // a blocked standard output cannot be interrupted
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	waiting := 0
	for _, o := range l.outlets {
		waiting += o.waiting
	}
	if waiting > 0 {
		return fmt.Errorf("audit: not all was written before the end, records left: %d", waiting)
	}
	return nil
}

// awaitWriters is a goroutine of Close; it ends when the writers have, which is
// never while standard output is blocked.
func (l *Log) awaitWriters(done chan<- struct{}) {
	l.working.Wait()
	close(done)
}

// tellCounts is a goroutine that ends with Close: it writes down what was counted and
// has no record of its own.
func (l *Log) tellCounts(ctx context.Context) {
	ticker := time.NewTicker(tellCounts)
	defer ticker.Stop()
	for {
		select {
		case now := <-ticker.C:
			l.sayCounts(now)
		case <-ctx.Done():
			return
		}
	}
}

func (l *Log) sayCounts(now time.Time) {
	l.writeFolds(now)
	for _, p := range l.probes.due(now) {
		l.writeProbe(&p)
	}
	for k, count := range l.hits.due(now) {
		_ = l.limitHit(&Client{}, &Hit{Limit: k.limit, Measure: k.measure, Subject: k.subject}, count) // else it counts as lost
	}
}

// add makes a record, whose fields fill writes, and gives it to each sink that wants
// it; a sink without room for it counts it as lost. It returns what Ready would.
func (l *Log) add(n note, fill func([]byte) []byte) error {
	if len(l.outlets) == 0 {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.ready(); err != nil && n.weight == permits {
		return err
	}
	l.scratch = append(fill(l.stamp.start(l.scratch[:0], n.kind)), '}', '\n')
	for _, o := range l.outlets {
		switch {
		case !o.only.wants(n):
		case l.closed || o.fullFor(n.weight):
			o.lost++
		default:
			o.append(l.scratch)
			o.stir(n.kind)
		}
	}
	if n.weight == permits {
		return nil
	}
	return l.ready()
}
