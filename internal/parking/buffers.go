package parking

import (
	"errors"
	"net"
	"sync"
)

// Sizes of the buffers. The small one is enough for commands, the large one is for mail.
// Under TLS, mail uses two more: one to read ahead at the source, one to gather at the
// destination. The total is at most 193 KB for a direction in which mail flows.
const (
	SmallBuffer = 4 << 10
	LargeBuffer = 64 << 10
	// Room for a large buffer as TLS records: four of them, each with at most 22 bytes more
	// (TLS 1.3) or 29 (1.2, AES-GCM), and an alert.
	gatherBuffer = LargeBuffer + 1<<10
)

// MaxRecord is the plaintext of one TLS record (RFC 8446 §5.1).
const MaxRecord = 16 << 10

// BufferPool holds unused buffers. A buffer is cleared before it is put back, so no
// session's bytes reach another.
type BufferPool struct {
	Small  sync.Pool // of *[SmallBuffer]byte
	Large  sync.Pool // of *[LargeBuffer]byte
	gather sync.Pool // of *[gatherBuffer]byte
}

// NewBufferPool returns an empty pool; buffers are allocated on demand.
func NewBufferPool() *BufferPool {
	b := &BufferPool{}
	b.Small.New = func() any { return new([SmallBuffer]byte) }
	b.Large.New = func() any { return new([LargeBuffer]byte) }
	b.gather.New = func() any { return new([gatherBuffer]byte) }
	return b
}

// Write writes p. Under TLS, all records of p go to the kernel in one write.
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

// ReadAhead makes reads from a TLS connection take all that the kernel has, until
// ReleaseBuffers. It is meant for mail.
func (b *BufferPool) ReadAhead(c net.Conn) {
	if s := bufferedConnOf(c); s != nil {
		s.readAhead(&b.Large)
	}
}
