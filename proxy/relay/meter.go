package relay

import "time"

// meterSeconds is over how long a meter measures.
const meterSeconds = 60

// meter measures how many events there were in the last minute.
type meter struct {
	counts [meterSeconds]uint32 // by second, of the minute before latest
	latest int64                // Unix time of the last event or question
}

// forget clears the seconds that have passed since the last call.
func (m *meter) forget(now int64) {
	for s := max(m.latest+1, now-meterSeconds+1); s <= now; s++ {
		m.counts[s%meterSeconds] = 0
	}
	m.latest = max(m.latest, now)
}

func (m *meter) add(now time.Time) {
	m.forget(now.Unix())
	m.counts[m.latest%meterSeconds]++
}

// perSecond returns the mean of the last minute.
func (m *meter) perSecond(now time.Time) float64 {
	m.forget(now.Unix())
	sum := 0
	for _, n := range m.counts {
		sum += int(n)
	}
	return float64(sum) / meterSeconds
}

// LoginsPerSecond returns how many sessions have begun per second in the last minute.
func (r *Registry) LoginsPerSecond() float64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.logins.perSecond(time.Now())
}
