package splice

import "sync"

// Buffers: the small one answers a NOOP, the large one carries mail. A pump has
// one of these at a time, and none while it is parked. Under TLS, mail has two
// more: what the source's Socket reads ahead, and what the destination's
// gathers. That is at most 193 KB for a direction in which mail flows.
const (
	smallBuffer = 4 << 10
	largeBuffer = 64 << 10
	// Room for a large buffer as TLS records: four of them, each with at most 22
	// bytes more (TLS 1.3) or 29 (1.2, AES-GCM), and an alert.
	gatherBuffer = largeBuffer + 1<<10
)

// buffers are those not in use. They come back cleared: no session's bytes wait
// in them for another's.
type buffers struct {
	small, large, gathers sync.Pool
}

func (b *buffers) prepare() {
	b.small.New = func() any { return new([smallBuffer]byte) }
	b.large.New = func() any { return new([largeBuffer]byte) }
	b.gathers.New = func() any { return new([gatherBuffer]byte) }
}
