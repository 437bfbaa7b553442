package parking

import (
	"net"
	"sync"
)

// Poller waits for sockets so that their owners need no goroutine. A socket is armed for
// one event; its owner arms it again after reading. The descriptor limit bounds the number
// of sockets.
type Poller struct {
	kernelPoller // Set once.

	mu      sync.Mutex
	armed   map[uint64]*Waiter // Guarded by mu. Waiters whose event has not come.
	lastKey uint64             // Guarded by mu. Keys are never reused, so a late event finds no Waiter.
}

// NewPoller returns a Poller; the caller must call Run.
func NewPoller() (*Poller, error) {
	p := &Poller{armed: map[uint64]*Waiter{}}
	if err := p.open(); err != nil {
		return nil, err
	}
	return p, nil
}

// Waker is woken once for each event, on a goroutine of the Poller: Wake must not block.
// Disarm does not cancel a Wake in progress, so one may come without need.
type Waker interface{ Wake() }

// Waiter waits for one socket at a time to be readable or closed. It must not be copied
// after its first use.
type Waiter struct {
	// Guarded by the Poller's mu.
	waker Waker
	conn  net.Conn // the registered socket, or nil
	key   uint64   // identifies the Waiter while conn is registered
}

// Arm arms w for one event of c's socket, which wakes waker. A Waiter that is still armed
// stays as it is; it must be disarmed before it waits for another socket. On an error w is
// not armed: the kernel has no room for another socket, or c is closed (net.ErrClosed).
//
// waker may be woken before Arm returns. Calls of Arm and Disarm must not overlap, except
// that Disarm may be called at any time after the session has ended.
func (p *Poller) Arm(w *Waiter, c net.Conn, waker Waker) error {
	conn := TCP(c)
	p.mu.Lock()
	if w.conn != nil && w.conn != conn {
		p.mu.Unlock()
		panic("parking: Waiter armed for another socket")
	}
	if p.armed[w.key] == w {
		p.mu.Unlock()
		return nil
	}
	register := p.rearm
	if w.conn == nil {
		p.lastKey++
		w.conn, w.key, register = conn, p.lastKey, p.add
	}
	key := w.key
	w.waker = waker
	p.armed[key] = w
	p.mu.Unlock()
	err := register(conn, key)
	if err != nil {
		p.Disarm(w)
	}
	return err
}

// Disarm cancels w. Its socket may then be closed or used elsewhere.
func (p *Poller) Disarm(w *Waiter) {
	p.mu.Lock()
	conn, key := w.conn, w.key
	w.waker, w.conn, w.key = nil, nil, 0
	delete(p.armed, key)
	p.mu.Unlock()
	if conn != nil {
		p.remove(conn, key)
	}
}

// Len returns the number of armed Waiters.
func (p *Poller) Len() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.armed)
}

// dispatch wakes the Waiter of an event, unless it was disarmed.
func (p *Poller) dispatch(key uint64) {
	p.mu.Lock()
	var waker Waker
	if w := p.armed[key]; w != nil {
		waker = w.waker
		delete(p.armed, key)
	}
	p.mu.Unlock()
	if waker != nil {
		waker.Wake()
	}
}
