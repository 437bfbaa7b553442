package audit

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"
)

// Types of sinks.
const (
	File   = "file"
	Stdout = "stdout"
	Syslog = "syslog"
	Redis  = "redis"
)

// SinkConfig is one place where records go.
type SinkConfig struct {
	Type      string
	Name      string   // in logs and metrics; "" is the type
	OnFailure string   // "" is that of the Config
	Events    []string // the only ones it gets; none: all
	Results   []string // of records that have a result, the only ones it gets; none: all

	Path string // of a file or FIFO

	Address  string             // of a syslog server: unix:///dev/log, tcp://host:port, tls://host:port
	TLS      func() *tls.Config // for connections to tls:// that begin now
	Facility string             // "" is authpriv
	Format   string             // RFC3164 or RFC5424; "" is the first for unix://, the second for others

	Stream     string // the key of a Redis stream
	MaxRecords int64  // about how many records it keeps
}

func sinkForPath(path string) SinkConfig {
	if path == "-" {
		return SinkConfig{Type: Stdout}
	}
	return SinkConfig{Type: File, Path: path}
}

// sink is where the records of one outlet go. Its methods are called by one
// goroutine.
type sink interface {
	// write takes whole lines from the front of lines and says how many bytes
	// those are.
	write(lines []byte) (int, error)
	// maintain does what is due now and then: makes durable what was written, goes
	// on in a new file when the old one was moved away.
	maintain() error
	close() error
}

// sinkWriter is one sink with its own buffer and goroutine, so that one that is
// slow or broken holds up no other.
type sinkWriter struct {
	// Set once.
	name         string
	blocksLogins bool // no logins while it fails
	filter       filter
	auditLog     *Log
	wake         chan struct{} // of 1: pending is no longer empty
	wakeNow      chan struct{} // of 1: and there is something in it that is not to wait for long
	maintainNow  chan struct{} // of 1: tend now

	// Owned by run.
	sink         sink
	batch        []byte // records being written
	batchRecords int    // how many those are
	batchWritten int    // bytes of batch that the sink has

	// Guarded by of.mu.
	pending         []byte // whole records, at most maxBufferedBytes and one more
	bufferedRecords int    // records in pending and in batch
	pendingRecords  int    // records in pending
	failing         bool   // the last write failed
	totalWritten    uint64 // records written, ever
	totalLost       uint64 // records that could not be kept, ever
	reportedLost    uint64 // of these, how many the sink was told of
}

func (l *Log) openSinkWriter(cfg SinkConfig) (*sinkWriter, error) {
	w := &sinkWriter{auditLog: l, name: cfg.Name, wake: make(chan struct{}, 1), wakeNow: make(chan struct{}, 1), maintainNow: make(chan struct{}, 1)}
	if w.name == "" {
		w.name = cfg.Type
	}
	policy := cfg.OnFailure
	if policy == "" {
		policy = l.cfg.OnFailure
	}
	switch policy {
	case "", "block":
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

func (l *Log) openSink(cfg SinkConfig) (sink, error) {
	switch cfg.Type {
	case File:
		return openFile(cfg.Path, l.cfg.Chain, l.log)
	case Stdout:
		return newStdout(), nil
	case Syslog:
		return newSyslog(cfg)
	case Redis:
		if l.cfg.Redis == nil {
			return nil, errors.New("a sink of the type redis needs Redis")
		}
		return newRedisStream(l.cfg.Redis, cfg), nil
	}
	return nil, fmt.Errorf("there is no sink of the type %q", cfg.Type)
}

// isFullFor says whether there is no room for a record of weight w; of.mu is held.
func (w *sinkWriter) isFullFor(p priority) bool {
	switch {
	case p == priorityRequired && w.blocksLogins:
		return w.bufferedRecords >= maxRecordsForLogin || len(w.pending) >= maxBufferedBytes/4*3
	case p == priorityLow:
		return w.bufferedRecords >= maxRecordsForLow || len(w.pending) >= maxBufferedBytes/2
	}
	return w.bufferedRecords >= maxBufferedRecords || len(w.pending) >= maxBufferedBytes
}

// bufferRecord adds a record to pending; of.mu is held.
func (w *sinkWriter) bufferRecord(record []byte) {
	w.pending = append(w.pending, record...)
	w.bufferedRecords++
	w.pendingRecords++
}

// signal has run see to the record that was added last; of.mu is held.
func (w *sinkWriter) signal(t eventType) {
	ch := w.wakeNow
	switch {
	case t != command || w.pendingRecords == commandBurst:
	case w.pendingRecords == 1:
		ch = w.wake
	default:
		return
	}
	select {
	case ch <- struct{}{}:
	default: // run knows
	}
}

// run is the outlet's goroutine: it writes records until Close was called and
// one last attempt was made. It is the only one to touch the sink.
func (w *sinkWriter) run() {
	defer func() { _ = w.sink.close() }() // what was not written is counted as waiting
	ticker := time.NewTicker(maintainInterval)
	defer ticker.Stop()
	var due <-chan time.Time
	var urgent bool // due is
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
			if !w.isFailing() { // the beat tries again
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

// flush writes what a failed write left over, where it stopped, and then what
// waits. Records that come meanwhile linger like others: to write each as it comes
// would cost more than the rest of it.
func (w *sinkWriter) flush() {
	if w.writeBatch() && w.swapBatch() {
		w.writeBatch()
	}
}

// writeBatch writes the rest of the batch, and says whether the sink took it all.
func (w *sinkWriter) writeBatch() bool {
	for w.batchWritten < len(w.batch) {
		n, err := w.sink.write(w.batch[w.batchWritten:])
		w.countWritten(bytes.Count(w.batch[w.batchWritten:w.batchWritten+n], []byte{'\n'}))
		w.batchWritten += n
		if err != nil {
			w.markFailing(err)
			return false
		}
		w.markWorking()
	}
	w.auditLog.mu.Lock()
	defer w.auditLog.mu.Unlock()
	w.bufferedRecords -= w.batchRecords
	w.batchRecords = 0
	return true
}

// maintain writes what waits, and has the sink do what is due.
func (w *sinkWriter) maintain() {
	err := w.sink.maintain()
	if err != nil {
		w.markFailing(err)
	}
	w.flush()
	if err == nil && w.batchWritten == len(w.batch) { // else the next write decides
		w.markWorking()
	}
}

// swapBatch gives the batch just written back and swaps in what waits.
func (w *sinkWriter) swapBatch() bool {
	if cap(w.batch) > maxKeptBuffer {
		w.batch = nil
	}
	w.auditLog.mu.Lock()
	defer w.auditLog.mu.Unlock()
	if w.totalLost > w.reportedLost {
		record := appendCount(new(headerWriter).appendHeader(nil, recordsLost), "lost", w.totalLost-w.reportedLost)
		w.reportedLost = w.totalLost
		w.bufferRecord(append(record, '}', '\n'))
	}
	w.batch, w.pending = w.pending, w.batch[:0]
	w.batchWritten, w.batchRecords, w.pendingRecords = 0, w.bufferedRecords, 0
	return len(w.batch) > 0
}

func (w *sinkWriter) countWritten(records int) {
	w.auditLog.mu.Lock()
	defer w.auditLog.mu.Unlock()
	w.totalWritten += uint64(records) // a count
}

func (w *sinkWriter) isFailing() bool {
	w.auditLog.mu.Lock()
	defer w.auditLog.mu.Unlock()
	return w.failing
}

// markFailing notes that records do not reach the sink, and says so once.
func (w *sinkWriter) markFailing(err error) {
	w.auditLog.mu.Lock()
	wasFailing := w.failing
	w.failing = true
	w.auditLog.mu.Unlock()
	if !wasFailing {
		w.auditLog.log.Error("audit log cannot be written", zap.String("sink", w.name),
			zap.Bool("new_logins_blocked", w.blocksLogins), zap.Error(err))
	}
}

// markWorking notes that records reach the sink.
func (w *sinkWriter) markWorking() {
	w.auditLog.mu.Lock()
	wasFailing := w.failing
	w.failing = false
	lost := w.totalLost
	w.auditLog.mu.Unlock()
	if wasFailing {
		w.auditLog.log.Info("audit log is written again", zap.String("sink", w.name), zap.Uint64("lost_since_start", lost))
	}
}
