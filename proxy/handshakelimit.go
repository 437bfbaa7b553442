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

// refuseIfOverloaded returns errOverloaded, and records a refusal, if a new handshake would
// probably wait too long for a slot.
func (l *handshakeLimiter) refuseIfOverloaded() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, err := l.allowedWait(time.Now())
	return err
}

// allowedWait returns how long a handshake may wait that arrives now. If it would probably
// wait longer, the error is errOverloaded, and a refusal is recorded. mu is held.
func (l *handshakeLimiter) allowedWait(now time.Time) (time.Duration, error) {
	wait := maxHandshakeWait
	if now.Sub(l.lastIdle) < burstWait && now.Sub(l.lastRefusal) >= overloadMemory {
		wait = burstWait
	}
	if l.queued >= maxQueuedHandshakes || time.Duration(l.queued)*l.interval > wait {
		l.lastRefusal = now
		return 0, errOverloaded
	}
	return wait, nil
}

// acquire acquires a slot within the allowed wait, or returns errOverloaded.
func (l *handshakeLimiter) acquire() error {
	atOnce := l.slots.TryAcquire(1)
	l.mu.Lock()
	now := time.Now()
	if atOnce {
		l.lastIdle, l.lastStart = now, now
		l.mu.Unlock()
		return nil
	}
	wait, err := l.allowedWait(now)
	if err != nil {
		l.mu.Unlock()
		return err
	}
	l.queued++
	l.mu.Unlock()

	ctx, cancel := context.WithTimeout(context.Background(), wait)
	defer cancel()
	err = l.slots.Acquire(ctx, 1)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.queued--
	if now = time.Now(); err != nil {
		l.lastRefusal = now
		return errOverloaded
	}
	l.interval += (now.Sub(l.lastStart) - l.interval) / intervalSamples
	l.lastStart = now
	return nil
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
