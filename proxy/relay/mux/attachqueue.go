package mux

import (
	"container/list"
	"sync"
	"time"
)

// attachQueue bounds the sessions that attach at one backend at a time, so that a
// recovering backend is not overloaded.
//
// Sessions with a pending command come first, in order. The clients of sessions in IDLE
// wait for no answer. So these sessions get slots only while no command waits, and at most
// half of all slots: a command seldom waits for them.
type attachQueue struct {
	size int // Set once. Number of slots.

	mu              sync.Mutex
	slotsInUse      int       // Guarded by mu. At most size.
	idleSlotsInUse  int       // Guarded by mu. Those of sessions in IDLE.
	waitingCommands list.List // Guarded by mu. *attachSlot values, at most one for each session.
	waitingIdle     list.List // Guarded by mu. *attachSlot values of sessions in IDLE.
	lastAttach      time.Time // Guarded by mu. Time of the last successful attach.
}

// attachSlot is a session's position in the queue, and then its permission to attach.
type attachSlot struct {
	// Set once.
	queue      *attachQueue
	enqueuedAt time.Time
	ready      chan struct{} // closed when the session may attach
	onGrant    func()        // for a session in IDLE, which waits without a goroutine; nil: a command waits

	elem       *list.Element // Guarded by queue.mu. nil: not waiting.
	acquired   bool          // Guarded by queue.mu.
	lastAttach time.Time     // Guarded by queue.mu. queue.lastAttach at the time of the grant.
}

func newAttachQueue(size int) *attachQueue { return &attachQueue{size: size} }

// enqueue appends a slot to the queue. onGrant is called when a session in IDLE gets the
// slot. The caller must release the slot; repeated releases are harmless.
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

// release returns the slot, or leaves the queue, and grants slots to waiting sessions.
func (s *attachSlot) release() {
	q := s.queue
	q.mu.Lock()
	switch {
	case s.elem != nil:
		q.waitingCommands.Remove(s.elem) // no-op for an element of the other list
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

// releaseAttached releases the slot after a successful attach.
func (s *attachSlot) releaseAttached() {
	s.queue.mu.Lock()
	s.queue.lastAttach = time.Now()
	s.queue.mu.Unlock()
	s.release()
}

// grantSlots grants the free slots and returns those whose onGrant must be called. mu is
// held.
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

// wakeAll calls onGrant of each slot. No lock is held.
func wakeAll(granted []*attachSlot) {
	for _, slot := range granted {
		slot.onGrant()
	}
}

// isGranted reports whether the session may attach.
func (s *attachSlot) isGranted() bool {
	select {
	case <-s.ready:
		return true
	default:
		return false
	}
}

// waitedWhileMoving returns how long the session waited while the queue moved: the time
// from enqueuing to the last successful attach of another session.
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

// holdTimer measures how long a command waits for a backend that is down. Time in a
// moving queue does not count, up to deadline.
type holdTimer struct {
	startedAt time.Time // moved forward by the time that does not count
	timeout   time.Duration
	deadline  time.Time // bound that moving does not extend
}

// remaining returns the remaining time, without the time moving. It may be negative.
func (h *holdTimer) remaining(moving time.Duration) time.Duration {
	return min(h.timeout-time.Since(h.startedAt)+moving, time.Until(h.deadline))
}

// tryDeadline returns the deadline of an attempt that begins now. Each attempt gets the
// full timeout, because a late one would otherwise be cut short at a backend that is up.
func (u *upstreamSide) tryDeadline() time.Time {
	return time.Now().Add(u.backend.settings.CommandHoldTimeout)
}

// acquireAttachSlot waits for a slot, as long as the command may wait.
//
// Errors: errBusy, and the end of the session if it is aborted while it waits.
func (x *exchange) acquireAttachSlot(h *holdTimer) (*attachSlot, error) {
	slot := x.upstream.backend.attachQueue.enqueue(nil)
	timer := time.NewTimer(0) // interval of the checks below
	defer timer.Stop()
	for {
		select {
		case <-slot.ready:
			h.startedAt = h.startedAt.Add(slot.waitedWhileMoving())
			return slot, nil
		case <-timer.C:
		case <-x.hub.ctx.Done():
			slot.release()
			return nil, errBusy
		}
		remaining := h.remaining(slot.waitedWhileMoving())
		switch {
		case x.client.aborted.Load():
			slot.release()
			return nil, x.stopError(*x.client.stopReason.Load())
		case remaining <= 0:
			slot.release()
			return nil, errBusy
		}
		timer.Reset(min(remaining, throttleStep))
	}
}
