package parking

import (
	"errors"
	"net"
	"sync"
)

// The sizes of Buffers. The small one answers a NOOP, the large one carries
// mail. Under TLS, mail has two more: what the source's Socket reads ahead, and
// what the destination's gathers. That is at most 193 KB for a direction in
// which mail flows.
const (
	SmallBuffer = 4 << 10
	LargeBuffer = 64 << 10
	// Room for a large buffer as TLS records: four of them, each with at most 22
	// bytes more (TLS 1.3) or 29 (1.2, AES-GCM), and an alert.
	gatherBuffer = LargeBuffer + 1<<10
)

// MaxRecord is the plaintext of one TLS record (RFC 8446 §5.1).
const MaxRecord = 16 << 10

// BufferPool are those not in use. Whoever puts one back has cleared it: no
// session's bytes wait in them for another's.
type BufferPool struct {
	Small  sync.Pool // of *[SmallBuffer]byte
	Large  sync.Pool // of *[LargeBuffer]byte
	gather sync.Pool // of *[gatherBuffer]byte
}

// NewBufferPool makes Buffers that are made when they are first needed.
func NewBufferPool() *BufferPool {
	b := &BufferPool{}
	b.Small.New = func() any { return new([SmallBuffer]byte) }
	b.Large.New = func() any { return new([LargeBuffer]byte) }
	b.gather.New = func() any { return new([gatherBuffer]byte) }
	return b
}

// Write writes p; what TLS makes several records of, the kernel gets at once.
func (b *BufferPool) Write(c net.Conn, p []byte) error {
	s := bufferedConnOf(c)
	if s == nil || len(p) <= MaxRecord {
		_, err := c.Write(p)
		return err
	}
	s.beginGather(b.gather.Get().(*[gatherBuffer]byte))
	_, err := c.Write(p)
	buf, flushErr := s.endGather()
	b.gather.Put(buf)
	return errors.Join(err, flushErr)
}

// ReadAhead is for mail: under TLS, reads from c take all that the kernel has,
// until Trim takes the buffer back.
func (b *BufferPool) ReadAhead(c net.Conn) {
	if s := bufferedConnOf(c); s != nil {
		s.readAhead(&b.Large)
	}
}
