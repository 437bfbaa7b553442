package relay

import (
	"testing"
	"time"
)

func TestDrainRateIsBounded(t *testing.T) {
	const drain = 30 * time.Second
	for _, c := range []struct {
		n                 int
		past              time.Duration
		spliced, followed int
	}{
		{1, 0, 1, 0},
		{1, drain - 1, 1, 0},
		{100, 0, 100, 0}, // a few mux sessions end at once
		{100, drain / 2, 50, 0},
		{1000, 0, 1000, 900},
		{1000, time.Second, 967, 800},
		{27_000, 0, 27_000, 26_900},
		{27_000, 10 * time.Second, 18_000, 17_000},
		{27_000, drain * 9 / 10, 2700, 0},
		{27_000, drain, 0, 0},
		{500_000, drain / 2, 250_000, 222_223},
	} {
		if spliced, followed := splicedToKeep(c.n, c.past, drain), muxedToKeep(c.n, c.past, drain); spliced != c.spliced || followed != c.followed {
			t.Errorf("%d after %v: %d and %d, want %d and %d", c.n, c.past, spliced, followed, c.spliced, c.followed)
		}
	}
	if n := splicedToKeep(10_000_000, 12*time.Hour, 24*time.Hour); n != 5_000_000 {
		t.Errorf("many, and for long: %d", n)
	}
	if spliced, followed := splicedToKeep(5, 0, 0), muxedToKeep(5, 0, 0); spliced+followed != 0 {
		t.Errorf("without a drain: %d, %d", spliced, followed)
	}
}
