package penalty

import (
	"testing"
	"time"
)

func TestAWindowForgetsGradually(t *testing.T) {
	const length = time.Minute
	var w window
	for range 10 {
		w = w.add(30*time.Second, length)
	}
	for _, c := range []struct {
		at   time.Duration
		want int
	}{{30, 10}, {59, 10}, {60, 10}, {90, 5}, {119, 0}, {120, 0}, {3600, 0}} {
		if n := w.count(c.at*time.Second, length); n != c.want {
			t.Errorf("at %d s: %d, want %d", c.at, n, c.want)
		}
	}
	if n := w.raise(13, 61*time.Second, length).count(61*time.Second, length); n != 13 {
		t.Errorf("raised to 13, the count is %d", n)
	}
	if n := w.raise(3, 30*time.Second, length).count(30*time.Second, length); n != 10 {
		t.Errorf("raise has lowered the count to %d", n)
	}
	for range 70000 {
		w = w.add(30*time.Second, length)
	}
	if n := w.count(30*time.Second, length); n != 65535 {
		t.Errorf("the count overflowed to %d", n)
	}
}
