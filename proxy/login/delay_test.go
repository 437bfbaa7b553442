package login

import (
	"testing"
	"time"
)

func TestDenialTimesAreBounded(t *testing.T) {
	var d denialTimes
	if d.pick() != 0 {
		t.Error("a time without a denial")
	}
	for i := range 3 * len(d.durations) {
		d.add(time.Duration(i+1) * time.Second)
	}
	for range 1000 {
		if took := d.pick(); took <= time.Duration(2*len(d.durations))*time.Second {
			t.Fatalf("%v is no longer sampled", took)
		}
	}
}
