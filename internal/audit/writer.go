package audit

import (
	"bytes"
	"time"

	"go.uber.org/zap"
)

// writer is the part of Log that only run touches.
type writer struct {
	sink    *sink
	batch   []byte // records being written
	records int    // how many those are
	written int    // bytes of batch that are in the file
	dirty   bool   // written since the last sync
}

// run writes records until Close; it is the only one to touch the file. It
// ends when Close was called and one last attempt was made.
func (l *Log) run() {
	defer close(l.done)
	defer func() { _ = l.sink.close() }()
	ticker := time.NewTicker(beat)
	defer ticker.Stop()
	var due <-chan time.Time
	for {
		select {
		case <-l.wake:
			if due == nil {
				due = time.After(linger)
			}
		case <-due:
			due = nil
			if !l.sinkFailed() { // the beat tries again
				l.flush()
			}
		case <-ticker.C:
			l.followRotation()
			l.flush()
			l.sync()
		case <-l.reopen:
			l.openAgain()
			l.flush()
		case <-l.stop:
			l.flush()
			l.sync()
			return
		}
	}
}

// flush writes until nothing waits or the sink fails. What a failed write left
// over is continued where it stopped, so no record is torn inside one file.
func (l *Log) flush() {
	for {
		if l.written == len(l.batch) && !l.take() {
			return
		}
		n, err := l.sink.write(l.batch[l.written:])
		l.written += n
		l.dirty = l.dirty || n > 0
		if err != nil {
			l.fail(err)
			return
		}
		l.works()
	}
}

// take gives the batch just written back and swaps in what waits.
func (l *Log) take() bool {
	if cap(l.batch) > keepBuffer {
		l.batch = nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.waiting -= l.records
	if l.lost > l.told {
		lost := l.lost - l.told
		l.told = l.lost
		l.append(func(b []byte) []byte {
			return appendCount(begin(b, "records_lost", &Client{}), "lost", lost)
		})
	}
	l.batch, l.pending = l.pending, l.batch[:0]
	l.written, l.records = 0, l.waiting
	return len(l.batch) > 0
}

// sync makes what was written durable.
func (l *Log) sync() {
	if !l.dirty {
		return
	}
	if err := l.sink.sync(); err != nil {
		l.fail(err)
		return
	}
	l.dirty = false
	if l.written == len(l.batch) { // else the next write decides
		l.works()
	}
}

func (l *Log) sinkFailed() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.failed
}

// fail notes that records do not reach the file, and says so once.
func (l *Log) fail(err error) {
	l.mu.Lock()
	was := l.failed
	l.failed = true
	l.mu.Unlock()
	if !was {
		l.log.Error("audit log cannot be written", zap.String("path", l.cfg.Path),
			zap.Bool("new_logins_blocked", l.cfg.OnFailure != "drop"), zap.Error(err))
	}
}

// works notes that records reach the file.
func (l *Log) works() {
	l.mu.Lock()
	was := l.failed
	l.failed = false
	lost := l.lost
	l.mu.Unlock()
	if was {
		l.log.Info("audit log is written again", zap.String("path", l.cfg.Path), zap.Uint64("lost_since_start", lost))
	}
}

// followRotation opens the path anew when another file stands there.
func (l *Log) followRotation() {
	if l.sink.moved(l.cfg.Path) {
		l.openAgain()
	}
}

// openAgain replaces the file by what is now at its path. The old one stays in
// use when that cannot be opened. A record that was half written begins anew.
func (l *Log) openAgain() {
	l.sync()
	next, err := openSink(l.cfg.Path)
	if err != nil {
		l.log.Error("audit log cannot be opened again", zap.Error(err))
		return
	}
	_ = l.sink.close() // synced above; a failure there was reported
	l.sink, l.dirty = next, false
	if l.written == len(l.batch) {
		l.works()
		return
	}
	l.written = bytes.LastIndexByte(l.batch[:l.written], '\n') + 1
}
