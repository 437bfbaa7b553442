package parking

import (
	"crypto/tls"
	"errors"
	"net"
	"sync"
)

// BufferedConn is the TCP connection under a TLS one. While mail flows it reads ahead and
// gathers records, so that one system call serves four TLS records. At other times it holds
// no buffers.
type BufferedConn struct {
	*net.TCPConn

	// Owned by the reading goroutine.
	readBuf     []byte             // bytes read ahead
	aheadBuf    *[LargeBuffer]byte // buffer for reading ahead; nil: no reading ahead
	aheadPool   *sync.Pool         // pool that aheadBuf returns to
	nonblocking bool               // reads return ErrWouldBlock instead of asking the kernel

	mu          sync.Mutex
	writeBuf    *[gatherBuffer]byte // Guarded by mu. nil: writes go through.
	writeLen    int                 // Guarded by mu. Bytes in writeBuf.
	beforeWrite func()              // Guarded by mu. Called before the next write, once.
}

// NewBufferedConn wraps tcp.
func NewBufferedConn(tcp *net.TCPConn) *BufferedConn { return &BufferedConn{TCPConn: tcp} }

// Unread puts back bytes that were read too far, and keeps b. Buffered bytes are replaced.
func (c *BufferedConn) Unread(b []byte) { c.readBuf = b }

// NetConn returns the TCP connection.
func (c *BufferedConn) NetConn() net.Conn { return c.TCPConn }

// Buffered returns the number of bytes read ahead.
func (c *BufferedConn) Buffered() int { return len(c.readBuf) }

// TakeBuffered returns the bytes read ahead and removes them.
func (c *BufferedConn) TakeBuffered() []byte {
	buffered := c.readBuf
	c.readBuf = nil
	return buffered
}

// Read implements net.Conn.
func (c *BufferedConn) Read(p []byte) (int, error) {
	if len(c.readBuf) == 0 {
		if c.nonblocking {
			return 0, ErrWouldBlock
		}
		if c.aheadBuf == nil || len(p) >= len(c.aheadBuf) {
			return c.TCPConn.Read(p)
		}
		n, err := c.TCPConn.Read(c.aheadBuf[:])
		c.readBuf = c.aheadBuf[:n]
		if n == 0 {
			return 0, err
		}
	}
	n := copy(p, c.readBuf)
	c.readBuf = c.readBuf[n:]
	return n, nil
}

// ErrWouldBlock is the error of a read that would block. crypto/tls takes it for an expired
// read deadline: it keeps a partial record and continues later.
var ErrWouldBlock net.Error = wouldBlock{}

type wouldBlock struct{}

func (wouldBlock) Error() string   { return "nothing to read" }
func (wouldBlock) Timeout() bool   { return true }
func (wouldBlock) Temporary() bool { return true }

// ReadBuffered reads bytes already in this process: records that crypto/tls or the
// BufferedConn has read ahead. It never asks the kernel. It returns ErrWouldBlock if there
// is nothing, or only a partial record.
//
// Read until ErrWouldBlock before you wait for the socket to become readable: a poller does
// not see these bytes.
func ReadBuffered(c net.Conn, p []byte) (int, error) {
	s := bufferedConnOf(c)
	if s == nil {
		if _, ok := c.(*tls.Conn); ok {
			panic("parking: TLS connection without a BufferedConn")
		}
		return 0, ErrWouldBlock
	}
	s.nonblocking = true
	defer func() { s.nonblocking = false }()
	return c.Read(p)
}

// ReadAvailable is ReadBuffered, but without TLS it also reads what the kernel has, as far
// as a read does not block. With TLS it returns only complete records in this process,
// because the peer chose the record boundaries. It returns 0 and nil if it cannot know.
func ReadAvailable(c net.Conn, p []byte) (int, error) {
	if bufferedConnOf(c) != nil {
		return ReadBuffered(c, p)
	}
	switch c := c.(type) {
	case *BufferedConn:
		if len(c.readBuf) > 0 {
			return c.Read(p)
		}
		return recvAvailable(c.TCPConn, p)
	case *net.TCPConn:
		return recvAvailable(c, p)
	}
	return 0, nil
}

// Write implements net.Conn. The lock is held during the write: crypto/tls writes from both
// directions at times, and records must not overtake each other.
func (c *BufferedConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if hook := c.beforeWrite; hook != nil {
		c.beforeWrite = nil
		hook()
	}
	if c.writeBuf == nil {
		return c.TCPConn.Write(p)
	}
	if len(p) > gatherBuffer-c.writeLen {
		if err := c.writeGathered(); err != nil {
			return 0, err
		}
		return c.TCPConn.Write(p)
	}
	c.writeLen += copy(c.writeBuf[c.writeLen:], p)
	return len(p), nil
}

// BeforeWrite sets f to be called once, before the next write. f must not block.
func (c *BufferedConn) BeforeWrite(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.beforeWrite = f
}

// beginGather collects writes in buf until endGather.
func (c *BufferedConn) beginGather(buf *[gatherBuffer]byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.writeBuf = buf
}

// endGather writes the collected bytes and returns the buffer, cleared.
func (c *BufferedConn) endGather() (*[gatherBuffer]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	buf := c.writeBuf
	err := c.writeGathered()
	c.writeBuf = nil
	return buf, err
}

// writeGathered writes the bytes collected so far. mu is held.
func (c *BufferedConn) writeGathered() error {
	gathered := c.writeBuf[:c.writeLen]
	c.writeLen = 0
	_, err := c.TCPConn.Write(gathered)
	clear(gathered)
	return err
}

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
	if s := bufferedConnOf(c); s != nil && s.aheadBuf == nil {
		s.aheadBuf, s.aheadPool = b.Large.Get().(*[LargeBuffer]byte), &b.Large
	}
}
