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

	Stream string // the key of a Redis stream
	Max    int64  // about how many records it keeps
}

func pathSink(path string) SinkConfig {
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
	// tend does what is due now and then: makes durable what was written, goes
	// on in a new file when the old one was moved away.
	tend() error
	close() error
}

// outlet is one sink with its own buffer and goroutine, so that one that is
// slow or broken holds up no other.
type outlet struct {
	// Set once.
	name  string
	block bool // no logins while it fails
	only  filter
	of    *Log
	wake  chan struct{} // of 1: pending is no longer empty
	hurry chan struct{} // of 1: and there is something in it that is not to wait for long
	look  chan struct{} // of 1: tend now

	// Owned by run.
	sink    sink
	batch   []byte // records being written
	records int    // how many those are
	written int    // bytes of batch that the sink has

	// Guarded by of.mu.
	pending []byte // whole records, at most maxPending and one more
	waiting int    // records in pending and in batch
	fresh   int    // records in pending
	failed  bool   // the last write failed
	kept    uint64 // records written, ever
	lost    uint64 // records that could not be kept, ever
	told    uint64 // of these, how many the sink was told of
}

func (l *Log) openOutlet(cfg SinkConfig) (*outlet, error) {
	o := &outlet{of: l, name: cfg.Name, wake: make(chan struct{}, 1), hurry: make(chan struct{}, 1), look: make(chan struct{}, 1)}
	if o.name == "" {
		o.name = cfg.Type
	}
	policy := cfg.OnFailure
	if policy == "" {
		policy = l.cfg.OnFailure
	}
	switch policy {
	case "", "block":
		o.block = true
	case "drop":
	default:
		return nil, fmt.Errorf("on_failure %q is not one of block, drop", policy)
	}
	var err error
	if o.only, err = newFilter(cfg.Events, cfg.Results); err != nil {
		return nil, fmt.Errorf("sink %s: %w", o.name, err)
	}
	if o.sink, err = l.openSink(cfg); err != nil {
		return nil, err
	}
	return o, nil
}

func (l *Log) openSink(cfg SinkConfig) (sink, error) {
	switch cfg.Type {
	case File:
		return openFile(cfg.Path, l.cfg.Chain, l.log)
	case Stdout:
		return standardOutput(), nil
	case Syslog:
		return newSyslog(cfg)
	case Redis:
		if l.cfg.Redis == nil {
			return nil, errors.New("a sink of the type redis needs Redis")
		}
		return newStream(l.cfg.Redis, cfg), nil
	}
	return nil, fmt.Errorf("there is no sink of the type %q", cfg.Type)
}

// fullFor says whether there is no room for a record of weight w; of.mu is held.
func (o *outlet) fullFor(w weight) bool {
	switch {
	case w == permits && o.block:
		return o.waiting >= fullForLogin || len(o.pending) >= maxPending/4*3
	case w == yields:
		return o.waiting >= fullForRest || len(o.pending) >= maxPending/2
	}
	return o.waiting >= maxWaiting || len(o.pending) >= maxPending
}

// append adds a record to pending; of.mu is held.
func (o *outlet) append(record []byte) {
	o.pending = append(o.pending, record...)
	o.waiting++
	o.fresh++
}

// stir has run see to the record that was added last; of.mu is held.
func (o *outlet) stir(k kind) {
	bell := o.hurry
	switch {
	case k != command || o.fresh == many:
	case o.fresh == 1:
		bell = o.wake
	default:
		return
	}
	select {
	case bell <- struct{}{}:
	default: // run knows
	}
}

// run is the outlet's goroutine: it writes records until Close was called and
// one last attempt was made. It is the only one to touch the sink.
func (o *outlet) run() {
	defer func() { _ = o.sink.close() }() // what was not written is counted as waiting
	ticker := time.NewTicker(beat)
	defer ticker.Stop()
	var due <-chan time.Time
	var soon bool // due is
	for {
		select {
		case <-o.wake:
			if due == nil {
				due = time.After(lingerCommands)
			}
		case <-o.hurry:
			if !soon {
				due, soon = time.After(linger), true
			}
		case <-due:
			due, soon = nil, false
			if !o.hasFailed() { // the beat tries again
				o.flush()
			}
		case <-ticker.C:
			o.tend()
		case <-o.look:
			o.tend()
		case <-o.of.stop:
			o.flush()
			o.tend()
			return
		}
	}
}

// flush writes what a failed write left over, where it stopped, and then what
// waits. Records that come meanwhile linger like others: to write each as it comes
// would cost more than the rest of it.
func (o *outlet) flush() {
	if o.finish() && o.take() {
		o.finish()
	}
}

// finish writes the rest of the batch, and says whether the sink took it all.
func (o *outlet) finish() bool {
	for o.written < len(o.batch) {
		n, err := o.sink.write(o.batch[o.written:])
		o.wrote(bytes.Count(o.batch[o.written:o.written+n], []byte{'\n'}))
		o.written += n
		if err != nil {
			o.fail(err)
			return false
		}
		o.works()
	}
	o.of.mu.Lock()
	defer o.of.mu.Unlock()
	o.waiting -= o.records
	o.records = 0
	return true
}

// tend writes what waits, and has the sink do what is due.
func (o *outlet) tend() {
	err := o.sink.tend()
	if err != nil {
		o.fail(err)
	}
	o.flush()
	if err == nil && o.written == len(o.batch) { // else the next write decides
		o.works()
	}
}

// take gives the batch just written back and swaps in what waits.
func (o *outlet) take() bool {
	if cap(o.batch) > keepBuffer {
		o.batch = nil
	}
	o.of.mu.Lock()
	defer o.of.mu.Unlock()
	if o.lost > o.told {
		record := appendCount(new(stamp).start(nil, recordsLost), "lost", o.lost-o.told)
		o.told = o.lost
		o.append(append(record, '}', '\n'))
	}
	o.batch, o.pending = o.pending, o.batch[:0]
	o.written, o.records, o.fresh = 0, o.waiting, 0
	return len(o.batch) > 0
}

func (o *outlet) wrote(records int) {
	o.of.mu.Lock()
	defer o.of.mu.Unlock()
	o.kept += uint64(records) // a count
}

func (o *outlet) hasFailed() bool {
	o.of.mu.Lock()
	defer o.of.mu.Unlock()
	return o.failed
}

// fail notes that records do not reach the sink, and says so once.
func (o *outlet) fail(err error) {
	o.of.mu.Lock()
	was := o.failed
	o.failed = true
	o.of.mu.Unlock()
	if !was {
		o.of.log.Error("audit log cannot be written", zap.String("sink", o.name),
			zap.Bool("new_logins_blocked", o.block), zap.Error(err))
	}
}

// works notes that records reach the sink.
func (o *outlet) works() {
	o.of.mu.Lock()
	was := o.failed
	o.failed = false
	lost := o.lost
	o.of.mu.Unlock()
	if was {
		o.of.log.Info("audit log is written again", zap.String("sink", o.name), zap.Uint64("lost_since_start", lost))
	}
}
