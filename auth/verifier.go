package auth

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"time"

	"imapgate/internal/identity"
)

// ErrBusy is wrapped together with ErrUnavailable when the queue for verifiers is full, or the
// wait in it took too long.
var ErrBusy = errors.New("too many logins are waiting")

// queueTimeout is the longest wait in the queue. With usual costs a full queue is done sooner,
// and users do not give up before.
const queueTimeout = 10 * time.Second

// verifier hashes passwords, at most cap(slots) at once. Hashing is pure CPU work of a tenth of
// a second or more. Without the bound a flood of guesses would slow down all relayed sessions.
type verifier struct {
	// Set once.
	slots chan struct{}                          // bound: one element for each running verification
	queue chan struct{}                          // bound: one element for each waiting verification
	match func(storedHash, identity.Secret) bool // storedHash.matches; tests wrap it
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

// verify reports whether password matches s. It runs in the caller's goroutine, so nothing
// outlives a session. Once hashing has begun it cannot be interrupted. Before that, ctx ends
// the wait and releases the place in the queue.
func (v *verifier) verify(ctx context.Context, s storedHash, password identity.Secret) (bool, error) {
	if err := v.acquireSlot(ctx); err != nil {
		return false, fmt.Errorf("wait for a verifier: %w: %w", ErrUnavailable, err)
	}
	defer func() { <-v.slots }()
	return v.match(s, password), nil
}

// acquireSlot acquires a slot; verify releases it.
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
	// A released slot goes to the longest waiting goroutine: channels serve
	// blocked senders in order.
	select {
	case v.slots <- struct{}{}:
		return nil
	case <-timer.C:
		return ErrBusy
	case <-ctx.Done():
		return ctx.Err()
	}
}
