package audit

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"go.uber.org/zap"

	"imapgate/internal/event"
)

// Types of sinks.
const (
	File   = "file"
	Stdout = "stdout"
	Syslog = "syslog"
	Redis  = "redis"
)

// sink is the destination of one sinkWriter. Only the writer's goroutine calls its
// methods.
type sink interface {
	// write writes whole lines from the front of lines and returns their length in
	// bytes.
	write(lines []byte) (int, error)
	// maintain does periodic work: it syncs what was written, and switches to a new file
	// when the old one was moved away.
	maintain() error
	close() error
}

// filter selects the records of one sink.
type filter struct {
	events  []string // empty: all
	results []string // empty: all
}

func newFilter(events, results []string) (filter, error) {
	for _, name := range events {
		if !event.Known(event.Event(name)) {
			return filter{}, fmt.Errorf("unknown event %q", name)
		}
	}
	for _, name := range results {
		if !slices.Contains(event.Values("Result", "record"), name) {
			return filter{}, fmt.Errorf("unknown result %q", name)
		}
	}
	return filter{events, results}, nil
}

// matches reports whether a record passes the filter. Records without a result are
// not filtered by result.
func (f *filter) matches(e event.Event, result string) bool {
	return (len(f.events) == 0 || slices.Contains(f.events, string(e))) &&
		(len(f.results) == 0 || result == "" || slices.Contains(f.results, result))
}

// sinkWriter is one sink with its own buffer and goroutine, so that a slow or broken
// sink does not delay the others.
type sinkWriter struct {
	// Set once.
	name         string
	blocksLogins bool // refuse logins while it fails
	filter       filter
	auditLog     *Log
	wake         chan struct{} // capacity 1: pending is no longer empty
	wakeNow      chan struct{} // capacity 1: pending has records that are not commands
	maintainNow  chan struct{} // capacity 1: maintain now

	// Owned by run.
	sink         sink
	batch        []byte // records being written
	batchRecords int    // number of records in batch
	batchWritten int    // bytes of batch already written

	// Guarded by auditLog.mu.
	pending         []byte // whole records, at most maxBufferedBytes plus one record
	bufferedRecords int    // number of records in pending and batch
	pendingRecords  int    // number of records in pending
	failing         bool   // the last write failed
	totalWritten    uint64 // records written since Open
	totalLost       uint64 // records lost since Open
	reportedLost    uint64 // part of totalLost that the sink has a record of
}

func (l *Log) openSinkWriter(cfg SinkSettings) (*sinkWriter, error) {
	w := &sinkWriter{auditLog: l, name: cmp.Or(cfg.Name, cfg.Type), wake: make(chan struct{}, 1), wakeNow: make(chan struct{}, 1), maintainNow: make(chan struct{}, 1)}
	switch policy := cmp.Or(cfg.OnFailure, l.cfg.OnFailure); policy {
	case "block":
		w.blocksLogins = true
	case "drop":
	default:
		return nil, fmt.Errorf("on_failure %q is not one of block, drop", policy)
	}
	var err error
	if w.filter, err = newFilter(cfg.Events, cfg.Results); err != nil {
		return nil, fmt.Errorf("sink %s: %w", w.name, err)
	}
	if w.sink, err = l.openSink(cfg); err != nil {
		return nil, err
	}
	return w, nil
}

func (l *Log) openSink(cfg SinkSettings) (sink, error) {
	switch cfg.Type {
	case File:
		return l.openFile(cfg.Path)
	case Stdout:
		return &file{file: os.Stdout, timeout: l.fileTimeout}, nil
	case Syslog:
		return newSyslog(cfg)
	case Redis:
		if l.cfg.Redis == nil {
			return nil, errors.New("a sink of type redis needs Redis")
		}
		return &redisStream{redis: l.cfg.Redis, key: cfg.Stream, maxRecords: int64(cfg.MaxRecords)}, nil
	}
	return nil, fmt.Errorf("unknown sink type %q", cfg.Type)
}

// isFullFor reports whether the buffer has no space for a record of priority p.
// auditLog.mu is held.
func (w *sinkWriter) isFullFor(p event.Priority) bool {
	switch {
	case p == event.PriorityRequired && w.blocksLogins:
		return w.bufferedRecords >= maxRecordsForLogin || len(w.pending) >= maxBufferedBytes/4*3
	case p == event.PriorityLow:
		return w.bufferedRecords >= maxRecordsForLow || len(w.pending) >= maxBufferedBytes/2
	}
	return w.bufferedRecords >= maxBufferedRecords || len(w.pending) >= maxBufferedBytes
}

// bufferRecord adds a record to pending. auditLog.mu is held.
func (w *sinkWriter) bufferRecord(record []byte) {
	w.pending = append(w.pending, record...)
	w.bufferedRecords++
	w.pendingRecords++
}

// signal wakes run for the last added record. auditLog.mu is held.
func (w *sinkWriter) signal(e event.Event) {
	ch := w.wakeNow
	switch {
	case e != event.CommandEvent || w.pendingRecords == commandBurst:
	case w.pendingRecords == 1:
		ch = w.wake
	default:
		return
	}
	select {
	case ch <- struct{}{}:
	default: // already signaled
	}
}

// run is the writer's goroutine. It writes records until Close, with one last
// attempt then. Only run uses the sink.
func (w *sinkWriter) run() {
	defer func() { _ = w.sink.close() }() // unwritten records stay in bufferedRecords, which Close reports
	ticker := time.NewTicker(w.auditLog.maintenance)
	defer ticker.Stop()
	var due <-chan time.Time
	var urgent bool // due is the short delay
	for {
		select {
		case <-w.wake:
			if due == nil {
				due = time.After(commandFlushDelay)
			}
		case <-w.wakeNow:
			if !urgent {
				due, urgent = time.After(flushDelay), true
			}
		case <-due:
			due, urgent = nil, false
			if !w.isFailing() { // maintain tries again
				w.flush()
			}
		case <-ticker.C:
			w.maintain()
		case <-w.maintainNow:
			w.maintain()
		case <-w.auditLog.stop:
			w.flush()
			w.maintain()
			return
		}
	}
}

// flush finishes a batch that a failed write left over, and then writes the pending
// records. Records that arrive during the write wait as usual: writing each one as
// it arrives would cost more than all other work.
func (w *sinkWriter) flush() {
	if w.writeBatch() && w.swapBatch() {
		w.writeBatch()
	}
}

// writeBatch writes the rest of the batch, and reports whether the sink accepted all
// of it.
func (w *sinkWriter) writeBatch() bool {
	for w.batchWritten < len(w.batch) {
		n, err := w.sink.write(w.batch[w.batchWritten:])
		w.recordResult(bytes.Count(w.batch[w.batchWritten:w.batchWritten+n], []byte{'\n'}), err)
		w.batchWritten += n
		if err != nil {
			return false
		}
	}
	w.auditLog.mu.Lock()
	defer w.auditLog.mu.Unlock()
	w.bufferedRecords -= w.batchRecords
	w.batchRecords = 0
	return true
}

// maintain does the sink's periodic work and writes the pending records.
func (w *sinkWriter) maintain() {
	err := w.sink.maintain()
	if err != nil {
		w.recordResult(0, err)
	}
	w.flush()
	if err == nil && w.batchWritten == len(w.batch) { // otherwise the next write decides
		w.recordResult(0, nil)
	}
}

// swapBatch makes the pending records the next batch, and reuses the old batch's
// buffer.
func (w *sinkWriter) swapBatch() bool {
	if cap(w.batch) > maxKeptBuffer {
		w.batch = nil
	}
	w.auditLog.mu.Lock()
	defer w.auditLog.mu.Unlock()
	if w.totalLost > w.reportedLost {
		record := appendCount(new(headerWriter).appendHeader(nil, event.RecordsLost), "lost", w.totalLost-w.reportedLost)
		w.reportedLost = w.totalLost
		w.bufferRecord(append(record, '}', '\n'))
	}
	w.batch, w.pending = w.pending, w.batch[:0]
	w.batchWritten, w.batchRecords, w.pendingRecords = 0, w.bufferedRecords, 0
	return len(w.batch) > 0
}

func (w *sinkWriter) isFailing() bool {
	w.auditLog.mu.Lock()
	defer w.auditLog.mu.Unlock()
	return w.failing
}

// recordResult counts written records, and marks the sink as failing if err is not
// nil. It logs a change.
func (w *sinkWriter) recordResult(written int, err error) {
	w.auditLog.mu.Lock()
	w.totalWritten += uint64(written)
	wasFailing, lost := w.failing, w.totalLost
	w.failing = err != nil
	w.auditLog.mu.Unlock()
	switch {
	case err != nil && !wasFailing:
		w.auditLog.log.Error("audit log cannot be written", zap.String("sink", w.name),
			zap.Bool("new_logins_blocked", w.blocksLogins), zap.Error(err))
	case err == nil && wasFailing:
		w.auditLog.log.Info("audit log is written again", zap.String("sink", w.name), zap.Uint64("lost_since_start", lost))
	}
}
