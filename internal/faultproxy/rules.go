package faultproxy

import "time"

// Rules are what happens to the bytes of one direction. The zero value lets
// them pass.
type Rules struct {
	Latency   time.Duration // before every chunk is passed on
	Bandwidth int           // bytes a second; 0 is no limit
	Slice     int           // bytes a chunk, each in a write of its own; 0 is as they come
	Faults    []Fault       // in the order of At
}

// Fault is something that happens once, when At bytes of its direction have
// passed since the connection began (0: at once, and for Corrupt: to the first
// byte).
type Fault struct {
	Offset int64
	Action Action
	Bytes  []byte // for Inject
}

// Action is what a fault does. Blackhole, HalfClose and Stall last until the
// rules change; what a HalfClose has closed stays closed.
type Action int

// The actions.
const (
	Blackhole Action = iota // read on, pass nothing on
	HalfClose               // end the stream to the receiver, read on
	Stall                   // stop reading: the sender's window closes
	Corrupt                 // invert the bits of one byte
	Inject                  // pass Bytes on, which nobody sent
	Reset                   // RST to both sides
)

// chunkSize is how many bytes are passed at once.
func (r *Rules) chunkSize() int {
	n := maxChunk
	if r.Slice > 0 {
		n = min(n, r.Slice)
	}
	if r.Bandwidth > 0 {
		// At least twenty pieces a second: a slow line, not a line that stutters.
		n = min(n, max(1, r.Bandwidth/20))
	}
	return n
}
