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

// slow is a verifier whose every verification takes a second of the test's
// clock and is right.
func slow(running, waiting int) (*verifier, *atomic.Int64) {
	v := newVerifier(running, waiting)
	var now atomic.Int64
	most := new(atomic.Int64)
	v.match = func(stored, identity.Secret) bool {
		n := now.Add(1)
		defer now.Add(-1)
		for old := most.Load(); n > old && !most.CompareAndSwap(old, n); old = most.Load() {
		}
		<-time.After(time.Second)
		return true
	}
	return v, most
}

func TestNoMoreVerificationsRunAndWaitThanAllowed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v, most := slow(2, 3)
		start := time.Now()
		var wg sync.WaitGroup
		for range 5 {
			wg.Go(func() {
				if ok, err := v.verify(t.Context(), stored{}, identity.Secret{}); !ok || err != nil {
					t.Errorf("%v, %v", ok, err)
				}
			})
		}
		synctest.Wait() // two run, three wait
		for range 100 {
			ok, err := v.verify(t.Context(), stored{}, identity.Secret{})
			if ok || !errors.Is(err, ErrUnavailable) || errors.Is(err, ErrDenied) {
				t.Errorf("over the bound: %v, %v", ok, err)
			}
		}
		if time.Since(start) != 0 {
			t.Error("a refusal had to wait")
		}
		wg.Wait()
		if most.Load() != 2 || time.Since(start) != 3*time.Second {
			t.Errorf("%d ran at once, all took %v", most.Load(), time.Since(start))
		}
		if ok, err := v.verify(t.Context(), stored{}, identity.Secret{}); !ok || err != nil {
			t.Errorf("afterwards: %v, %v", ok, err)
		}
	})
}

func TestAClientThatLeavesGivesItsPlaceBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v, _ := slow(1, 1)
		var wg sync.WaitGroup
		wg.Go(func() { _, _ = v.verify(t.Context(), stored{}, identity.Secret{}) })
		synctest.Wait()
		gone, leave := context.WithCancel(t.Context())
		wg.Go(func() {
			ok, err := v.verify(gone, stored{}, identity.Secret{})
			if ok || !errors.Is(err, context.Canceled) || !errors.Is(err, ErrUnavailable) {
				t.Errorf("gone while waiting: %v, %v", ok, err)
			}
		})
		synctest.Wait()
		if _, err := v.verify(t.Context(), stored{}, identity.Secret{}); !errors.Is(err, ErrBusy) {
			t.Errorf("the queue is not full: %v", err)
		}
		leave()
		synctest.Wait()
		if ok, err := v.verify(t.Context(), stored{}, identity.Secret{}); !ok || err != nil {
			t.Errorf("the place was not given back: %v, %v", ok, err)
		}
		if _, err := v.verify(gone, stored{}, identity.Secret{}); !errors.Is(err, context.Canceled) {
			t.Errorf("hashed for a client that had gone: %v", err)
		}
		wg.Wait()
	})
}

func TestAVerificationThatPanicsGivesItsSlotBack(t *testing.T) {
	v := newVerifier(1, 1)
	v.match = func(stored, identity.Secret) bool { panic("broken") }
	func() {
		defer func() { _ = recover() }()
		_, _ = v.verify(t.Context(), stored{}, identity.Secret{})
	}()
	v.match = func(stored, identity.Secret) bool { return true }
	if ok, err := v.verify(t.Context(), stored{}, identity.Secret{}); !ok || err != nil {
		t.Errorf("%v, %v", ok, err)
	}
}

func TestThoseWhoWaitAreServedInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v, _ := slow(1, 8)
		var mu sync.Mutex
		var order []int
		var wg sync.WaitGroup
		for i := range 6 {
			wg.Go(func() {
				if _, err := v.verify(t.Context(), stored{}, identity.Secret{}); err != nil {
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

func TestNobodyWaitsForAVerifierForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v, _ := slow(1, 8)
		v.slots <- struct{}{}
		start := time.Now()
		ok, err := v.verify(t.Context(), stored{}, identity.Secret{})
		if ok || !errors.Is(err, ErrBusy) || !errors.Is(err, ErrUnavailable) || time.Since(start) != queueTime {
			t.Errorf("%v, %v after %v", ok, err, time.Since(start))
		}
		<-v.slots
		if ok, err := v.verify(t.Context(), stored{}, identity.Secret{}); !ok || err != nil {
			t.Errorf("afterwards: %v, %v", ok, err)
		}
	})
}
