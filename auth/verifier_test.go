package auth

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"imapgate/internal/identity"
)

// newSlowVerifier returns a verifier that takes a second of the test's clock and accepts
// every password.
func newSlowVerifier(slots, waiting int) (*verifier, *atomic.Int64) {
	v := newVerifier(slots, waiting)
	var running atomic.Int64
	peak := new(atomic.Int64)
	v.match = func(storedHash, identity.Secret) bool {
		n := running.Add(1)
		defer running.Add(-1)
		for old := peak.Load(); n > old && !peak.CompareAndSwap(old, n); old = peak.Load() {
		}
		<-time.After(time.Second)
		return true
	}
	return v, peak
}

func TestNoMoreVerificationsRunAndWaitThanAllowed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v, most := newSlowVerifier(2, 3)
		start := time.Now()
		var wg sync.WaitGroup
		for range 5 {
			wg.Go(func() {
				if ok, err := v.verify(t.Context(), storedHash{}, identity.Secret{}); !ok || err != nil {
					t.Errorf("%v, %v", ok, err)
				}
			})
		}
		synctest.Wait() // two run, three wait
		for range 100 {
			ok, err := v.verify(t.Context(), storedHash{}, identity.Secret{})
			if ok || !errors.Is(err, ErrUnavailable) || errors.Is(err, ErrDenied) {
				t.Errorf("over the bound: %v, %v", ok, err)
			}
		}
		if time.Since(start) != 0 {
			t.Error("a refusal waited")
		}
		wg.Wait()
		if most.Load() != 2 || time.Since(start) != 3*time.Second {
			t.Errorf("%d ran at once, all took %v", most.Load(), time.Since(start))
		}
		if ok, err := v.verify(t.Context(), storedHash{}, identity.Secret{}); !ok || err != nil {
			t.Errorf("afterwards: %v, %v", ok, err)
		}
	})
}

func TestCancelledVerificationLeavesQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v, _ := newSlowVerifier(1, 1)
		var wg sync.WaitGroup
		wg.Go(func() { _, _ = v.verify(t.Context(), storedHash{}, identity.Secret{}) })
		synctest.Wait()
		gone, leave := context.WithCancel(t.Context())
		wg.Go(func() {
			ok, err := v.verify(gone, storedHash{}, identity.Secret{})
			if ok || !errors.Is(err, context.Canceled) || !errors.Is(err, ErrUnavailable) {
				t.Errorf("gone while waiting: %v, %v", ok, err)
			}
		})
		synctest.Wait()
		if _, err := v.verify(t.Context(), storedHash{}, identity.Secret{}); !errors.Is(err, ErrBusy) {
			t.Errorf("the queue is not full: %v", err)
		}
		leave()
		synctest.Wait()
		if ok, err := v.verify(t.Context(), storedHash{}, identity.Secret{}); !ok || err != nil {
			t.Errorf("the place was not given back: %v, %v", ok, err)
		}
		if _, err := v.verify(gone, storedHash{}, identity.Secret{}); !errors.Is(err, context.Canceled) {
			t.Errorf("hashed for a client that had disconnected: %v", err)
		}
		wg.Wait()
	})
}

func TestPanickingVerificationReleasesSlot(t *testing.T) {
	v := newVerifier(1, 1)
	v.match = func(storedHash, identity.Secret) bool { panic("broken") }
	func() {
		defer func() { _ = recover() }()
		_, _ = v.verify(t.Context(), storedHash{}, identity.Secret{})
	}()
	v.match = func(storedHash, identity.Secret) bool { return true }
	if ok, err := v.verify(t.Context(), storedHash{}, identity.Secret{}); !ok || err != nil {
		t.Errorf("%v, %v", ok, err)
	}
}

func TestQueuedVerificationsRunInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v, _ := newSlowVerifier(1, 8)
		var mu sync.Mutex
		var order []int
		var wg sync.WaitGroup
		for i := range 6 {
			wg.Go(func() {
				if _, err := v.verify(t.Context(), storedHash{}, identity.Secret{}); err != nil {
					t.Error(err)
				}
				mu.Lock()
				defer mu.Unlock()
				order = append(order, i)
			})
			synctest.Wait()
		}
		wg.Wait()
		for i, n := range order {
			if i != n {
				t.Fatalf("served as %v", order)
			}
		}
	})
}

func TestQueuedVerificationTimesOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v, _ := newSlowVerifier(1, 8)
		_ = v.slots.TryAcquire(1)
		start := time.Now()
		ok, err := v.verify(t.Context(), storedHash{}, identity.Secret{})
		if ok || !errors.Is(err, ErrBusy) || !errors.Is(err, ErrUnavailable) || time.Since(start) != queueTimeout {
			t.Errorf("%v, %v after %v", ok, err, time.Since(start))
		}
		v.slots.Release(1)
		if ok, err := v.verify(t.Context(), storedHash{}, identity.Secret{}); !ok || err != nil {
			t.Errorf("afterwards: %v, %v", ok, err)
		}
	})
}
