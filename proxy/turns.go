package proxy

import (
	"errors"
	"runtime"
	"time"

	"imapgate/internal/quiet"
)

const (
	// patience is how long a handshake waits for its turn. A refusal should be
	// with the client within 100 ms, and has a way to go yet.
	patience = 80 * time.Millisecond
	// maxWaiting is how many handshakes wait at a time.
	maxWaiting = 1024
)

// errBusy is a handshake that did not get its turn.
var errBusy = errors.New("too many TLS handshakes at a time")

// turns are the handshakes that compute at a time. A handshake is the dearest
// part of a login and everybody may ask for one, so whoever cannot have it soon
// is turned away before it has cost anything: a gateway that begins them all
// ends none in time.
//
// First come, first served: while nobody waits longer than patience, the one
// who has waited longest is still there.
type turns struct {
	slots chan struct{} // bound: one element for each handshake that computes
	queue chan struct{} // bound: one element for each that waits
}

// newTurns allows so many at a time; 0 goes by the number of cores. There are
// more than cores because a turn is also waited for in the scheduler.
func newTurns(atATime int) *turns {
	if atATime == 0 {
		atATime = 2 * runtime.GOMAXPROCS(0)
	}
	return &turns{slots: make(chan struct{}, atATime), queue: make(chan struct{}, maxWaiting)}
}

// enter takes a slot, within patience.
func (t *turns) enter() error {
	select {
	case t.slots <- struct{}{}:
		return nil
	default:
	}
	select {
	case t.queue <- struct{}{}:
	default:
		return errBusy
	}
	defer func() { <-t.queue }()
	late := time.NewTimer(patience)
	defer late.Stop()
	select {
	case t.slots <- struct{}{}:
		return nil
	case <-late.C:
		return errBusy
	}
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
