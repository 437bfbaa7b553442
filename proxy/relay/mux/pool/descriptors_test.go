package pool

import (
	"context"
	"errors"
	"testing"

	"imapgate/internal/descriptors"
	"imapgate/internal/event"
	"imapgate/proxy/upstream"
)

// newLimitedPool returns a pool at a stub with descriptors for slots sockets.
func newLimitedPool(t *testing.T, slots int64) (*stub, *testPool, *descriptors.Counter) {
	t.Helper()
	s := startStub(t, stubCaps)
	s.sockets = descriptors.New(descriptors.Reserved + slots)
	tp := s.newPool(Config{})
	s.sockets.SetEvict(tp.EvictOldest)
	t.Cleanup(func() {
		tp.EvictUser(newRequest(t, "alice", "").User, "", event.DiscardMoved)
		tp.EvictUser(newRequest(t, "bob", "").User, "", event.DiscardMoved)
		if n := s.sockets.Open(); n != 0 {
			t.Errorf("%d sockets are counted as open", n)
		}
	})
	return s, tp, s.sockets
}

// The longest idle connection is closed when another socket needs its descriptor.
func TestIdleConnectionsAreEvictedForDescriptors(t *testing.T) {
	_, tp, sockets := newLimitedPool(t, 4)
	a := tp.mustLogIn("alice", "pw", VerifiedHere)
	b := tp.mustLogIn("bob", "pw", VerifiedHere)
	for _, c := range []*Account{a, b} {
		c.Release(acquireLease(t, c))
	}
	sockets.AddClient()
	sockets.AddClient()
	sockets.EvictIdle()
	if tp.idleCount() != 2 {
		t.Fatalf("%d idle, although both have a descriptor", tp.idleCount())
	}
	third := acquireLease(t, tp.mustLogIn("alice", "other", VerifiedHere)) // evicts alice's: bob's became idle later
	if tp.idleCount() != 1 || tp.discardedFor(event.DiscardDescriptors) != 1 || sockets.Open() != 4 {
		t.Errorf("%d idle, closed for %v, %d open", tp.idleCount(), tp.discarded, sockets.Open())
	}
	tp.discard(tp.conns[third], event.DiscardClosed)
	sockets.RemoveClient()
	sockets.RemoveClient()
}

// A connection for the gateway itself never takes the descriptor of a client.
func TestAuxConnectionsNeedSpareDescriptors(t *testing.T) {
	_, tp, sockets := newLimitedPool(t, 5)
	a := tp.mustLogIn("alice", "pw", VerifiedHere)
	c := acquireLease(t, a)
	sockets.AddClient()
	sockets.AddClient()
	for range 2 {
		aux, err := a.AcquireAux(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := a.AcquireAux(context.Background()); !errors.Is(err, ErrBusy) {
			t.Errorf("second connection: %v", err)
		}
		if sockets.AddClient() {
			t.Error("a client and its upstream still have descriptors")
		}
		sockets.RemoveClient()
		a.ReleaseAux(aux)
	}
	aux, err := a.AcquireAux(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	a.Discard(aux, event.DiscardError)
	a.Release(c)
	sockets.RemoveClient()
	sockets.RemoveClient()
	a.Close()
}

// A failed login leaves no socket counted.
func TestFailedLoginIsNotCounted(t *testing.T) {
	s, tp, sockets := newLimitedPool(t, 4)
	s.deny("alice", "wrong", "[AUTHENTICATIONFAILED] no")
	if _, err := tp.Login(context.Background(), newRequest(t, "alice", "wrong"), BackendDecides); !errors.Is(err, upstream.ErrDenied) {
		t.Error(err)
	}
	if n := sockets.Open(); n != 0 {
		t.Errorf("%d sockets are counted", n)
	}
}
