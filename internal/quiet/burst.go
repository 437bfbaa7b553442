package quiet

// Burst notices when a burst of logins is over, which is when memory is given
// back: an idle session needs a fraction of what its login did, and the
// collector, which waits for the heap to grow, would keep the difference.
type Burst struct {
	last     uint64 // parkings when one was last over
	previous uint64 // parkings at the last look
}

// enough parkings make it worth a collection.
const enough = 512

// Over is asked every second or so, with how many connections have begun to be
// quiet so far. It says yes when many have since it last did, and few since the
// last look.
func (m *Burst) Over(parkings uint64, sessions int) bool {
	recent, since := parkings-m.previous, parkings-m.last
	m.previous = parkings
	if since < max(enough, uint64(sessions/2)) || recent > since/10 { // a length
		return false
	}
	m.last = parkings
	return true
}
