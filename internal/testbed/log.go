package testbed

import (
	"bytes"
	"sync"
)

// Log is what a gateway under test has logged; a zapcore.WriteSyncer.
type Log struct {
	mu   sync.Mutex
	text bytes.Buffer // Guarded by mu.
}

// Write adds p.
func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

// Sync does nothing.
func (l *Log) Sync() error { return nil }

// String is the text so far.
func (l *Log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}
