package pool

import (
	"context"
	"errors"
	"testing"

	"imapgate/internal/descriptors"
	"imapgate/internal/metrics"
	"imapgate/proxy/upstream"
)

// few is a pool at a stub, with room for so many sockets.
func few(t *testing.T, room int64) (*stub, *tally, *descriptors.Counter) {
	t.Helper()
	s := startStub(t, stubCaps)
	s.sockets = descriptors.New(descriptors.Reserved + room)
	y := s.pool(Config{})
	s.sockets.Spare(y.Spare)
	t.Cleanup(func() {
		y.Leave(request(t, "alice", "").User, metrics.DiscardKicked)
		y.Leave(request(t, "bob", "").User, metrics.DiscardKicked)
		if n := s.sockets.Open(); n != 0 {
			t.Errorf("%d sockets are counted as open", n)
		}
	})
	return s, y, s.sockets
}

// What waits gives its descriptor to whoever needs one, the longest first.
func TestWhatWaitsMakesRoom(t *testing.T) {
	_, y, sockets := few(t, 4)
	a := y.login("alice", "pw", Vouched)
	b := y.login("bob", "pw", Vouched)
	for _, c := range []*Account{a, b} {
		c.Return(leased(t, c))
	}
	sockets.AddClient()
	sockets.AddClient()
	sockets.MakeRoom()
	if y.number() != 2 {
		t.Fatalf("%d wait, and there is room for both", y.number())
	}
	third := leased(t, y.login("alice", "other", Vouched)) // alice's must go: bob's came later
	if y.number() != 1 || y.closedFor(metrics.DiscardDescriptors) != 1 || sockets.Open() != 4 {
		t.Errorf("%d wait, %v, %d are open", y.number(), y.discarded, sockets.Open())
	}
	y.discard(y.conns[third], metrics.DiscardClosed)
	sockets.RemoveClient()
	sockets.RemoveClient()
}

// The gateway asks nothing aside at the cost of a client.
func TestAuxiliaryConnectionsNeedRoomThatNobodyClaims(t *testing.T) {
	_, y, sockets := few(t, 5)
	a := y.login("alice", "pw", Vouched)
	c := leased(t, a)
	sockets.AddClient()
	sockets.AddClient()
	for range 2 {
		aux, err := a.Aux(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := a.Aux(context.Background()); !errors.Is(err, ErrBusy) {
			t.Errorf("a second one: %v", err)
		}
		sockets.AddClient()
		if !sockets.Full() {
			t.Error("there is room for a client, and for what it may need")
		}
		sockets.RemoveClient()
		a.ReturnAux(aux)
	}
	aux, err := a.Aux(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	a.Destroy(aux, metrics.DiscardError)
	a.Return(c)
	sockets.RemoveClient()
	sockets.RemoveClient()
	a.Close()
}

// A login that fails leaves nothing counted.
func TestALoginThatFailsIsNotCounted(t *testing.T) {
	s, y, sockets := few(t, 4)
	s.deny("alice", "wrong", "[AUTHENTICATIONFAILED] no")
	if _, err := y.Login(context.Background(), request(t, "alice", "wrong"), Asked); !errors.Is(err, upstream.ErrDenied) {
		t.Error(err)
	}
	if n := sockets.Open(); n != 0 {
		t.Errorf("%d are counted", n)
	}
}
