package pool

import (
	"errors"
	"testing"
	"time"

	"imapgate/internal/event"
	"imapgate/internal/imap"
	"imapgate/internal/testkit"
	"imapgate/proxy/upstream"
)

// order makes the stub's address be used as an operator wants.
func (tp *testPool) order(s *stub, state event.AddressState) {
	tp.t.Helper()
	if !tp.backend.SetState(s.Addr(), state) {
		tp.t.Fatalf("%s has no state", s.Addr())
	}
}

// Nothing is reused at an address that operators evacuate or have disabled.
func TestConnectionsAtALeavingAddressAreNotReused(t *testing.T) {
	for _, state := range []event.AddressState{event.AddressEvacuating, event.AddressDisabled} {
		s := startStub(t, stubCaps)
		tp := s.newPool(Config{})
		a, idle, _ := tp.idleConn(s)
		leased := acquireLease(t, tp.mustLogIn("bob", "pw", VerifiedHere))
		unused := tp.mustLogIn("carol", "pw", VerifiedHere)
		bob := tp.conns[leased].cred
		tp.order(s, state)
		tp.sweep(time.Now())
		if n := tp.discardedFor(event.DiscardMoved); n != 1 || tp.idleCount() != 0 || tp.conns[idle] != nil {
			t.Errorf("%s: %d discarded, %d idle", state, n, tp.idleCount())
		}
		if _, err := a.Acquire(t.Context(), imap.Extensions("")); !errors.Is(err, upstream.ErrUnavailable) {
			t.Errorf("%s: %v", state, err)
		}
		account := &Account{pool: tp.Pool, cred: bob}
		account.Release(leased)
		unused.Close()
		if n := tp.discardedFor(event.DiscardMoved); n != 3 || tp.idleCount() != 0 {
			t.Errorf("%s, released: %d discarded, %d idle", state, n, tp.idleCount())
		}
		testkit.Eventually(t, "no connection is open", func() bool { return s.Open() == 0 })
		if n := tp.backend.Addresses()[0].Connections; n != 0 {
			t.Errorf("%s: %d connections are counted", state, n)
		}
	}
}

// A drain leaves connections alone, and lets sessions take more. New logins are refused.
func TestSessionsAtADrainingAddressTakeConnections(t *testing.T) {
	s := startStub(t, stubCaps)
	tp := s.newPool(Config{})
	a, idle, _ := tp.idleConn(s)
	tp.order(s, event.AddressDraining)
	tp.sweep(time.Now())
	if got := acquireLease(t, a); got != idle {
		t.Error("the idle connection was not reused")
	}
	second := acquireLease(t, a)
	a.Release(second)
	a.Release(idle)
	if n := tp.discardedFor(event.DiscardMoved); n != 0 {
		t.Errorf("%d were discarded", n)
	}
	if _, err := tp.Login(t.Context(), newRequest(t, "bob", "pw"), VerifiedHere); !errors.Is(err, upstream.ErrUnavailable) {
		t.Errorf("a new user: %v", err)
	}
}
