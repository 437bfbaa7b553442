package faultproxy

import "time"

// Rules describe what happens to the bytes of one direction. The zero value relays them
// unchanged.
type Rules struct {
	Latency   time.Duration // delay before each chunk
	Bandwidth int           // bytes per second; 0: unlimited
	Slice     int           // bytes per chunk, each its own write; 0: as received
	Faults    []Fault       // ordered by Offset
}

// Fault happens once per connection, after Offset bytes of its direction have passed. At
// offset 0 it happens at once; a Corrupt then changes the first byte.
type Fault struct {
	Offset int64
	Action Action
	Bytes  []byte // of Inject
}

// Action is what a fault does. Blackhole, HalfClose and Stall last until the rules
// change, but a half-closed stream stays closed.
type Action int

// The actions.
const (
	Blackhole Action = iota // discard everything read
	HalfClose               // end the stream to the receiver, discard everything read
	Stall                   // stop reading, so that the sender's window closes
	Corrupt                 // invert the bits of one byte
	Inject                  // insert Bytes
	Reset                   // send RST to both sides
)

// chunkSize returns the largest number of bytes of one write.
func (r *Rules) chunkSize() int {
	n := maxChunk
	if r.Slice > 0 {
		n = min(n, r.Slice)
	}
	if r.Bandwidth > 0 {
		// At least twenty chunks a second, for a steady flow.
		n = min(n, max(1, r.Bandwidth/20))
	}
	return n
}
