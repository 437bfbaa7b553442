// Package meter measures how many events there are per second.
package meter

import "time"

// window is over how many seconds a Meter measures.
const window = 60

// Meter measures how many events there were in the last minute. The zero Meter has seen none.
// It is not safe for concurrent use.
type Meter struct {
	counts [window]uint32 // by second, of the minute before latest
	latest int64          // Unix time of the last call
}

// forget clears the seconds that have passed since the last call.
func (m *Meter) forget(now int64) {
	for s := max(m.latest+1, now-window+1); s <= now; s++ {
		m.counts[s%window] = 0
	}
	m.latest = max(m.latest, now)
}

// Add counts an event.
func (m *Meter) Add(now time.Time) {
	m.forget(now.Unix())
	m.counts[m.latest%window]++
}

// PerSecond returns the mean of the last minute.
func (m *Meter) PerSecond(now time.Time) float64 {
	m.forget(now.Unix())
	sum := 0
	for _, n := range m.counts {
		sum += int(n)
	}
	return float64(sum) / window
}
