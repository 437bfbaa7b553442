package audit

import (
	"errors"
	"testing"

	"go.uber.org/zap"
)

// cup is a sink that takes nothing while it is full.
type cup struct{ full bool }

func (c *cup) write(lines []byte) (int, error) {
	if c.full {
		return 0, errors.New("full")
	}
	return len(lines), nil
}
func (c *cup) tend() error  { return nil }
func (c *cup) close() error { return nil }

func TestWhatIsWrittenNoLongerTakesRoom(t *testing.T) {
	l, o := unwritten()
	l.log = zap.NewNop()
	c := &cup{full: true}
	o.sink = c
	for range maxWaiting {
		_ = l.Started("v")
	}
	o.flush()
	if l.Ready() == nil || o.waiting != maxWaiting {
		t.Fatalf("a full sink: %v, %d wait", l.Ready(), o.waiting)
	}
	c.full = false
	o.tend()
	if err := l.Ready(); err != nil || o.waiting != 0 || l.Lost() != 0 {
		t.Errorf("behind the recovery: %v, %d wait, %d are lost", err, o.waiting, l.Lost())
	}
}
