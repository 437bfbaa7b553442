package pool

import (
	"context"
	"errors"
	"testing"
	"time"

	"go.uber.org/zap"

	"imapgate/internal/metrics"
	"imapgate/proxy/mux/lease"
)

func nopLog() *zap.Logger { return zap.NewNop() }

// queued starts a Lease and returns when it is the n-th in the queue.
func (y *tally) queued(a *Account, n int) <-chan *lease.Conn {
	y.t.Helper()
	got := make(chan *lease.Conn, 1)
	go func() {
		c, err := a.Lease(context.Background(), "")
		if err != nil {
			y.t.Error(err)
		}
		got <- c
	}()
	settled(y.t, "the queue", func() bool {
		y.Pool.mu.Lock()
		defer y.Pool.mu.Unlock()
		return len(y.queue) == n
	})
	return got
}

func TestWhoComesFirstIsServedFirst(t *testing.T) {
	s := startStub(t, stubCaps)
	y := s.pool(Config{MaxPerUser: 3}) // two, and one for the gateway
	a := y.login("alice", "pw", Vouched)
	c1, c2 := leased(t, a), leased(t, a)
	b, d := another(a), another(a)
	first := y.queued(b, 1)
	second := y.queued(d, 2)
	a.Return(c1)
	if got := <-first; got != c1 {
		t.Error("the first in the queue did not get what came back")
	}
	select {
	case <-second:
		t.Fatal("the second was served as well")
	default:
	}
	a.Destroy(c2, metrics.DiscardPinned)
	if got := <-second; got == c2 || got == c1 {
		t.Error("the second did not get a new connection")
	}
	if y.places() != 2 {
		t.Errorf("%d places", y.places())
	}
}

// another is one more Account of the same login, without a connection.
func another(a *Account) *Account {
	return &Account{pool: a.pool, owner: a.pool.enrol(a.who()), secret: a.secret, proof: a.proof, caps: a.caps}
}

func TestAWaitEndsWithItsContext(t *testing.T) {
	s := startStub(t, stubCaps)
	y := s.pool(Config{MaxTotal: 1})
	a := y.login("alice", "pw", Vouched)
	c := leased(t, a)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	_, err := y.Login(ctx, request(t, "bob", "pw"), Vouched)
	if !errors.Is(err, ErrBusy) || !errors.Is(err, context.DeadlineExceeded) || len(y.queue) != 0 {
		t.Errorf("%v, %d in the queue", err, len(y.queue))
	}
	a.Return(c)
	bob := y.login("bob", "pw", Vouched) // alice's is only waiting
	if y.number() != 0 || y.closedFor(metrics.DiscardLimit) != 1 || bob.User().String() != "bob" {
		t.Errorf("%d wait, closed %v", y.number(), y.discarded)
	}
	if y.places() != 1 || len(y.conns) != 1 {
		t.Errorf("%d places", y.places())
	}
}

func TestAUserAtTheLimitHoldsUpNobodyElse(t *testing.T) {
	s := startStub(t, stubCaps)
	y := s.pool(Config{MaxPerUser: 2, MaxTotal: 10})
	a := y.login("alice", "pw", Vouched)
	c := leased(t, a)
	waits := y.queued(another(a), 1)
	y.login("bob", "pw", Vouched)
	a.Destroy(c, metrics.DiscardPinned)
	<-waits
}

func TestOneConnectionOfAUserIsTheGateways(t *testing.T) {
	s := startStub(t, stubCaps)
	y := s.pool(Config{MaxPerUser: 2})
	a := y.login("alice", "pw", Vouched)
	c := leased(t, a)
	aux, err := a.Aux(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Aux(context.Background()); !errors.Is(err, ErrBusy) {
		t.Error(err)
	}
	a.ReturnAux(aux)
	waits := y.queued(another(a), 1) // what the gateway asks on is not for clients
	again, err := a.Aux(context.Background())
	if err != nil || again != aux {
		t.Error("the gateway's own connection was not used again", err)
	}
	a.Return(c)
	if got := <-waits; got == aux {
		t.Error("a client has the gateway's own connection")
	}
}

func TestASingleConnectionOfAUserIsTheClients(t *testing.T) {
	s := startStub(t, stubCaps)
	y := s.pool(Config{MaxPerUser: 1})
	a := y.login("alice", "pw", Vouched)
	if _, err := a.Aux(context.Background()); !errors.Is(err, ErrBusy) {
		t.Error(err)
	}
	leased(t, a)
}

func TestOnlySoManyWaitOfOneAccount(t *testing.T) {
	s := startStub(t, stubCaps)
	y := s.pool(Config{IdlePerAccount: 2})
	a := y.login("alice", "pw", Vouched)
	all := []*lease.Conn{leased(t, a), leased(t, a), leased(t, a)}
	for _, c := range all {
		a.Return(c)
	}
	if y.number() != 2 || y.closedFor(metrics.DiscardLimit) != 1 {
		t.Errorf("%d wait, closed %v", y.number(), y.discarded)
	}
	if c := leased(t, a); !has(all[1:], c) {
		t.Error("not the oldest has gone")
	}
}

func TestTheEndOfThePoolIsTheEndOfTheWait(t *testing.T) {
	s := startStub(t, stubCaps)
	cfg := Config{ReuseTTL: time.Hour, MaxTotal: 1}
	like := s.pool(cfg)
	p := New(like.backend, cfg, like.shared, Hooks{}, nopLog())
	a, err := p.Login(context.Background(), request(t, "alice", "pw"), Vouched)
	if err != nil {
		t.Fatal(err)
	}
	c := leased(t, a)
	ended := make(chan error, 1)
	go func() {
		_, err := another(a).Lease(context.Background(), "")
		ended <- err
	}()
	settled(t, "the queue", func() bool { p.mu.Lock(); defer p.mu.Unlock(); return len(p.queue) == 1 })
	p.Close()
	if err := <-ended; !errors.Is(err, errClosed) {
		t.Error(err)
	}
	a.Return(c)
	if p.total != 0 || p.idle.Len() != 0 {
		t.Error("a connection waits in a closed pool")
	}
}
