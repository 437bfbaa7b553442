//go:build !linux

package quiet

import (
	"errors"
	"net"
	"sync"
	"syscall"
	"time"
)

// CanPark says whether a Waiter costs less than a goroutine. Here it is one.
const CanPark = false

// poller has a goroutine per socket that is armed.
type poller struct {
	wakes func(key uint64) // Set once.
	stop  chan struct{}    // Set once. Tells Run to end.
	wg    sync.WaitGroup

	mu      sync.Mutex
	waiting map[uint64]chan struct{} // Guarded by mu. Closed when the goroutine has left the socket.
}

func (s *Set) open() error {
	s.wakes, s.stop, s.waiting = s.wake, make(chan struct{}), map[uint64]chan struct{}{}
	return nil
}

// Close ends Run, once. No Waiter is told to Wait or Forget afterwards, and every
// socket is closed or forgotten.
func (s *Set) Close() { close(s.stop) }

// Run waits for Close, and for every goroutine.
func (s *Set) Run() {
	<-s.stop
	s.wg.Wait()
}

func (p *poller) add(c net.Conn, key uint64) error {
	raw, err := c.(syscall.Conn).SyscallConn()
	if err == nil {
		err = raw.Control(func(uintptr) {}) // closed?
	}
	if err != nil {
		return err
	}
	left := make(chan struct{})
	p.mu.Lock()
	p.waiting[key] = left
	p.mu.Unlock()
	p.wg.Add(1)
	go p.wait(raw, key, left)
	return nil
}

func (p *poller) rearm(c net.Conn, key uint64) error { return p.add(c, key) }

// wait ends when the socket is readable, hung up, closed or removed.
func (p *poller) wait(raw syscall.RawConn, key uint64, left chan struct{}) {
	defer p.wg.Done()
	asked := false
	err := raw.Read(func(fd uintptr) bool {
		again := asked
		asked = true
		return again || readable(fd)
	})
	close(left)
	if !errors.Is(err, net.ErrClosed) {
		p.wakes(key) // on any other error too: the owner's read will meet it
	}
}

// remove takes the goroutine off the socket with a deadline that has passed. The
// next one to read sets its own.
func (p *poller) remove(c net.Conn, key uint64) {
	p.mu.Lock()
	left := p.waiting[key]
	delete(p.waiting, key)
	p.mu.Unlock()
	if left == nil {
		return // it was closed before it could be waited for
	}
	select {
	case <-left:
		return
	default:
	}
	_ = c.SetReadDeadline(time.Unix(1, 0))
	<-left
	_ = c.SetReadDeadline(time.Time{})
}
