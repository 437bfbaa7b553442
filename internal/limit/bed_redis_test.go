//go:build unix

package limit

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/zap/zaptest"

	"imapgate/internal/event"
	"imapgate/internal/identity"
	"imapgate/internal/testbed"
)

// patienceOf is how long anything between gateways may take here.
const patienceOf = testbed.Timeout

// dial makes a client as the gateway does: RESP2. It waits for as long as Config.wait.
func dial(t testing.TB, addresses ...string) redis.UniversalClient {
	t.Helper()
	c := redis.NewUniversalClient(&redis.UniversalOptions{
		Addrs: addresses, Protocol: 2, DisableIdentity: true, DialTimeout: patienceOf,
		ReadTimeout: patienceOf, WriteTimeout: patienceOf, PoolTimeout: patienceOf, ContextTimeoutEnabled: true, MaxRetries: 1, DialerRetries: 1,
	})
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// waits counts what logins have asked of Redis and were not answered in time.
type waits struct{ n atomic.Int64 }

// of makes the questions asked with a context those of a login.
func (w *waits) of(ctx context.Context) context.Context { return context.WithValue(ctx, w, true) }

// count asks a question and notes how it ended. What a connection is greeted with on
// the way is part of it.
func (w *waits) count(ctx context.Context, ask func(context.Context) error) error {
	err := ask(context.WithValue(ctx, w, false))
	var late net.Error
	if ctx.Value(w) == true && errors.As(err, &late) && late.Timeout() {
		w.n.Add(1)
	}
	return err
}

func (w *waits) DialHook(next redis.DialHook) redis.DialHook { return next }

func (w *waits) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		return w.count(ctx, func(ctx context.Context) error { return next(ctx, cmd) })
	}
}

func (w *waits) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		return w.count(ctx, func(ctx context.Context) error { return next(ctx, cmds) })
	}
}

// quick are limits whose leases are short enough to wait for.
func quick() Config {
	c := wide()
	c.HeartbeatTTL = 2 * time.Second
	return c
}

// gateway is a Gate that runs, until the test ends or kill.
type gateway struct {
	*Limiter
	kill func() // at once, as a power cut: nothing is given back
}

func runGate(t testing.TB, cfg Config, client redis.UniversalClient) *gateway {
	t.Helper()
	return runHooked(t, cfg, client, Hooks{})
}

func runHooked(t testing.TB, cfg Config, client redis.UniversalClient, hooks Hooks) *gateway {
	t.Helper()
	g, err := New(withTimes(cfg), client, hooks, zaptest.NewLogger(t))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	clients.Store(g, client)
	run := func(ctx context.Context) { _ = g.Run(ctx) }
	if client != nil {
		run = g.cluster.Run // without signing off
	}
	go func() { run(ctx); done <- nil }() // ends with ctx; waited for by kill
	kill := sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	t.Cleanup(kill)
	return &gateway{g, kill}
}

// enter brings a user in, or says why not. A visit that was refused is left.
func enter(t testing.TB, g *gateway, addr netip.Addr, u identity.User) (*Conn, error) {
	t.Helper()
	v, err := g.Open("imaps", addr)
	if err != nil {
		return nil, err
	}
	if err := v.BeginSession(t.Context(), u); err != nil {
		v.Close()
		return nil, err
	}
	return v, nil
}

// hammer has many at once try to come in through all gateways, and gives those
// who did.
func hammer(t testing.TB, tries int, u identity.User, gates ...*gateway) []*Conn {
	t.Helper()
	var mu sync.Mutex
	var in []*Conn
	var all sync.WaitGroup
	turn := make(chan struct{}, 24) // more would wait for each other, not for Redis
	for i := range tries {
		all.Go(func() {
			turn <- struct{}{}
			defer func() { <-turn }()
			v, err := enter(t, gates[i%len(gates)], netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), u)
			if err == nil {
				mu.Lock()
				defer mu.Unlock()
				in = append(in, v)
			} else if reason(err) != event.LimitUser {
				t.Errorf("try %d: %v", i, err)
			}
		})
	}
	all.Wait()
	return in
}

func leaveAll(in []*Conn) {
	for _, v := range in {
		v.Close()
	}
}

func sessionsOf(t testing.TB, g *gateway, u identity.User) int {
	t.Helper()
	a, err := g.InspectUser(t.Context(), u)
	if err != nil {
		t.Logf("show: %v", err)
		return -1
	}
	return a.Sessions
}

// clientOf returns the Redis client of a limiter.
func clientOf(g *Limiter) redis.UniversalClient {
	c, _ := clients.Load(g)
	return c.(redis.UniversalClient)
}

// probe is what following bans. The order to lift it may be told of when the ban is gone
// already.
var probe = netip.MustParsePrefix("198.18.0.1/32")

// countOrders is a hook that counts all orders but those about probe.
func countOrders(n *atomic.Int32) func(BanRequest) {
	return func(o BanRequest) {
		if o.Net != probe {
			n.Add(1)
		}
	}
}

// following waits until all gateways know a ban that was set to be seen, and lifts it
// again. One that runs nowhere gives the orders: a gateway knows its own
// without having followed anything.
func following(t *testing.T, gates ...*gateway) {
	t.Helper()
	operator := newGate(t, gates[0].cfg, clientOf(gates[0].Limiter))
	if err := operator.Ban(t.Context(), probe, time.Minute, ""); err != nil {
		t.Fatal(err)
	}
	for _, g := range gates {
		testbed.Eventually(t, patienceOf, "a ban to be followed", func() bool { _, ok := g.bans.Find(probe.Addr()); return ok })
	}
	if _, err := operator.Unban(t.Context(), probe); err != nil {
		t.Fatal(err)
	}
	for _, g := range gates {
		testbed.Eventually(t, patienceOf, "its end to be followed", func() bool { _, ok := g.bans.Find(probe.Addr()); return !ok })
	}
}

// tripCounter counts what is sent to Redis.
type tripCounter struct{ n atomic.Int64 }

func (*tripCounter) DialHook(next redis.DialHook) redis.DialHook { return next }

func (c *tripCounter) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		c.n.Add(1)
		return next(ctx, cmd)
	}
}

func (c *tripCounter) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		c.n.Add(1)
		return next(ctx, cmds)
	}
}
