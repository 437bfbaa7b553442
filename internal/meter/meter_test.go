package meter

import (
	"testing"
	"time"
)

func TestMeterForgetsAfterAMinute(t *testing.T) {
	var m Meter
	start := time.Unix(1_000_000_007, 0)
	for second := range 120 {
		for range 3 {
			m.Add(start.Add(time.Duration(second) * time.Second))
		}
	}
	for after, want := range map[time.Duration]float64{119 * time.Second: 3, 149 * time.Second: 1.5, 10 * time.Minute: 0} {
		copied := m
		if got := copied.PerSecond(start.Add(after)); got != want {
			t.Errorf("%v after the start: %v, want %v", after, got, want)
		}
	}
	if got := m.PerSecond(start); got != 3 { // a clock that was set back
		t.Errorf("in the past: %v", got)
	}
}
