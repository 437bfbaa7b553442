package proxy

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"imapgate/internal/parking"
)

const (
	// maxHandshakeWait is how long a handshake waits for a slot under overload. A refusal
	// should reach the client within 100 ms, so some of that is left for the network.
	maxHandshakeWait = 80 * time.Millisecond
	// burstWait is how long a handshake waits at the start of a burst. Hundreds of clients
	// reconnect together after they lose a server, and are served quickly.
	burstWait = 500 * time.Millisecond
	// overloadMemory is how long after a refusal the overload counts as the same one, even
	// if the queue was empty for a moment.
	overloadMemory = 5 * time.Second
	// maxQueuedHandshakes bounds the handshakes that wait for a slot.
	maxQueuedHandshakes = 1024
	// intervalSamples is the number of queued starts over which interval is averaged.
	intervalSamples = 16
)

// errOverloaded reports a handshake that got no slot in time.
var errOverloaded = errors.New("too many TLS handshakes at a time")

// handshakeLimiter bounds the TLS handshakes that compute at a time. A handshake is the
// most expensive part of a login, and any client may start one. One that would wait too
// long is refused before it costs anything: a gateway that starts them all finishes none in
// time.
//
// Slots go to the first in the queue. Waits are short enough that the longest waiting
// client has not disconnected.
type handshakeLimiter struct {
	// Set once.
	slots *semaphore.Weighted // of handshakes that compute

	mu sync.Mutex
	// Guarded by mu.
	queued      int           // bound: maxQueuedHandshakes
	lastIdle    time.Time     // last start without a wait
	lastRefusal time.Time     // last refusal
	lastStart   time.Time     // last start of a handshake
	interval    time.Duration // average time between starts while handshakes wait
}

// newHandshakeLimiter allows limit handshakes at a time, or twice the number of cores if
// limit is 0. More than one for each core is right because handshakes also wait in the
// scheduler.
func newHandshakeLimiter(limit int) *handshakeLimiter {
	if limit == 0 {
		limit = 2 * runtime.GOMAXPROCS(0)
	}
	return &handshakeLimiter{slots: semaphore.NewWeighted(int64(limit))}
}

// isOverloaded reports whether a new handshake would probably wait too long for a slot.
func (l *handshakeLimiter) isOverloaded() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.checkOverload(time.Now())
}

// checkOverload is isOverloaded with mu held. It records a refusal.
func (l *handshakeLimiter) checkOverload(now time.Time) bool {
	if l.queued < maxQueuedHandshakes && time.Duration(l.queued)*l.interval <= l.maxWaitAt(now) {
		return false
	}
	l.lastRefusal = now
	return true
}

// maxWaitAt returns how long a handshake may wait that arrives now. mu is held.
func (l *handshakeLimiter) maxWaitAt(now time.Time) time.Duration {
	if now.Sub(l.lastIdle) < burstWait && now.Sub(l.lastRefusal) >= overloadMemory {
		return burstWait
	}
	return maxHandshakeWait
}

// acquire acquires a slot within the allowed wait, or returns errOverloaded.
func (l *handshakeLimiter) acquire() error {
	if l.slots.TryAcquire(1) {
		l.startAtOnce(time.Now())
		return nil
	}
	wait, err := l.enqueue(time.Now())
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), wait)
	defer cancel()
	if l.slots.Acquire(ctx, 1) != nil {
		l.giveUpWait(time.Now())
		return errOverloaded
	}
	l.startQueued(time.Now())
	return nil
}

// startAtOnce records a handshake that started without a wait.
func (l *handshakeLimiter) startAtOnce(now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lastIdle, l.lastStart = now, now
}

// enqueue records a waiting handshake and returns how long it may wait.
func (l *handshakeLimiter) enqueue(now time.Time) (time.Duration, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.checkOverload(now) {
		return 0, errOverloaded
	}
	l.queued++
	return l.maxWaitAt(now), nil
}

// startQueued records the start of a handshake that has waited.
func (l *handshakeLimiter) startQueued(now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.queued--
	l.interval += (now.Sub(l.lastStart) - l.interval) / intervalSamples
	l.lastStart = now
}

// giveUpWait records a handshake whose wait timed out.
func (l *handshakeLimiter) giveUpWait(now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.queued--
	l.lastRefusal = now
}

// handshakeSlot is the slot of one handshake. It covers computing only, from the complete
// ClientHello to the first byte of the answer. So a slow or distant client delays no other.
// The handshake's goroutine owns all of it.
type handshakeSlot struct {
	limiter  *handshakeLimiter
	socket   *parking.BufferedConn
	acquired bool
}

// acquire waits for a slot or returns errOverloaded. It may be called again after a
// release, because a HelloRetryRequest (RFC 8446 §4.1.4) is an answer too.
func (s *handshakeSlot) acquire() error {
	if s.acquired {
		return nil
	}
	if err := s.limiter.acquire(); err != nil {
		return err
	}
	s.acquired = true
	s.socket.BeforeWrite(s.release)
	// Other runnable goroutines go first: sessions, and logins that are further on.
	// Handshakes get the remaining CPU time, so no more start than can finish.
	runtime.Gosched()
	return nil
}

// release frees the slot. It is idempotent.
func (s *handshakeSlot) release() {
	if s.acquired {
		s.acquired = false
		s.limiter.slots.Release(1)
	}
}
