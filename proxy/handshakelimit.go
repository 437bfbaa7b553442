package proxy

import (
	"errors"
	"runtime"
	"sync"
	"time"

	"imapgate/internal/parking"
)

const (
	// maxHandshakeWait is how long a handshake waits for its turn in a crowd. A refusal
	// should be with the client within 100 ms, and has a way to go yet.
	maxHandshakeWait = 80 * time.Millisecond
	// burstWait is how long one waits in the beginning of a crowd: hundreds who have lost
	// a server at the same moment come back together, and are soon served.
	burstWait = 500 * time.Millisecond
	// overloadMemory is for how long behind a refusal the crowd is the same one, though for
	// a moment nobody may have waited.
	overloadMemory = 5 * time.Second
	// maxQueuedHandshakes is how many handshakes wait at a time.
	maxQueuedHandshakes = 1024
	// intervalSamples is over how many turns their pace is averaged.
	intervalSamples = 16
)

// errOverloaded is a handshake that did not get its turn.
var errOverloaded = errors.New("too many TLS handshakes at a time")

// handshakeLimiter are the handshakes that compute at a time. A handshake is the dearest
// part of a login and everybody may ask for one, so whoever cannot have it soon
// is turned away before it has cost anything: a gateway that begins them all
// ends none in time.
//
// First come, first served: nobody waits so long that the one who has waited
// longest would have gone.
type handshakeLimiter struct {
	// Set once.
	slots chan struct{} // bound: one element for each handshake that computes

	mu sync.Mutex
	// Guarded by mu.
	queued      int           // bound: maxQueuedHandshakes
	lastIdle    time.Time     // when somebody last did not have to wait
	lastRefusal time.Time     // when somebody last waited in vain, or would have
	lastStart   time.Time     // when the last turn began
	interval    time.Duration // from one turn to the next, while somebody waits
}

// newHandshakeLimiter allows so many at a time; 0 goes by the number of cores. There are
// more than cores because a turn is also waited for in the scheduler.
func newHandshakeLimiter(limit int) *handshakeLimiter {
	if limit == 0 {
		limit = 2 * runtime.GOMAXPROCS(0)
	}
	return &handshakeLimiter{slots: make(chan struct{}, limit)}
}

// isOverloaded says whether a turn asked for now would come too late, as it looks.
func (l *handshakeLimiter) isOverloaded() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.checkOverload(time.Now())
}

// checkOverload is hopeless; mu is held.
func (l *handshakeLimiter) checkOverload(now time.Time) bool {
	if l.queued < maxQueuedHandshakes && time.Duration(l.queued)*l.interval <= l.maxWaitAt(now) {
		return false
	}
	l.lastRefusal = now
	return true
}

// maxWaitAt is how long one may wait who comes now; mu is held.
func (l *handshakeLimiter) maxWaitAt(now time.Time) time.Duration {
	if now.Sub(l.lastIdle) < burstWait && now.Sub(l.lastRefusal) >= overloadMemory {
		return burstWait
	}
	return maxHandshakeWait
}

// acquire takes a slot, in time or not at all.
func (l *handshakeLimiter) acquire() error {
	select {
	case l.slots <- struct{}{}:
		l.startAtOnce(time.Now())
		return nil
	default:
	}
	wait, err := l.enqueue(time.Now())
	if err != nil {
		return err
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case l.slots <- struct{}{}:
		l.startQueued(time.Now())
		return nil
	case <-timer.C:
		l.giveUpWait(time.Now())
		return errOverloaded
	}
}

// startAtOnce notes a turn nobody had to wait for.
func (l *handshakeLimiter) startAtOnce(now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lastIdle, l.lastStart = now, now
}

// enqueue notes somebody who waits, and says how long for.
func (l *handshakeLimiter) enqueue(now time.Time) (time.Duration, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.checkOverload(now) {
		return 0, errOverloaded
	}
	l.queued++
	return l.maxWaitAt(now), nil
}

// startQueued notes a turn that was waited for.
func (l *handshakeLimiter) startQueued(now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.queued--
	l.interval += (now.Sub(l.lastStart) - l.interval) / intervalSamples
	l.lastStart = now
}

// giveUpWait notes the end of a wait in vain.
func (l *handshakeLimiter) giveUpWait(now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.queued--
	l.lastRefusal = now
}

// handshakeSlot is one handshake's. It is for computing alone: taken when the ClientHello
// has come whole, and given back before the first byte of the answer goes out,
// so that neither a slow client nor a distant one keeps anybody waiting. All of
// it belongs to the goroutine of the handshake.
type handshakeSlot struct {
	limiter  *handshakeLimiter
	socket   *parking.BufferedConn
	acquired bool
}

// acquire waits for the turn, or says errOverloaded. It may be taken again after it was
// given back: a HelloRetryRequest (RFC 8446 §4.1.4) is an answer too.
func (s *handshakeSlot) acquire() error {
	if s.acquired {
		return nil
	}
	if err := s.limiter.acquire(); err != nil {
		return err
	}
	s.acquired = true
	s.socket.BeforeWrite(s.release)
	// Whoever else is ready to run goes first: sessions, and logins further on. So
	// handshakes get what these leave over, and no more are begun than can be ended.
	runtime.Gosched()
	return nil
}

// release lets the next one in. It may be called again.
func (s *handshakeSlot) release() {
	if s.acquired {
		s.acquired = false
		<-s.limiter.slots
	}
}
