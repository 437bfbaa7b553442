package proxy

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"imapgate/internal/limit"
	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
)

// startSharedLimits starts a real Redis and returns a setup that shares its limits there.
func startSharedLimits(t testing.TB, l limit.Config) (*testbed.Redis, func(*harnessConfig)) {
	t.Helper()
	store := testbed.StartRedis(t)
	return store, withSharedLimits(t, store, l)
}

// withSharedLimits returns a setup whose logins wait for Redis as long as a busy machine needs,
// so that they are counted there.
func withSharedLimits(t testing.TB, store *testbed.Redis, l limit.Config) func(*harnessConfig) {
	t.Helper()
	l.Wait = testbed.Timeout
	rdb := redis.NewUniversalClient(&redis.UniversalOptions{
		Addrs: []string{store.Address}, Protocol: 2, DisableIdentity: true, ContextTimeoutEnabled: true,
		DialTimeout: l.Wait, ReadTimeout: l.Wait, WriteTimeout: l.Wait, PoolTimeout: l.Wait,
	})
	t.Cleanup(func() { _ = rdb.Close() })
	return func(s *harnessConfig) { s.limits, s.redis = l, rdb }
}

// runParallel calls do n times, atATime at a time.
func runParallel(n, atATime int, do func(i int)) {
	var all sync.WaitGroup
	next := atomic.Int64{}
	for range atATime {
		all.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				do(i)
			}
		})
	}
	all.Wait()
}

// defaultLimits returns the configuration's defaults, but with a short minimum denial time.
// The growth of delays is the same.
func defaultLimits() limit.Config {
	f := failureLimits()
	f.Delay, f.MaxDelay = 200*time.Millisecond, 1500*time.Millisecond
	return limit.Config{Settings: limit.Settings{Failures: f, Connections: limit.Connections{
		PerUserAddress: 10, PerUser: 50, PerAddress: 100, PreauthPerAddress: 20, NewPerMinute: 60, NewBurst: 30,
	}}}
}

func TestKnownNetworkStaysUsableUnderPasswordAttack(t *testing.T) {
	_, shared := startSharedLimits(t, defaultLimits())
	b := openHarness(t, openTestBackend(t).addr(), shared)
	const home = "198.51.100.20"
	if got := b.tryLogin(home, "frank", "right"); !strings.HasPrefix(got, "OK") {
		t.Fatalf("at home: %s", got)
	}
	var stop atomic.Bool
	var victim sync.WaitGroup
	victim.Go(func() {
		for !stop.Load() {
			if got := b.tryLogin(home, "frank", "right"); !strings.HasPrefix(got, "OK") {
				t.Errorf("at home, during the attack: %s", got)
			}
			<-time.After(1100 * time.Millisecond) // 60 a minute are allowed
		}
	})
	runParallel(1000, 100, func(i int) { // each from its own /24 network
		got := b.tryLogin(fmt.Sprintf("203.%d.%d.9", i/250, i%250), "frank", fmt.Sprint("guess", i))
		if strings.HasPrefix(got, "OK") {
			t.Errorf("guess %d: %s", i, got)
		}
	})
	stop.Store(true)
	victim.Wait()
	if n := b.countDelayed(time.Second); n > 0 {
		t.Errorf("%d logins at home were delayed", n)
	}
	// What a busy Redis did not count in time is known only to the gateway that saw it.
	if got := b.tryLogin("203.0.113.77", "frank", "right"); got != unavailableReply {
		t.Errorf("after a thousand failures, from an unknown network: %s", got)
	}
}

// countDelayed counts the accepted logins with a deliberate delay of at least least.
// Shorter ones may be slow answers of Redis.
func (b *harness) countDelayed(least time.Duration) (n int) {
	b.t.Helper()
	for _, r := range b.records() {
		ms, _ := r["delay_ms"].(float64)
		if r.field("event") == "login_accepted" && ms >= float64(least.Milliseconds()) {
			n++
		}
	}
	return n
}

func TestBadClientBehindNATDoesNotBlockOthers(t *testing.T) {
	l := defaultLimits()
	l.Connections.NewPerMinute, l.Connections.PreauthPerAddress, l.Connections.PerAddress = 0, 0, 0 // limits that an operator sets for a network of 500 users
	_, shared := startSharedLimits(t, l)
	const nat = "198.51.100.20"
	b := openHarness(t, openTestBackend(t).addr(), shared, func(s *harnessConfig) {
		for i := range 500 {
			s.users += fmt.Sprintf("user%d@example.org:{PLAIN}%s\n", i, password)
		}
		s.routes.Static.Default = "east"
	})
	runParallel(500, 50, func(i int) { // an ordinary day
		if got := b.tryLogin(nat, fmt.Sprint("user", i), password); !strings.HasPrefix(got, "OK") {
			t.Errorf("user%d: %s", i, got)
		}
	})
	var stop atomic.Bool
	var bad sync.WaitGroup
	bad.Go(func() {
		for i := 0; !stop.Load(); i++ {
			_ = b.tryLogin(nat, fmt.Sprint("user", i%500), fmt.Sprint("guess", i))
		}
	})
	testkit.Eventually(t, "a ban", func() bool { return b.deps.Limits.BanCount() > 0 })
	before := b.countDelayed(time.Second) // of the ordinary day: no network was known yet, and logins in progress count
	var good atomic.Int64
	runParallel(500, 50, func(i int) {
		if got := b.tryLogin(nat, fmt.Sprint("user", i), password); strings.HasPrefix(got, "OK") {
			good.Add(1)
		}
	})
	stop.Store(true)
	bad.Wait()
	if slow := b.countDelayed(time.Second) - before; good.Load() < 495 || slow > 5 {
		t.Errorf("of 500, %d logged in, %d after a delay", good.Load(), slow)
	}
}

func TestSprayFromManyNetworksIsDetected(t *testing.T) {
	_, shared := startSharedLimits(t, defaultLimits())
	sprays := make(chan limit.Spray, 1)
	b := openHarness(t, openTestBackend(t).addr(), shared, func(s *harnessConfig) {
		s.hooks.OnSpray = func(n limit.Spray) {
			select {
			case sprays <- n:
			default:
			}
		}
	})
	const home = "198.51.100.20"
	if got := b.tryLogin(home, "frank", "right"); !strings.HasPrefix(got, "OK") {
		t.Fatalf("at home: %s", got)
	}
	runParallel(1000, 100, func(i int) {
		if got := b.tryLogin(fmt.Sprintf("203.%d.%d.9", i/250, i%250), fmt.Sprint("person", i), "Summer2026"); got != authFailedReply {
			t.Errorf("guess %d: %s", i, got)
		}
	})
	select {
	case n := <-sprays:
		if !n.Suspected || n.Users < 20 {
			t.Errorf("%+v", n)
		}
	case <-time.After(testbed.Timeout):
		t.Fatal("no spraying detected")
	}
	if got := b.tryLogin(home, "frank", "right"); !strings.HasPrefix(got, "OK") || b.countDelayed(time.Second) > 0 {
		t.Errorf("at home: %s, %d logins delayed", got, b.countDelayed(time.Second))
	}
	if got := b.tryLogin("192.0.2.50", "frank", "right"); !strings.HasPrefix(got, "OK") {
		t.Errorf("from an unknown network: %s", got)
	}
	testkit.Eventually(t, "a recorded delayed login", func() bool { return b.countDelayed(300*time.Millisecond) > 0 })
}

func TestGatewaysShareSessionCounts(t *testing.T) {
	store, shared := startSharedLimits(t, limit.Config{Settings: limit.Settings{Connections: limit.Connections{PerUser: 40}}})
	m := openTestBackend(t)
	gateways := []*harness{openHarness(t, m.addr(), shared), openHarness(t, m.addr(), withSharedLimits(t, store, limit.Config{Settings: limit.Settings{Connections: limit.Connections{PerUser: 40}}}))}
	var in, limited atomic.Int64
	var mu sync.Mutex
	var all []*client
	runParallel(100, 20, func(i int) {
		c := gateways[i%2].dialGreetedFrom(fmt.Sprintf("192.0.2.%d", i))
		c.write("a LOGIN frank right\r\n")
		line, _ := c.r.ReadString('\n')
		switch {
		case strings.HasPrefix(line, "a OK"):
			in.Add(1)
		case line == "a NO [LIMIT] Too many connections.\r\n":
			limited.Add(1)
		default:
			t.Errorf("%q", line)
		}
		mu.Lock()
		all = append(all, c)
		mu.Unlock()
	})
	if n := in.Load(); n < 38 || n > 42 || n+limited.Load() != 100 {
		t.Errorf("%d logged in, %d were refused; the limit is 40", n, limited.Load())
	}
	for _, c := range all {
		c.close()
	}
	for _, b := range gateways {
		b.waitSlots(0)
	}
	testkit.Eventually(t, "a slot at the other gateway", func() bool {
		return strings.HasPrefix(gateways[1].tryLogin("192.0.2.1", "frank", "right"), "OK")
	})
}

func TestBanAppliesAtOtherGateways(t *testing.T) {
	l := limit.Config{Settings: limit.Settings{Failures: failureLimits()}}
	store, shared := startSharedLimits(t, l)
	m := openTestBackend(t)
	one, two := openHarness(t, m.addr(), shared), openHarness(t, m.addr(), withSharedLimits(t, store, l))
	for i := range 10 {
		_ = one.tryLogin("203.0.113.7", "frank", fmt.Sprint("guess", i))
	}
	one.expectRefusedFrom("203.0.113.7")
	testkit.Eventually(t, "the ban at the other gateway", func() bool { return two.deps.Limits.BanCount() == 1 })
	two.expectRefusedFrom("203.0.113.7")
}

func TestLoginCostsOneRedisRoundTrip(t *testing.T) {
	l := limit.Config{Settings: limit.Settings{Failures: failureLimits(), Connections: limit.Connections{
		PerUserAddress: 1000, PerUser: 1000, PerAddress: 1000, PreauthPerAddress: 1000, Total: 1000, NewPerMinute: 100_000, NewBurst: 10_000,
	}}}
	_, shared := startSharedLimits(t, l)
	trips := &roundTrips{}
	b := openHarness(t, openTestBackend(t).addr(), shared, func(s *harnessConfig) { s.redis.AddHook(trips) })
	login := func() { // and out again
		if got := b.tryLogin("192.0.2.1", "frank", "right"); !strings.HasPrefix(got, "OK") {
			t.Fatal(got)
		}
		b.waitSlots(0)
	}
	login() // the first login loads the scripts and marks the network as known
	const n = 20
	before := trips.n.Load()
	for range n {
		login()
	}
	if got := trips.n.Load() - before; got != n {
		t.Errorf("%d logins made %d trips", n, got)
	}
}

// roundTrips counts the requests for which a session waits, by the mark in its context.
type roundTrips struct{ n atomic.Int64 }

func (h *roundTrips) count(ctx context.Context) {
	if ctx.Value(servingKey{}) != nil {
		h.n.Add(1)
	}
}

// DialHook implements redis.Hook.
func (h *roundTrips) DialHook(next redis.DialHook) redis.DialHook { return next }

// ProcessHook implements redis.Hook.
func (h *roundTrips) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		h.count(ctx)
		return next(ctx, cmd)
	}
}

// ProcessPipelineHook implements redis.Hook.
func (h *roundTrips) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		h.count(ctx)
		return next(ctx, cmds)
	}
}
