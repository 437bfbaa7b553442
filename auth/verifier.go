package auth

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime"
	"time"

	"golang.org/x/sync/semaphore"

	"imapgate/internal/identity"
)

// ErrBusy is wrapped together with ErrUnavailable when the queue for verifiers is full, or the
// wait in it took too long.
var ErrBusy = errors.New("too many logins are waiting")

// queueTimeout is the longest wait in the queue. With usual costs a full queue is done sooner,
// and users do not give up before.
const queueTimeout = 10 * time.Second

// verifier hashes passwords, a bounded number at once. Hashing is pure CPU work of a tenth of
// a second or more. Without the bound a flood of guesses would slow down all relayed sessions.
type verifier struct {
	// Set once.
	slots *semaphore.Weighted                    // of running verifications
	queue *semaphore.Weighted                    // of waiting verifications
	match func(storedHash, identity.Secret) bool // storedHash.matches; tests wrap it
}

func newVerifier(running, waiting int) *verifier {
	if running == 0 {
		running = runtime.GOMAXPROCS(0)
	}
	return &verifier{
		slots: semaphore.NewWeighted(int64(running)),
		queue: semaphore.NewWeighted(int64(waiting)),
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
	defer v.slots.Release(1)
	return v.match(s, password), nil
}

// acquireSlot acquires a slot; verify releases it.
func (v *verifier) acquireSlot(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if v.slots.TryAcquire(1) {
		return nil
	}
	if !v.queue.TryAcquire(1) {
		return ErrBusy
	}
	defer v.queue.Release(1)
	waitCtx, cancel := context.WithTimeout(ctx, queueTimeout)
	defer cancel()
	if v.slots.Acquire(waitCtx, 1) != nil {
		return cmp.Or(ctx.Err(), ErrBusy)
	}
	return nil
}
