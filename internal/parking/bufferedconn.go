package parking

import (
	"crypto/tls"
	"net"
	"sync"
)

// BufferedConn is the TCP connection under a TLS one. While mail flows it reads ahead
// and gathers records, so that the kernel is asked once for what crypto/tls
// takes or gives in four records; otherwise it holds nothing.
type BufferedConn struct {
	*net.TCPConn

	// Owned by whoever reads.
	readBuf     []byte             // bytes read ahead
	aheadBuf    *[LargeBuffer]byte // what they are read into; nil: nothing is read ahead
	aheadPool   *sync.Pool         // where ahead goes back to
	nonblocking bool               // take what is there

	mu          sync.Mutex
	writeBuf    *[gatherBuffer]byte // Guarded by mu. nil: writes go through.
	writeLen    int                 // Guarded by mu. Bytes in gathered.
	beforeWrite func()              // Guarded by mu. Called before the next write, once.
}

// NewBufferedConn makes a Socket of tcp.
func NewBufferedConn(tcp *net.TCPConn) *BufferedConn { return &BufferedConn{TCPConn: tcp} }

// Unread puts back b, which was read too far. The Socket keeps it.
func (c *BufferedConn) Unread(b []byte) { c.readBuf = b }

// NetConn is the connection itself.
func (c *BufferedConn) NetConn() net.Conn { return c.TCPConn }

// Buffered is the number of bytes read ahead.
func (c *BufferedConn) Buffered() int { return len(c.readBuf) }

// TakeBuffered takes the bytes read ahead.
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

// ErrWouldBlock is what a read without waiting returns. To crypto/tls it is a read
// deadline that has passed: it keeps what it has of a record, and goes on later.
var ErrWouldBlock net.Error = wouldBlock{}

type wouldBlock struct{}

func (wouldBlock) Error() string   { return "nothing to read" }
func (wouldBlock) Timeout() bool   { return true }
func (wouldBlock) Temporary() bool { return true }

// ReadBuffered reads what has already come into this process: records that crypto/tls
// or the Socket has read ahead. It neither waits nor asks the kernel, and says
// ErrWouldBlock where there is nothing, or half a record. Whoever waits for the
// socket to be readable has read until ErrWouldBlock before: nobody would tell of
// these bytes again.
func ReadBuffered(c net.Conn, p []byte) (int, error) {
	s := bufferedConnOf(c)
	if s == nil {
		if _, ok := c.(*tls.Conn); ok {
			panic("parking: TLS over something else than a Socket")
		}
		return 0, ErrWouldBlock
	}
	s.nonblocking = true
	defer func() { s.nonblocking = false }()
	return c.Read(p)
}

// ReadAvailable is ReadBuffered, and takes what the kernel has of a connection in the clear
// too: all that a read would bring without waiting. Of one with TLS that is whole records
// in this process: the peer, not this end, has cut what comes behind them. It says 0 and
// nil where it cannot be told.
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

// readAhead makes reads take all that is there, until the buffer is taken back.
func (c *BufferedConn) readAhead(pool *sync.Pool) {
	if c.aheadBuf == nil {
		c.aheadBuf, c.aheadPool = pool.Get().(*[LargeBuffer]byte), pool
	}
}

// releaseBuffers takes an empty read buffer back, and lets go of one that was put back.
func (c *BufferedConn) releaseBuffers() {
	if len(c.readBuf) > 0 {
		return
	}
	c.readBuf = nil
	if c.aheadBuf != nil {
		clear(c.aheadBuf[:])
		c.aheadPool.Put(c.aheadBuf)
		c.aheadBuf = nil
	}
}

// Write implements net.Conn. As in crypto/tls, which writes from both
// directions now and then, the lock is held over the socket: records must not
// overtake each other.
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

// BeforeWrite has f called before the next bytes go out, once. It must not block.
func (c *BufferedConn) BeforeWrite(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.beforeWrite = f
}

// beginGather keeps what is written in buf, until flush.
func (c *BufferedConn) beginGather(buf *[gatherBuffer]byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.writeBuf = buf
}

// endGather writes what was gathered, and gives the buffer back, cleared.
func (c *BufferedConn) endGather() (*[gatherBuffer]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	buf := c.writeBuf
	err := c.writeGathered()
	c.writeBuf = nil
	return buf, err
}

// writeGathered writes what has been gathered so far. mu is held.
func (c *BufferedConn) writeGathered() error {
	gathered := c.writeBuf[:c.writeLen]
	c.writeLen = 0
	_, err := c.TCPConn.Write(gathered)
	clear(gathered)
	return err
}
