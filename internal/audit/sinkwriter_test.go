package audit

import (
	"errors"
	"testing"

	"go.uber.org/zap"
)

// fakeSink is a sink that accepts nothing while it is full.
type fakeSink struct{ full bool }

func (c *fakeSink) write(lines []byte) (int, error) {
	if c.full {
		return 0, errors.New("full")
	}
	return len(lines), nil
}
func (c *fakeSink) maintain() error { return nil }
func (c *fakeSink) close() error    { return nil }

func TestWrittenRecordsFreeTheBuffer(t *testing.T) {
	l, o := newBufferedLog()
	l.log = zap.NewNop()
	c := &fakeSink{full: true}
	o.sink = c
	for range maxBufferedRecords {
		_ = l.GatewayStarted("v")
	}
	o.flush()
	if l.Ready() == nil || o.bufferedRecords != maxBufferedRecords {
		t.Fatalf("a full sink: %v, %d wait", l.Ready(), o.bufferedRecords)
	}
	c.full = false
	o.maintain()
	if err := l.Ready(); err != nil || o.bufferedRecords != 0 || l.LostRecords() != 0 {
		t.Errorf("after the recovery: %v, %d wait, %d are lost", err, o.bufferedRecords, l.LostRecords())
	}
}
