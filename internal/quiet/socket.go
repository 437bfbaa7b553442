package quiet

import (
	"crypto/tls"
	"net"
	"sync"
)

// Socket is the TCP connection under a TLS one. While mail flows it reads ahead
// and gathers records, so that the kernel is asked once for what crypto/tls
// takes or gives in four records; otherwise it holds nothing.
type Socket struct {
	*net.TCPConn

	// Owned by whoever reads.
	in     []byte             // bytes read ahead
	ahead  *[LargeBuffer]byte // what they are read into; nil: nothing is read ahead
	pool   *sync.Pool         // where ahead goes back to
	noWait bool               // take what is there

	mu       sync.Mutex
	gathered *[gatherBuffer]byte // Guarded by mu. nil: writes go through.
	n        int                 // Guarded by mu. Bytes in gathered.
	first    func()              // Guarded by mu. Called before the next write, once.
}

// NewSocket makes a Socket of tcp.
func NewSocket(tcp *net.TCPConn) *Socket { return &Socket{TCPConn: tcp} }

// Unread puts back b, which was read too far. The Socket keeps it.
func (s *Socket) Unread(b []byte) { s.in = b }

// NetConn is the connection itself.
func (s *Socket) NetConn() net.Conn { return s.TCPConn }

// Buffered is the number of bytes read ahead.
func (s *Socket) Buffered() int { return len(s.in) }

// Rest takes the bytes read ahead.
func (s *Socket) Rest() []byte {
	rest := s.in
	s.in = nil
	return rest
}

// Read implements net.Conn.
func (s *Socket) Read(p []byte) (int, error) {
	if len(s.in) == 0 {
		if s.noWait {
			return 0, ErrNothing
		}
		if s.ahead == nil || len(p) >= len(s.ahead) {
			return s.TCPConn.Read(p)
		}
		n, err := s.TCPConn.Read(s.ahead[:])
		s.in = s.ahead[:n]
		if n == 0 {
			return 0, err
		}
	}
	n := copy(p, s.in)
	s.in = s.in[n:]
	return n, nil
}

// ErrNothing is what a read without waiting returns. To crypto/tls it is a read
// deadline that has passed: it keeps what it has of a record, and goes on later.
var ErrNothing net.Error = nothing{}

type nothing struct{}

func (nothing) Error() string   { return "nothing to read" }
func (nothing) Timeout() bool   { return true }
func (nothing) Temporary() bool { return true }

// ReadNow reads what has already come into this process: records that crypto/tls
// or the Socket has read ahead. It neither waits nor asks the kernel, and says
// ErrNothing where there is nothing, or half a record. Whoever waits for the
// socket to be readable has read until ErrNothing before: nobody would tell of
// these bytes again.
func ReadNow(c net.Conn, p []byte) (int, error) {
	s := underTLS(c)
	if s == nil {
		if _, ok := c.(*tls.Conn); ok {
			panic("quiet: TLS over something else than a Socket")
		}
		return 0, ErrNothing
	}
	s.noWait = true
	defer func() { s.noWait = false }()
	return c.Read(p)
}

// ReadArrived is ReadNow, and takes what the kernel has of a connection in the clear
// too: all that a read would bring without waiting. Of one with TLS that is whole records
// in this process: the peer, not this end, has cut what comes behind them. It says 0 and
// nil where it cannot be told.
func ReadArrived(c net.Conn, p []byte) (int, error) {
	if underTLS(c) != nil {
		return ReadNow(c, p)
	}
	switch c := c.(type) {
	case *Socket:
		if len(c.in) > 0 {
			return c.Read(p)
		}
		return readKernel(c.TCPConn, p)
	case *net.TCPConn:
		return readKernel(c, p)
	}
	return 0, nil
}

// readAhead makes reads take all that is there, until the buffer is taken back.
func (s *Socket) readAhead(pool *sync.Pool) {
	if s.ahead == nil {
		s.ahead, s.pool = pool.Get().(*[LargeBuffer]byte), pool
	}
}

// trim takes an empty read buffer back, and lets go of one that was put back.
func (s *Socket) trim() {
	if len(s.in) > 0 {
		return
	}
	s.in = nil
	if s.ahead != nil {
		clear(s.ahead[:])
		s.pool.Put(s.ahead)
		s.ahead = nil
	}
}

// Write implements net.Conn. As in crypto/tls, which writes from both
// directions now and then, the lock is held over the socket: records must not
// overtake each other.
func (s *Socket) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if first := s.first; first != nil {
		s.first = nil
		first()
	}
	if s.gathered == nil {
		return s.TCPConn.Write(p)
	}
	if len(p) > gatherBuffer-s.n {
		if err := s.send(); err != nil {
			return 0, err
		}
		return s.TCPConn.Write(p)
	}
	s.n += copy(s.gathered[s.n:], p)
	return len(p), nil
}

// BeforeWrite has f called before the next bytes go out, once. It must not block.
func (s *Socket) BeforeWrite(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.first = f
}

// gather keeps what is written in buf, until flush.
func (s *Socket) gather(buf *[gatherBuffer]byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gathered = buf
}

// flush writes what was gathered, and gives the buffer back, cleared.
func (s *Socket) flush() (*[gatherBuffer]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	buf := s.gathered
	err := s.send()
	s.gathered = nil
	return buf, err
}

// send writes what has been gathered so far. mu is held.
func (s *Socket) send() error {
	sent := s.gathered[:s.n]
	s.n = 0
	_, err := s.TCPConn.Write(sent)
	clear(sent)
	return err
}
