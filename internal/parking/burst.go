package parking

// BurstDetector detects the end of a burst of logins, when memory should be returned to the
// system. An idle session needs a fraction of the memory of its login. The garbage
// collector would keep the difference, because it waits for the heap to grow.
type BurstDetector struct {
	lastEnd      uint64 // parkings at the end of the last burst
	lastParkings uint64 // parkings at the last check
}

// minParkings is the number of parkings that makes a collection worthwhile.
const minParkings = 512

// CheckOver reports whether a burst has just ended. It is called about once a second with
// the number of connections that have parked so far. A burst has ended when many have
// parked since the last one but few since the last call.
func (b *BurstDetector) CheckOver(parkings uint64, sessions int) bool {
	recent, since := parkings-b.lastParkings, parkings-b.lastEnd
	b.lastParkings = parkings
	if since < max(minParkings, uint64(sessions/2)) || recent > since/10 { // bounded by its type
		return false
	}
	b.lastEnd = parkings
	return true
}
