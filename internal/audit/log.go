package audit

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"go.uber.org/zap"
)

const (
	// maxWaiting and maxPending bound what waits for the file. Logins stop at
	// three quarters, so that the ends of live sessions still find room.
	maxWaiting   = 10_000
	maxPending   = 8 << 20
	fullForLogin = maxWaiting / 4 * 3
	// fullForMux leaves the room above it to logins and ends: when a backend
	// restarts, all its sessions lose their upstream at once.
	fullForMux = maxWaiting / 2
	// keepBuffer is the largest buffer kept after a burst.
	keepBuffer = 256 << 10
	// linger lets records that come together go out in one write.
	linger = 5 * time.Millisecond
	// beat is how often the file is synced, checked for rotation, and tried
	// again after a failure.
	beat = time.Second
	// closeWait bounds how long Close waits for a reader that has stopped.
	closeWait = 5 * time.Second
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
	Path      string // a file or FIFO; "-" is standard output; "" keeps no log
	OnFailure string // "block" (also "") or "drop"
}

// Log is an open audit log. Its methods may be called by any goroutine and
// never wait for the file.
type Log struct {
	// Set once.
	cfg    Config
	log    *zap.Logger
	wake   chan struct{} // of 1: pending is no longer empty
	reopen chan struct{} // of 1
	stop   chan struct{} // closed by Close
	done   chan struct{} // closed by run

	writer // Owned by run.

	mu sync.Mutex
	// Guarded by mu.
	pending []byte // whole records, at most maxPending and one more
	waiting int    // records in pending and in the writer's batch
	failed  bool   // the last write or sync failed
	closed  bool
	lost    uint64 // records that could not be kept, ever
	told    uint64 // of these, how many the log itself speaks of
}

// Open opens the log and starts its writer. An existing file is appended to.
func Open(cfg Config, log *zap.Logger) (*Log, error) {
	switch cfg.OnFailure {
	case "", "block", "drop":
	default:
		return nil, fmt.Errorf("audit: on_failure %q is not one of block, drop", cfg.OnFailure)
	}
	l := &Log{cfg: cfg, log: log, wake: make(chan struct{}, 1), reopen: make(chan struct{}, 1),
		stop: make(chan struct{}), done: make(chan struct{})}
	if cfg.Path == "" {
		close(l.done)
		return l, nil
	}
	var err error
	if l.sink, err = openSink(cfg.Path); err != nil {
		return nil, fmt.Errorf("audit: %w", err)
	}
	go l.run()
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
	switch {
	case l.cfg.OnFailure == "drop" || l.cfg.Path == "":
		return nil
	case l.closed:
		return errClosed
	case l.failed:
		return errSink
	case l.waiting >= fullForLogin || len(l.pending) >= maxPending/4*3:
		return errFull
	}
	return nil
}

// Lost is how many records could not be kept since Open.
func (l *Log) Lost() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lost
}

// Reopen makes the writer open the path anew, for log rotation by rename. A
// file that was renamed or removed is also noticed without it, within a second.
func (l *Log) Reopen() {
	select {
	case l.reopen <- struct{}{}:
	default: // asked already
	}
}

// Close writes what is waiting, syncs and closes the file. It waits a bounded
// time for a reader that does not read.
func (l *Log) Close() error {
	l.mu.Lock()
	again := l.closed
	l.closed = true
	l.mu.Unlock()
	if !again {
		close(l.stop)
	}
	select {
	case <-l.done:
	case <-time.After(2 * closeWait): // a blocked standard output cannot be interrupted
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.waiting > 0 {
		return fmt.Errorf("audit: %d records could not be written before the end", l.waiting)
	}
	return nil
}

// add appends the record that fill makes, or counts it as lost, and returns
// what Ready would.
func (l *Log) add(fill func([]byte) []byte) error {
	if l.cfg.Path == "" {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || l.waiting >= maxWaiting || len(l.pending) >= maxPending {
		l.lost++
		return l.ready()
	}
	l.append(fill)
	return l.ready()
}

// addIfReady is add for a record that permits something: without it, nothing
// is permitted, so nothing is recorded either.
func (l *Log) addIfReady(fill func([]byte) []byte) error {
	if l.cfg.Path == "" {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.ready(); err != nil {
		return err
	}
	if l.closed || l.waiting >= maxWaiting || len(l.pending) >= maxPending {
		l.lost++ // on_failure: drop
		return nil
	}
	l.append(fill)
	return nil
}

// addIfRoom is add for a record of something that neither lets anybody in nor
// ends: a burst of these is lost, and counted, before it keeps others out.
func (l *Log) addIfRoom(fill func([]byte) []byte) error {
	if l.cfg.Path == "" {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || l.waiting >= fullForMux || len(l.pending) >= maxPending/2 {
		l.lost++
		return l.ready()
	}
	l.append(fill)
	return l.ready()
}

// append adds a record to pending; mu is held.
func (l *Log) append(fill func([]byte) []byte) {
	if len(l.pending) == 0 {
		select {
		case l.wake <- struct{}{}:
		default: // the writer knows
		}
	}
	l.pending = append(fill(l.pending), '}', '\n')
	l.waiting++
}
