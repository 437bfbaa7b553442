package mux

import (
	"container/list"
	"sync"
	"time"
)

// queue lets sessions attach at one backend in turn, so that a backend that comes
// back is not run over by all of them.
//
// Sessions with a command in hand come first, in their order. A session in IDLE,
// whose client waits for no answer, gets a turn while no command waits; and of all
// turns sessions in IDLE have half at most, so that a command seldom waits for one.
type queue struct {
	most int // Set once. Turns at a time.

	mu       sync.Mutex
	taken    int       // Guarded by mu. At most most.
	idlers   int       // Guarded by mu. Those of taken that sessions in IDLE have.
	commands list.List // Guarded by mu. The *turn of those that wait, at most one of each session.
	idle     list.List // Guarded by mu. The same of sessions in IDLE.
	moved    time.Time // Guarded by mu. When an attach last worked.
}

// turn is a session's place in the queue, and then its leave to attach.
type turn struct {
	// Set once.
	queue   *queue
	entered time.Time
	granted chan struct{} // closed when the session may attach
	wake    func()        // of a session in IDLE, which waits without a goroutine; nil: it has a command

	place *list.Element // Guarded by queue.mu. nil: it does not wait any more.
	taken bool          // Guarded by queue.mu.
	moved time.Time     // Guarded by queue.mu. The queue's, when the turn was granted.
}

func newQueue(most int) *queue { return &queue{most: most} }

// enter gets a place at the end of the queue. A session in IDLE is called, with
// wake, when its turn has come. The turn must be left, once or more often.
func (q *queue) enter(wake func()) *turn {
	t := &turn{queue: q, entered: time.Now(), granted: make(chan struct{}), wake: wake}
	q.mu.Lock()
	if wake == nil {
		t.place = q.commands.PushBack(t)
	} else {
		t.place = q.idle.PushBack(t)
	}
	woken := q.serve()
	q.mu.Unlock()
	wakeAll(woken)
	return t
}

// leave gives the turn, or the place in the queue, to those behind.
func (t *turn) leave() {
	q := t.queue
	q.mu.Lock()
	switch {
	case t.place != nil:
		q.commands.Remove(t.place) // does nothing in the list that does not have it
		q.idle.Remove(t.place)
		t.place = nil
	case t.taken:
		t.taken = false
		q.taken--
		if t.wake != nil {
			q.idlers--
		}
	}
	woken := q.serve()
	q.mu.Unlock()
	wakeAll(woken)
}

// done leaves the turn of an attach that has worked.
func (t *turn) done() {
	t.queue.mu.Lock()
	t.queue.moved = time.Now()
	t.queue.mu.Unlock()
	t.leave()
}

// serve grants the turns that there are, and returns those to be woken. mu is held.
func (q *queue) serve() (woken []*turn) {
	for q.taken < q.most && q.commands.Len() > 0 {
		q.grant(&q.commands)
	}
	for q.taken < q.most && q.idlers < max(q.most/2, 1) && q.idle.Len() > 0 {
		woken = append(woken, q.grant(&q.idle))
		q.idlers++
	}
	return woken
}

func (q *queue) grant(from *list.List) *turn {
	t := from.Remove(from.Front()).(*turn)
	t.place, t.taken, t.moved = nil, true, q.moved
	q.taken++
	close(t.granted)
	return t
}

// wakeAll tells sessions that their turn has come. No lock is held.
func wakeAll(woken []*turn) {
	for _, t := range woken {
		t.wake()
	}
}

// isGranted says whether the session may attach.
func (t *turn) isGranted() bool {
	select {
	case <-t.granted:
		return true
	default:
		return false
	}
}

// moving is how long the session has waited in a queue that moved: up to when the
// attach of another last worked.
func (t *turn) moving() time.Duration {
	q := t.queue
	q.mu.Lock()
	defer q.mu.Unlock()
	last := q.moved
	if t.isGranted() {
		last = t.moved
	}
	return max(last.Sub(t.entered), 0)
}

// hold is how long a command waits for a backend that is down. What it waits in a
// queue that moves does not count, up to a bound.
type hold struct {
	began time.Time // moves on by what does not count
	most  time.Duration
	until time.Time // the bound
}

// left is what remains of it, moving not counted. It may be negative.
func (h *hold) left(moving time.Duration) time.Duration {
	return min(h.most-time.Since(h.began)+moving, time.Until(h.until))
}

// attempt is when a single attempt that begins now is given up. It has its own time,
// or one that begins late would be cut short at a backend that is there.
func (s *session) attempt() time.Time { return time.Now().Add(s.backend.settings.HoldMax) }

// takeTurn waits for a turn to attach, as long as the command may wait.
//
// Errors: errBusy, and the session's end if it is cut off meanwhile.
func (s *session) takeTurn(h *hold) (*turn, error) {
	t := s.backend.queue.enter(nil)
	look := time.NewTimer(0) // at whether to go on
	defer look.Stop()
	for {
		select {
		case <-t.granted:
			h.began = h.began.Add(t.moving())
			return t, nil
		case <-look.C:
		case <-s.hub.ctx.Done():
			t.leave()
			return nil, errBusy
		}
		left := h.left(t.moving())
		switch {
		case s.severed.Load():
			t.leave()
			return nil, orderedEnd(*s.order.Load())
		case left <= 0:
			t.leave()
			return nil, errBusy
		}
		look.Reset(min(left, breath))
	}
}
