package auth

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"time"

	"imapgate/internal/identity"
)

// ErrBusy comes wrapped with ErrUnavailable: nothing is wrong but that too many
// passwords are to be checked.
var ErrBusy = errors.New("too many logins are waiting")

// queueTimeout is the longest wait in the queue. A full one is over sooner with hashes
// as they should be, and people have not given up before.
const queueTimeout = 10 * time.Second

// verifier runs password hashing, at most cap(slots) at once. Hashing is pure
// CPU work (a tenth of a second and more), so a flood of guesses without this
// bound would take the machine from the sessions that are already relayed.
type verifier struct {
	// Set once.
	slots chan struct{}                          // bound: one element for each verification that runs
	queue chan struct{}                          // bound: one element for each that waits
	match func(storedHash, identity.Secret) bool // stored.matches; tests look over its shoulder
}

func newVerifier(running, waiting int) *verifier {
	if running == 0 {
		running = runtime.GOMAXPROCS(0)
	}
	if waiting == 0 {
		waiting = defaultMaxQueued
	}
	return &verifier{
		slots: make(chan struct{}, running),
		queue: make(chan struct{}, waiting),
		match: storedHash.matches,
	}
}

// verify says whether password is the one stored as s. It runs in the caller's
// goroutine, so it starts nothing that could outlive a session. Once hashing
// has begun it cannot be interrupted; until then ctx ends the wait and gives
// the place in the queue back.
func (v *verifier) verify(ctx context.Context, s storedHash, password identity.Secret) (bool, error) {
	if err := v.acquireSlot(ctx); err != nil {
		return false, fmt.Errorf("wait for a verifier: %w: %w", ErrUnavailable, err)
	}
	defer func() { <-v.slots }()
	return v.match(s, password), nil
}

// acquireSlot takes a slot; verify gives it back.
func (v *verifier) acquireSlot(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	select {
	case v.slots <- struct{}{}:
		return nil
	default:
	}
	select {
	case v.queue <- struct{}{}:
	default:
		return ErrBusy
	}
	defer func() { <-v.queue }()
	timer := time.NewTimer(queueTimeout)
	defer timer.Stop()
	// A freed slot goes to the one who has waited longest: channels serve
	// blocked senders in order, and nobody can overtake while one is blocked.
	select {
	case v.slots <- struct{}{}:
		return nil
	case <-timer.C:
		return ErrBusy
	case <-ctx.Done():
		return ctx.Err()
	}
}
