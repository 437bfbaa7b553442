package quiet

import (
	"net"
	"sync"
)

// Set waits for sockets, so that their owners need no goroutine to wait in. Each
// socket is armed for one event; its owner arms it again when it has read. The
// number of sockets is bounded by the descriptors that the process may have.
type Set struct {
	poller // Set once.

	mu    sync.Mutex
	armed map[uint64]*Waiter // Guarded by mu. Those whose event is still to come.
	next  uint64             // Guarded by mu. Keys are never used twice, so a late event finds nothing.
}

// NewSet makes a Set for the one who will call Run.
func NewSet() (*Set, error) {
	s := &Set{armed: map[uint64]*Waiter{}}
	if err := s.open(); err != nil {
		return nil, err
	}
	return s, nil
}

// Waker is woken once per event, on a goroutine of the Set's: Wake must not block.
// One that has begun is not called back by Forget, so it may come for nothing.
type Waker interface{ Wake() }

// Waiter waits for one socket at a time, to be readable or hung up. It is not
// copied once it has waited.
type Waiter struct {
	// Guarded by the Set's mu.
	wakes Waker
	conn  net.Conn // the socket in the set, or nil
	key   uint64   // names the Waiter while it is about conn
}

// Wait arms w for one event of c's socket, which is wakes' to hear of. A Waiter that is still armed is left as
// it is; it waits for no other socket before it has been told to Forget. Where
// the kernel has no room for another socket, or c is closed (net.ErrClosed), w
// waits for nothing.
//
// wakes may be woken before Wait returns. Wait and Forget are called in turn; only
// behind the end of its socket may a Waiter be told to Forget at any time.
func (s *Set) Wait(w *Waiter, c net.Conn, wakes Waker) error {
	conn := TCP(c)
	s.mu.Lock()
	if w.conn != nil && w.conn != conn {
		s.mu.Unlock()
		panic("quiet: a Waiter has not forgotten its last socket")
	}
	if s.armed[w.key] == w {
		s.mu.Unlock()
		return nil
	}
	watch := s.rearm
	if w.conn == nil {
		s.next++
		w.conn, w.key, watch = conn, s.next, s.add
	}
	key := w.key
	w.wakes = wakes
	s.armed[key] = w
	s.mu.Unlock()
	err := watch(conn, key)
	if err != nil {
		s.Forget(w)
	}
	return err
}

// Forget makes w wait for nothing. Its socket may be closed, or go on elsewhere.
func (s *Set) Forget(w *Waiter) {
	s.mu.Lock()
	conn, key := w.conn, w.key
	w.wakes, w.conn, w.key = nil, nil, 0
	delete(s.armed, key)
	s.mu.Unlock()
	if conn != nil {
		s.remove(conn, key)
	}
}

// Len is the number of Waiters whose event is still to come.
func (s *Set) Len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.armed)
}

// wake tells the Waiter of an event, unless it has forgotten.
func (s *Set) wake(key uint64) {
	s.mu.Lock()
	var wakes Waker
	if w := s.armed[key]; w != nil {
		wakes = w.wakes
		delete(s.armed, key)
	}
	s.mu.Unlock()
	if wakes != nil {
		wakes.Wake()
	}
}
