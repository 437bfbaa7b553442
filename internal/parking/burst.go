package parking

// BurstDetector notices when a burst of logins is over, which is when memory is given
// back: an idle session needs a fraction of what its login did, and the
// collector, which waits for the heap to grow, would keep the difference.
type BurstDetector struct {
	lastEnd      uint64 // parkings when one was last over
	lastParkings uint64 // parkings at the last look
}

// minParkings parkings make it worth a collection.
const minParkings = 512

// CheckOver is asked every second or so, with how many connections have begun to be
// quiet so far. It says yes when many have since it last did, and few since the
// last look.
func (b *BurstDetector) CheckOver(parkings uint64, sessions int) bool {
	recent, since := parkings-b.lastParkings, parkings-b.lastEnd
	b.lastParkings = parkings
	if since < max(minParkings, uint64(sessions/2)) || recent > since/10 { // a length
		return false
	}
	b.lastEnd = parkings
	return true
}
