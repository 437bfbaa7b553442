package pool

import (
	"context"
	"errors"
	"testing"
	"time"

	"go.uber.org/zap"

	"imapgate/internal/event"
	"imapgate/internal/testkit"
	"imapgate/proxy/relay/mux/lease"
)

func nopLog() *zap.Logger { return zap.NewNop() }

// startAcquire starts an Acquire and returns when it is the n-th in the queue.
func (tp *testPool) startAcquire(a *Account, n int) <-chan *lease.Conn {
	tp.t.Helper()
	got := make(chan *lease.Conn, 1)
	go func() {
		c, err := a.Acquire(context.Background(), "")
		if err != nil {
			tp.t.Error(err)
		}
		got <- c
	}()
	testkit.Eventually(tp.t, "the queue", func() bool {
		tp.Pool.mu.Lock()
		defer tp.Pool.mu.Unlock()
		return len(tp.queue) == n
	})
	return got
}

func TestQueueIsFirstComeFirstServed(t *testing.T) {
	s := startStub(t, stubCaps)
	tp := s.newPool(Config{Settings: Settings{MaxPerUser: 3}}) // two, and one for the gateway
	a := tp.mustLogIn("alice", "pw", VerifiedHere)
	c1, c2 := acquireLease(t, a), acquireLease(t, a)
	b, d := newAccount(a), newAccount(a)
	first := tp.startAcquire(b, 1)
	second := tp.startAcquire(d, 2)
	a.Release(c1)
	if got := <-first; got != c1 {
		t.Error("the first in the queue did not get the released connection")
	}
	select {
	case <-second:
		t.Fatal("the second was served as well")
	default:
	}
	a.Discard(c2, event.DiscardPinned)
	if got := <-second; got == c2 || got == c1 {
		t.Error("the second did not get a new connection")
	}
	if tp.slotCount() != 2 {
		t.Errorf("%d slots", tp.slotCount())
	}
}

// newAccount returns another Account of the same login, without a connection.
func newAccount(a *Account) *Account {
	return &Account{pool: a.pool, cred: a.pool.addAccount(a.loginRequest()), secret: a.secret, verification: a.verification, caps: a.caps}
}

func TestAWaitEndsWithItsContext(t *testing.T) {
	s := startStub(t, stubCaps)
	tp := s.newPool(Config{Settings: Settings{MaxTotal: 1}})
	a := tp.mustLogIn("alice", "pw", VerifiedHere)
	c := acquireLease(t, a)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	_, err := tp.Login(ctx, newRequest(t, "bob", "pw"), VerifiedHere)
	if !errors.Is(err, ErrBusy) || !errors.Is(err, context.DeadlineExceeded) || len(tp.queue) != 0 {
		t.Errorf("%v, %d in the queue", err, len(tp.queue))
	}
	a.Release(c)
	bob := tp.mustLogIn("bob", "pw", VerifiedHere) // alice's is idle
	if tp.idleCount() != 0 || tp.discardedFor(event.DiscardLimit) != 1 || bob.User().String() != "bob" {
		t.Errorf("%d idle, closed for %v", tp.idleCount(), tp.discarded)
	}
	if tp.slotCount() != 1 || len(tp.conns) != 1 {
		t.Errorf("%d slots", tp.slotCount())
	}
}

func TestUserAtTheLimitDoesNotBlockOthers(t *testing.T) {
	s := startStub(t, stubCaps)
	tp := s.newPool(Config{Settings: Settings{MaxPerUser: 2, MaxTotal: 10}})
	a := tp.mustLogIn("alice", "pw", VerifiedHere)
	c := acquireLease(t, a)
	released := tp.startAcquire(newAccount(a), 1)
	tp.mustLogIn("bob", "pw", VerifiedHere)
	a.Discard(c, event.DiscardPinned)
	<-released
}

func TestOneConnectionPerUserIsReservedForTheGateway(t *testing.T) {
	s := startStub(t, stubCaps)
	tp := s.newPool(Config{Settings: Settings{MaxPerUser: 2}})
	a := tp.mustLogIn("alice", "pw", VerifiedHere)
	c := acquireLease(t, a)
	aux, err := a.AcquireAux(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.AcquireAux(context.Background()); !errors.Is(err, ErrBusy) {
		t.Error(err)
	}
	a.ReleaseAux(aux)
	released := tp.startAcquire(newAccount(a), 1) // the gateway's connection is not for clients
	again, err := a.AcquireAux(context.Background())
	if err != nil || again != aux {
		t.Error("the gateway's own connection was not reused", err)
	}
	a.Release(c)
	if got := <-released; got == aux {
		t.Error("a client has the gateway's own connection")
	}
}

func TestSingleConnectionPerUserIsForTheClient(t *testing.T) {
	s := startStub(t, stubCaps)
	tp := s.newPool(Config{Settings: Settings{MaxPerUser: 1}})
	a := tp.mustLogIn("alice", "pw", VerifiedHere)
	if _, err := a.AcquireAux(context.Background()); !errors.Is(err, ErrBusy) {
		t.Error(err)
	}
	acquireLease(t, a)
}

func TestIdleConnectionsPerCredentialAreLimited(t *testing.T) {
	s := startStub(t, stubCaps)
	tp := s.newPool(Config{MaxIdlePerCredential: 2})
	a := tp.mustLogIn("alice", "pw", VerifiedHere)
	all := []*lease.Conn{acquireLease(t, a), acquireLease(t, a), acquireLease(t, a)}
	for _, c := range all {
		a.Release(c)
	}
	if tp.idleCount() != 2 || tp.discardedFor(event.DiscardLimit) != 1 {
		t.Errorf("%d idle, closed for %v", tp.idleCount(), tp.discarded)
	}
	if c := acquireLease(t, a); !containsConn(all[1:], c) {
		t.Error("the oldest connection was not the one closed")
	}
}

func TestClosingThePoolEndsTheWait(t *testing.T) {
	s := startStub(t, stubCaps)
	cfg := Config{Settings: Settings{PoolIdleTimeout: time.Hour, MaxTotal: 1}}
	like := s.newPool(cfg)
	p := New(like.backend, cfg, like.resources, like.hooks, nopLog())
	a, err := p.Login(context.Background(), newRequest(t, "alice", "pw"), VerifiedHere)
	if err != nil {
		t.Fatal(err)
	}
	c := acquireLease(t, a)
	ended := make(chan error, 1)
	go func() {
		_, err := newAccount(a).Acquire(context.Background(), "")
		ended <- err
	}()
	testkit.Eventually(t, "the queue", func() bool { p.mu.Lock(); defer p.mu.Unlock(); return len(p.queue) == 1 })
	p.Close()
	if err := <-ended; !errors.Is(err, errClosed) {
		t.Error(err)
	}
	a.Release(c)
	if p.total != 0 || p.idle.Len() != 0 {
		t.Error("a connection is idle in a closed pool")
	}
}
