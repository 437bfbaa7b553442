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
	"imapgate/internal/testkit"
)

// timeout bounds what the tests wait for between gateways.
const timeout = testbed.Timeout

// dialRedis returns a client with the gateway's options, RESP2 among them. Its timeouts are
// as long as Config.Wait.
func dialRedis(t testing.TB, addresses ...string) redis.UniversalClient {
	t.Helper()
	c := redis.NewUniversalClient(&redis.UniversalOptions{
		Addrs: addresses, Protocol: 2, DisableIdentity: true, DialTimeout: timeout,
		ReadTimeout: timeout, WriteTimeout: timeout, PoolTimeout: timeout, ContextTimeoutEnabled: true, MaxRetries: 1, DialerRetries: 1,
	})
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// timeoutCounter is a hook that counts the requests of logins to Redis that have timed out.
type timeoutCounter struct{ n atomic.Int64 }

// withLogin marks the requests that are made with ctx as those of a login.
func (c *timeoutCounter) withLogin(ctx context.Context) context.Context {
	return context.WithValue(ctx, c, true)
}

// count makes a request and notes how it ended. The commands that set up a connection for it
// are part of it.
func (c *timeoutCounter) count(ctx context.Context, request func(context.Context) error) error {
	err := request(context.WithValue(ctx, c, false))
	var netErr net.Error
	if ctx.Value(c) == true && errors.As(err, &netErr) && netErr.Timeout() {
		c.n.Add(1)
	}
	return err
}

func (c *timeoutCounter) DialHook(next redis.DialHook) redis.DialHook { return next }

func (c *timeoutCounter) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		return c.count(ctx, func(ctx context.Context) error { return next(ctx, cmd) })
	}
}

func (c *timeoutCounter) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		return c.count(ctx, func(ctx context.Context) error { return next(ctx, cmds) })
	}
}

// shortTTL returns noConnLimits with a heartbeat that expires while a test waits for it.
func shortTTL() Config {
	cfg := noConnLimits()
	cfg.HeartbeatTTL = 2 * time.Second
	return cfg
}

// gateway is a Limiter that runs until the test ends or kill is called.
type gateway struct {
	*Limiter
	kill func() // stops it at once, as a power cut: it releases nothing
}

func runGateway(t testing.TB, cfg Config, client redis.UniversalClient) *gateway {
	t.Helper()
	return runWithHooks(t, cfg, client, Hooks{})
}

// runTwo runs two gateways that share a Redis.
func runTwo(t testing.TB, cfg Config, r *testbed.Redis) (one, two *gateway) {
	t.Helper()
	return runGateway(t, cfg, dialRedis(t, r.Address)), runGateway(t, cfg, dialRedis(t, r.Address))
}

// runWithHooks runs a gateway until the test ends. It does not sign off then.
func runWithHooks(t testing.TB, cfg Config, client redis.UniversalClient, hooks Hooks) *gateway {
	t.Helper()
	g, err := New(withTimes(cfg), client, hooks, zaptest.NewLogger(t))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	redisClients.Store(g, client)
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

// openSession opens a connection and begins a session on it. It closes the connection if the
// session is refused.
func openSession(t testing.TB, g *gateway, addr netip.Addr, u identity.User) (*Conn, error) {
	t.Helper()
	conn, err := g.Open("imaps", addr)
	if err != nil {
		return nil, err
	}
	if err := conn.BeginSession(t.Context(), u); err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// openSessions tries to open sessions of a user from different addresses at once, at all
// gateways in turn. It returns the admitted ones.
func openSessions(t testing.TB, attempts int, u identity.User, gateways ...*gateway) []*Conn {
	t.Helper()
	var mu sync.Mutex
	var conns []*Conn
	var all sync.WaitGroup
	slots := make(chan struct{}, 24) // more would wait for each other, not for Redis
	for i := range attempts {
		all.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			conn, err := openSession(t, gateways[i%len(gateways)], netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), u)
			if err == nil {
				mu.Lock()
				defer mu.Unlock()
				conns = append(conns, conn)
			} else if reason(err) != event.LimitUser {
				t.Errorf("session %d: %v", i, err)
			}
		})
	}
	all.Wait()
	return conns
}

func closeAll(conns []*Conn) {
	for _, conn := range conns {
		conn.Close()
	}
}

// sessionCount returns how many sessions of a user Redis counts, or -1 without an answer.
func sessionCount(t testing.TB, g *gateway, u identity.User) int {
	t.Helper()
	a, err := g.InspectUser(t.Context(), u)
	if err != nil {
		t.Logf("inspect: %v", err)
		return -1
	}
	return a.Sessions
}

// redisClient returns the Redis client of a limiter.
func redisClient(l *Limiter) redis.UniversalClient {
	c, _ := redisClients.Load(l)
	return c.(redis.UniversalClient)
}

// markerNet is the network that awaitSharedBans bans. A gateway may report the request to end
// this ban when the ban is gone already.
var markerNet = netip.MustParsePrefix("198.18.0.1/32")

// countBanRequests returns a hook that counts all requests but those about markerNet.
func countBanRequests(n *atomic.Int32) func(BanRequest) {
	return func(r BanRequest) {
		if r.Net != markerNet {
			n.Add(1)
		}
	}
}

// awaitSharedBans bans markerNet, waits until all gateways have the ban, and ends it. A limiter
// that does not run makes the requests, because a gateway has its own bans without reading
// them from Redis.
func awaitSharedBans(t *testing.T, gateways ...*gateway) {
	t.Helper()
	operator := newLimiter(t, gateways[0].cfg, redisClient(gateways[0].Limiter))
	if err := operator.Ban(t.Context(), markerNet, time.Minute, ""); err != nil {
		t.Fatal(err)
	}
	for _, g := range gateways {
		testkit.Eventually(t, "the gateways to have the ban", func() bool { _, ok := g.bans.Find(markerNet.Addr()); return ok })
	}
	if _, err := operator.Unban(t.Context(), markerNet); err != nil {
		t.Fatal(err)
	}
	for _, g := range gateways {
		testkit.Eventually(t, "the gateways to end the ban", func() bool { _, ok := g.bans.Find(markerNet.Addr()); return !ok })
	}
}

// roundTripCounter is a hook that counts round trips to Redis.
type roundTripCounter struct{ n atomic.Int64 }

func (*roundTripCounter) DialHook(next redis.DialHook) redis.DialHook { return next }

func (c *roundTripCounter) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		c.n.Add(1)
		return next(ctx, cmd)
	}
}

func (c *roundTripCounter) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		c.n.Add(1)
		return next(ctx, cmds)
	}
}
