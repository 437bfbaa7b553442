package duration

import (
	"testing"
	"time"
)

func TestDaysAndWeeksAreDurations(t *testing.T) {
	for s, want := range map[string]time.Duration{
		"1d": day, "7d": 7 * day, "2w": 14 * day, "1d12h": 36 * time.Hour, "1w1d1h1m1s1ms": 8*day + time.Hour + time.Minute + time.Second + time.Millisecond,
		"1.5d": 36 * time.Hour, ".5d": 12 * time.Hour, "0d": 0, "-1d": -day, "-1d1h": -25 * time.Hour,
		"90m": 90 * time.Minute, "24h": day, "1h30m": 90 * time.Minute, "1.5h": 90 * time.Minute, "0": 0, "+30s": 30 * time.Second, "10us": 10 * time.Microsecond, "10µs": 10 * time.Microsecond,
	} {
		if got, err := Parse(s); err != nil || got != want {
			t.Errorf("%s: %v, %v, want %v", s, got, err, want)
		}
	}
	for _, s := range []string{"", "d", "1", "1D", "1 d", " 1d", "1d ", "1x", "1.d.2", "--1d", "1d-1h", "+-1d", "200000w", "106752d", "1d9999999999h", "1dd", "1e3d"} {
		if got, err := Parse(s); err == nil {
			t.Errorf("%q: %v", s, got)
		}
	}
}

func TestDurationsAreFormattedWithoutZeroUnits(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0s", 250 * time.Millisecond: "250ms", 9876 * time.Millisecond: "9.876s", 12345 * time.Millisecond: "12.3s",
		10 * time.Minute: "10m", time.Hour: "1h", 24 * time.Hour: "24h", time.Hour + 30*time.Second: "1h0m30s", 90 * time.Minute: "1h30m",
	} {
		got := Format(d)
		if back, err := Parse(got); got != want || err != nil || back > d+50*time.Millisecond || back < d-50*time.Millisecond {
			t.Errorf("%v is %s, want %s; parsed: %v, %v", d, got, want, back, err)
		}
	}
}
