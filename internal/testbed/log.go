package testbed

import (
	"bytes"
	"sync"
)

// Log collects what a gateway under test logs. It is a zapcore.WriteSyncer.
type Log struct {
	mu   sync.Mutex
	text bytes.Buffer // Guarded by mu.
}

// Write appends p.
func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

// Sync does nothing.
func (l *Log) Sync() error { return nil }

// String returns the text so far.
func (l *Log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}
