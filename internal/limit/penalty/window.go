package penalty

import (
	"math"
	"time"
)

// window counts events within a length of time, approximately: those of this period, and of
// the period before as many as the length still reaches into. It has eight bytes, because
// there are many.
type window struct {
	period      uint32
	now, before uint16
}

// at returns the window as it is at a time.
func (w window) at(t, length time.Duration) window {
	switch period := uint32(t / length); {
	case period == w.period:
		return w
	case period == w.period+1:
		return window{period: period, before: w.now}
	default:
		return window{period: period}
	}
}

func (w window) count(t, length time.Duration) int {
	w = w.at(t, length)
	left := length - t%length
	return int(w.now) + int(float64(w.before)*float64(left)/float64(length))
}

func (w window) add(t, length time.Duration) window { return w.raise(w.count(t, length)+1, t, length) }

// raise brings the count up to n, if it is lower.
func (w window) raise(n int, t, length time.Duration) window {
	w = w.at(t, length)
	if missing := n - w.count(t, length); missing > 0 {
		w.now = uint16(min(int(w.now)+missing, math.MaxUint16))
	}
	return w
}
