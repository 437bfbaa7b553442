package proxy

import (
	"errors"
	"runtime"
	"sync"
	"time"

	"imapgate/internal/quiet"
)

const (
	// patience is how long a handshake waits for its turn in a crowd. A refusal
	// should be with the client within 100 ms, and has a way to go yet.
	patience = 80 * time.Millisecond
	// burst is how long one waits in the beginning of a crowd: hundreds who have lost
	// a server at the same moment come back together, and are soon served.
	burst = 500 * time.Millisecond
	// crowded is for how long behind a refusal the crowd is the same one, though for
	// a moment nobody may have waited.
	crowded = 5 * time.Second
	// maxWaiting is how many handshakes wait at a time.
	maxWaiting = 1024
	// smooth is over how many turns their pace is averaged.
	smooth = 16
)

// errBusy is a handshake that did not get its turn.
var errBusy = errors.New("too many TLS handshakes at a time")

// turns are the handshakes that compute at a time. A handshake is the dearest
// part of a login and everybody may ask for one, so whoever cannot have it soon
// is turned away before it has cost anything: a gateway that begins them all
// ends none in time.
//
// First come, first served: nobody waits so long that the one who has waited
// longest would have gone.
type turns struct {
	// Set once.
	slots chan struct{} // bound: one element for each handshake that computes

	mu sync.Mutex
	// Guarded by mu.
	waiting int           // bound: maxWaiting
	calm    time.Time     // when somebody last did not have to wait
	refused time.Time     // when somebody last waited in vain, or would have
	last    time.Time     // when the last turn began
	pace    time.Duration // from one turn to the next, while somebody waits
}

// newTurns allows so many at a time; 0 goes by the number of cores. There are
// more than cores because a turn is also waited for in the scheduler.
func newTurns(atATime int) *turns {
	if atATime == 0 {
		atATime = 2 * runtime.GOMAXPROCS(0)
	}
	return &turns{slots: make(chan struct{}, atATime)}
}

// hopeless says whether a turn asked for now would come too late, as it looks.
func (t *turns) hopeless() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.tooLate(time.Now())
}

// tooLate is hopeless; mu is held.
func (t *turns) tooLate(now time.Time) bool {
	if t.waiting < maxWaiting && time.Duration(t.waiting)*t.pace <= t.allowed(now) {
		return false
	}
	t.refused = now
	return true
}

// allowed is how long one may wait who comes now; mu is held.
func (t *turns) allowed(now time.Time) time.Duration {
	if now.Sub(t.calm) < burst && now.Sub(t.refused) >= crowded {
		return burst
	}
	return patience
}

// enter takes a slot, in time or not at all.
func (t *turns) enter() error {
	select {
	case t.slots <- struct{}{}:
		t.entered(time.Now())
		return nil
	default:
	}
	wait, err := t.queue(time.Now())
	if err != nil {
		return err
	}
	late := time.NewTimer(wait)
	defer late.Stop()
	select {
	case t.slots <- struct{}{}:
		t.begin(time.Now())
		return nil
	case <-late.C:
		t.giveUp(time.Now())
		return errBusy
	}
}

// entered notes a turn nobody had to wait for.
func (t *turns) entered(now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.calm, t.last = now, now
}

// queue notes somebody who waits, and says how long for.
func (t *turns) queue(now time.Time) (time.Duration, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.tooLate(now) {
		return 0, errBusy
	}
	t.waiting++
	return t.allowed(now), nil
}

// begin notes a turn that was waited for.
func (t *turns) begin(now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.waiting--
	t.pace += (now.Sub(t.last) - t.pace) / smooth
	t.last = now
}

// giveUp notes the end of a wait in vain.
func (t *turns) giveUp(now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.waiting--
	t.refused = now
}

// turn is one handshake's. It is for computing alone: taken when the ClientHello
// has come whole, and given back before the first byte of the answer goes out,
// so that neither a slow client nor a distant one keeps anybody waiting. All of
// it belongs to the goroutine of the handshake.
type turn struct {
	turns  *turns
	socket *quiet.Socket
	held   bool
}

// take waits for the turn, or says errBusy. It may be taken again after it was
// given back: a HelloRetryRequest (RFC 8446 §4.1.4) is an answer too.
func (t *turn) take() error {
	if t.held {
		return nil
	}
	if err := t.turns.enter(); err != nil {
		return err
	}
	t.held = true
	t.socket.BeforeWrite(t.giveBack)
	// Whoever else is ready to run goes first: sessions, and logins further on. So
	// handshakes get what these leave over, and no more are begun than can be ended.
	runtime.Gosched()
	return nil
}

// giveBack lets the next one in. It may be called again.
func (t *turn) giveBack() {
	if t.held {
		t.held = false
		<-t.turns.slots
	}
}
