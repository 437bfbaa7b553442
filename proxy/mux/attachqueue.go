package mux

import (
	"container/list"
	"sync"
	"time"
)

// attachQueue lets sessions attach at one backend in turn, so that a backend that comes
// back is not run over by all of them.
//
// Sessions with a command in hand come first, in their order. A session in IDLE,
// whose client waits for no answer, gets a turn while no command waits; and of all
// turns sessions in IDLE have half at most, so that a command seldom waits for one.
type attachQueue struct {
	size int // Set once. Turns at a time.

	mu              sync.Mutex
	slotsInUse      int       // Guarded by mu. At most most.
	idleSlotsInUse  int       // Guarded by mu. Those of taken that sessions in IDLE have.
	waitingCommands list.List // Guarded by mu. The *turn of those that wait, at most one of each session.
	waitingIdle     list.List // Guarded by mu. The same of sessions in IDLE.
	lastAttach      time.Time // Guarded by mu. When an attach last worked.
}

// attachSlot is a session's place in the queue, and then its leave to attach.
type attachSlot struct {
	// Set once.
	queue      *attachQueue
	enqueuedAt time.Time
	ready      chan struct{} // closed when the session may attach
	onGrant    func()        // of a session in IDLE, which waits without a goroutine; nil: it has a command

	elem       *list.Element // Guarded by queue.mu. nil: it does not wait any more.
	acquired   bool          // Guarded by queue.mu.
	lastAttach time.Time     // Guarded by queue.mu. The queue's, when the turn was granted.
}

func newAttachQueue(size int) *attachQueue { return &attachQueue{size: size} }

// enqueue gets a place at the end of the queue. A session in IDLE is called, with
// wake, when its turn has come. The turn must be left, once or more often.
func (q *attachQueue) enqueue(onGrant func()) *attachSlot {
	slot := &attachSlot{queue: q, enqueuedAt: time.Now(), ready: make(chan struct{}), onGrant: onGrant}
	q.mu.Lock()
	if onGrant == nil {
		slot.elem = q.waitingCommands.PushBack(slot)
	} else {
		slot.elem = q.waitingIdle.PushBack(slot)
	}
	granted := q.grantSlots()
	q.mu.Unlock()
	wakeAll(granted)
	return slot
}

// release gives the turn, or the place in the queue, to those behind.
func (s *attachSlot) release() {
	q := s.queue
	q.mu.Lock()
	switch {
	case s.elem != nil:
		q.waitingCommands.Remove(s.elem) // does nothing in the list that does not have it
		q.waitingIdle.Remove(s.elem)
		s.elem = nil
	case s.acquired:
		s.acquired = false
		q.slotsInUse--
		if s.onGrant != nil {
			q.idleSlotsInUse--
		}
	}
	granted := q.grantSlots()
	q.mu.Unlock()
	wakeAll(granted)
}

// releaseAttached leaves the turn of an attach that has worked.
func (s *attachSlot) releaseAttached() {
	s.queue.mu.Lock()
	s.queue.lastAttach = time.Now()
	s.queue.mu.Unlock()
	s.release()
}

// grantSlots grants the turns that there are, and returns those to be woken. mu is held.
func (q *attachQueue) grantSlots() (granted []*attachSlot) {
	for q.slotsInUse < q.size && q.waitingCommands.Len() > 0 {
		q.grantNext(&q.waitingCommands)
	}
	for q.slotsInUse < q.size && q.idleSlotsInUse < max(q.size/2, 1) && q.waitingIdle.Len() > 0 {
		granted = append(granted, q.grantNext(&q.waitingIdle))
		q.idleSlotsInUse++
	}
	return granted
}

func (q *attachQueue) grantNext(from *list.List) *attachSlot {
	slot := from.Remove(from.Front()).(*attachSlot)
	slot.elem, slot.acquired, slot.lastAttach = nil, true, q.lastAttach
	q.slotsInUse++
	close(slot.ready)
	return slot
}

// wakeAll tells sessions that their turn has come. No lock is held.
func wakeAll(granted []*attachSlot) {
	for _, slot := range granted {
		slot.onGrant()
	}
}

// isGranted says whether the session may attach.
func (s *attachSlot) isGranted() bool {
	select {
	case <-s.ready:
		return true
	default:
		return false
	}
}

// waitedWhileMoving is how long the session has waited in a queue that moved: up to when the
// attach of another last worked.
func (s *attachSlot) waitedWhileMoving() time.Duration {
	q := s.queue
	q.mu.Lock()
	defer q.mu.Unlock()
	lastAttach := q.lastAttach
	if s.isGranted() {
		lastAttach = s.lastAttach
	}
	return max(lastAttach.Sub(s.enqueuedAt), 0)
}

// holdTimer is how long a command waits for a backend that is down. What it waits in a
// queue that moves does not count, up to a bound.
type holdTimer struct {
	startedAt time.Time // moves on by what does not count
	timeout   time.Duration
	deadline  time.Time // the bound
}

// remaining is what remains of it, moving not counted. It may be negative.
func (h *holdTimer) remaining(moving time.Duration) time.Duration {
	return min(h.timeout-time.Since(h.startedAt)+moving, time.Until(h.deadline))
}

// tryDeadline is when a single attempt that begins now is given up. It has its own time,
// or one that begins late would be cut short at a backend that is there.
func (s *session) tryDeadline() time.Time {
	return time.Now().Add(s.backend.settings.CommandHoldTimeout)
}

// acquireAttachSlot waits for a turn to attach, as long as the command may wait.
//
// Errors: errBusy, and the session's end if it is cut off meanwhile.
func (s *session) acquireAttachSlot(h *holdTimer) (*attachSlot, error) {
	slot := s.backend.attachQueue.enqueue(nil)
	timer := time.NewTimer(0) // at whether to go on
	defer timer.Stop()
	for {
		select {
		case <-slot.ready:
			h.startedAt = h.startedAt.Add(slot.waitedWhileMoving())
			return slot, nil
		case <-timer.C:
		case <-s.hub.ctx.Done():
			slot.release()
			return nil, errBusy
		}
		remaining := h.remaining(slot.waitedWhileMoving())
		switch {
		case s.aborted.Load():
			slot.release()
			return nil, stopError(*s.stopReason.Load())
		case remaining <= 0:
			slot.release()
			return nil, errBusy
		}
		timer.Reset(min(remaining, throttleStep))
	}
}
