package relay

import "testing"

func TestBurstDetectorReportsEndOfBurst(t *testing.T) {
	var m burstDetector
	for i, look := range []struct {
		parkings uint64
		sessions int
		due      bool
	}{
		{0, 0, false},
		{100, 50, false},    // too few to matter
		{2000, 1000, false}, // the burst continues
		{3000, 1500, false},
		{3010, 1505, true}, // the burst is over
		{3010, 1505, false},
		{3500, 1600, false},
		{3600, 1600, false}, // a trickle: not before half of the sessions are new
		{3900, 1600, false},
		{3950, 1600, true},
		{5000, 2100, false}, // a long burst is not over as long as it is steady
		{6000, 2600, false},
		{16000, 7600, false},
		{17000, 8100, false},
		{17000, 8100, true},
	} {
		if got := m.isOver(look.parkings, look.sessions); got != look.due {
			t.Errorf("look %d: %v", i, got)
		}
	}
}
