//go:build !linux

package parking

import (
	"errors"
	"net"
	"sync"
	"syscall"
	"time"
)

// CanPark reports whether a Waiter costs less than a goroutine. Here it needs one.
const CanPark = false

// kernelPoller uses a goroutine for each armed socket.
type kernelPoller struct {
	wake func(key uint64) // Set once.
	stop chan struct{}    // Set once. Closed to stop Run.
	wg   sync.WaitGroup

	mu    sync.Mutex
	waits map[uint64]chan struct{} // Guarded by mu. Closed when the goroutine has left the socket.
}

func (p *Poller) open() error {
	p.wake, p.stop, p.waits = p.dispatch, make(chan struct{}), map[uint64]chan struct{}{}
	return nil
}

// Close stops Run. It is called once; no Waiter may be armed or disarmed afterwards. Every
// socket must be closed or disarmed.
func (p *Poller) Close() { close(p.stop) }

// Run waits for Close and for every goroutine.
func (p *Poller) Run() {
	<-p.stop
	p.wg.Wait()
}

func (p *kernelPoller) add(c net.Conn, key uint64) error {
	raw, err := c.(syscall.Conn).SyscallConn()
	if err == nil {
		err = raw.Control(func(uintptr) {}) // fails if closed
	}
	if err != nil {
		return err
	}
	done := make(chan struct{})
	p.mu.Lock()
	p.waits[key] = done
	p.mu.Unlock()
	p.wg.Add(1)
	go p.waitReadable(raw, key, done)
	return nil
}

func (p *kernelPoller) rearm(c net.Conn, key uint64) error { return p.add(c, key) }

// waitReadable returns when the socket is readable, closed or removed.
func (p *kernelPoller) waitReadable(raw syscall.RawConn, key uint64, done chan struct{}) {
	defer p.wg.Done()
	polled := false
	err := raw.Read(func(fd uintptr) bool {
		again := polled
		polled = true
		return again || pollNow(fd, pollIn)
	})
	close(done)
	if !errors.Is(err, net.ErrClosed) {
		p.wake(key) // after other errors too: the owner's read returns them
	}
}

// remove interrupts the goroutine's wait with an expired deadline. The next read sets its
// own.
func (p *kernelPoller) remove(c net.Conn, key uint64) {
	p.mu.Lock()
	done := p.waits[key]
	delete(p.waits, key)
	p.mu.Unlock()
	if done == nil {
		return // closed before its first wait
	}
	select {
	case <-done:
		return
	default:
	}
	_ = c.SetReadDeadline(time.Unix(1, 0))
	<-done
	_ = c.SetReadDeadline(time.Time{})
}
