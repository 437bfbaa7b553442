package parking

import (
	"net"
	"sync"
)

// Poller waits for sockets, so that their owners need no goroutine to wait in. Each
// socket is armed for one event; its owner arms it again when it has read. The
// number of sockets is bounded by the descriptors that the process may have.
type Poller struct {
	kernelPoller // Set once.

	mu      sync.Mutex
	armed   map[uint64]*Waiter // Guarded by mu. Those whose event is still to come.
	lastKey uint64             // Guarded by mu. Keys are never used twice, so a late event finds nothing.
}

// NewPoller makes a Set for the one who will call Run.
func NewPoller() (*Poller, error) {
	p := &Poller{armed: map[uint64]*Waiter{}}
	if err := p.open(); err != nil {
		return nil, err
	}
	return p, nil
}

// Waker is woken once per event, on a goroutine of the Set's: Wake must not block.
// One that has begun is not called back by Forget, so it may come for nothing.
type Waker interface{ Wake() }

// Waiter waits for one socket at a time, to be readable or hung up. It is not
// copied once it has waited.
type Waiter struct {
	// Guarded by the Set's mu.
	waker Waker
	conn  net.Conn // the socket in the set, or nil
	key   uint64   // names the Waiter while it is about conn
}

// Arm arms w for one event of c's socket, which is wakes' to hear of. A Waiter that is still armed is left as
// it is; it waits for no other socket before it has been told to Forget. Where
// the kernel has no room for another socket, or c is closed (net.ErrClosed), w
// waits for nothing.
//
// wakes may be woken before Wait returns. Wait and Forget are called in turn; only
// behind the end of its socket may a Waiter be told to Forget at any time.
func (p *Poller) Arm(w *Waiter, c net.Conn, waker Waker) error {
	conn := TCP(c)
	p.mu.Lock()
	if w.conn != nil && w.conn != conn {
		p.mu.Unlock()
		panic("parking: a Waiter has not forgotten its last socket")
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

// Disarm makes w wait for nothing. Its socket may be closed, or go on elsewhere.
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

// Len is the number of Waiters whose event is still to come.
func (p *Poller) Len() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.armed)
}

// dispatch tells the Waiter of an event, unless it has forgotten.
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
