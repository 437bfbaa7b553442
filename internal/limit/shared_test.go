//go:build unix

package limit

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/zap/zaptest"

	"imapgate/internal/identity"
	"imapgate/internal/testbed"
)

// patienceOf is how long anything between gateways may take here.
const patienceOf = 10 * time.Second

// dial makes a client as the gateway does: RESP2, and 250 ms for everything.
func dial(t testing.TB, addresses ...string) redis.UniversalClient {
	t.Helper()
	c := redis.NewUniversalClient(&redis.UniversalOptions{
		Addrs: addresses, Protocol: 2, DisableIdentity: true, DialTimeout: time.Second,
		ReadTimeout: ioTime, WriteTimeout: ioTime, PoolTimeout: ioTime, ContextTimeoutEnabled: true, MaxRetries: 1, DialerRetries: 1,
	})
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// quick are limits whose leases are short enough to wait for.
func quick() Config {
	c := wide()
	c.Lease = 2 * time.Second
	return c
}

// gateway is a Gate that runs, until the test ends or kill.
type gateway struct {
	*Gate
	kill func() // at once, as a power cut: nothing is given back
}

func runGate(t testing.TB, cfg Config, client redis.UniversalClient) *gateway {
	t.Helper()
	return runHooked(t, cfg, client, Hooks{})
}

func runHooked(t testing.TB, cfg Config, client redis.UniversalClient, hooks Hooks) *gateway {
	t.Helper()
	g, err := New(cfg, client, hooks, zaptest.NewLogger(t))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	run := g.keepUp // without its farewell
	if client == nil {
		run = g.Run
	}
	go func() { done <- run(ctx) }() // ends with ctx; waited for by kill
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
func enter(t testing.TB, g *gateway, addr netip.Addr, u identity.User) (*Visit, error) {
	t.Helper()
	v, err := g.Arrive("imaps", addr)
	if err != nil {
		return nil, err
	}
	if err := v.Enter(t.Context(), u); err != nil {
		v.Leave()
		return nil, err
	}
	return v, nil
}

// hammer has many at once try to come in through all gateways, and gives those
// who did.
func hammer(t testing.TB, tries int, u identity.User, gates ...*gateway) []*Visit {
	t.Helper()
	var mu sync.Mutex
	var in []*Visit
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
			} else if reason(err) != UserConnections {
				t.Errorf("try %d: %v", i, err)
			}
		})
	}
	all.Wait()
	return in
}

func leaveAll(in []*Visit) {
	for _, v := range in {
		v.Leave()
	}
}

func sessionsOf(t testing.TB, g *gateway, u identity.User) int {
	t.Helper()
	a, err := g.ShowUser(t.Context(), u)
	if err != nil {
		t.Logf("show: %v", err)
		return -1
	}
	return a.Sessions
}

func TestTwoGatewaysAdmitExactlyTheLimit(t *testing.T) {
	r := testbed.StartRedis(t)
	cfg := quick()
	cfg.Settings.PerUser = 50
	one, two := runGate(t, cfg, dial(t, r.Address)), runGate(t, cfg, dial(t, r.Address))
	alice := user(t, "alice")
	for round := range 5 {
		in := hammer(t, 200, alice, one, two)
		if len(in) != 50 {
			t.Fatalf("round %d: %d of 200 came in, the limit is 50", round, len(in))
		}
		leaveAll(in)
		testbed.Within(t, patienceOf, "the places to be free everywhere", func() bool { return sessionsOf(t, one, alice) == 0 })
	}
	testbed.Within(t, patienceOf, "Redis to forget that anybody was there", func() bool { return r.CLI("keys", "imapgate:limit:sessions:*") == "" })
}

func TestWhoLeavesMakesRoomAtTheOtherGateway(t *testing.T) {
	r := testbed.StartRedis(t)
	cfg := quick()
	cfg.Settings.PerUserAddress = 1
	one, two := runGate(t, cfg, dial(t, r.Address)), runGate(t, cfg, dial(t, r.Address))
	v, err := enter(t, one, at("192.0.2.1"), user(t, "alice"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := enter(t, two, at("192.0.2.1"), user(t, "alice")); reason(err) != UserAddress {
		t.Fatalf("at the other gateway: %v", err)
	}
	v.Leave()
	testbed.Within(t, patienceOf, "room at the other gateway", func() bool {
		v, err := enter(t, two, at("192.0.2.1"), user(t, "alice"))
		if err != nil {
			return false
		}
		v.Leave()
		return true
	})
}

func TestTheSessionsOfAKilledGatewayVanish(t *testing.T) {
	r := testbed.StartRedis(t)
	cfg := quick()
	cfg.Settings.PerUser = 10
	one, two := runGate(t, cfg, dial(t, r.Address)), runGate(t, cfg, dial(t, r.Address))
	alice := user(t, "alice")
	if in := hammer(t, 20, alice, one); len(in) != 10 {
		t.Fatalf("%d came in", len(in))
	}
	// They stay for as long as their gateway says that it is alive, although
	// nothing is written at any of them.
	until := time.Now().Add(2 * cfg.Lease)
	testbed.Within(t, patienceOf, "two leases to pass", func() bool {
		if v, err := enter(t, two, at("10.9.9.9"), alice); err == nil {
			v.Leave()
			t.Fatal("an eleventh session came in")
		}
		return time.Now().After(until)
	})
	one.kill()
	killed := time.Now()
	testbed.Within(t, patienceOf, "the dead gateway's sessions to be forgotten", func() bool {
		v, err := enter(t, two, at("10.9.9.9"), alice)
		if err == nil {
			v.Leave()
		}
		return err == nil
	})
	// A lease, and a beat in which the other learns of it: 45 + 13 s by default.
	if took := time.Since(killed); took > cfg.Lease*3/2 {
		t.Fatalf("it took %v, with leases of %v", took, cfg.Lease)
	}
	again := runGate(t, cfg, dial(t, r.Address))
	testbed.Within(t, patienceOf, "the one who tried to be gone", func() bool { return sessionsOf(t, again, alice) == 0 })
	in := hammer(t, 60, alice, again, two)
	if len(in) != 10 {
		t.Fatalf("with a new gateway in its place %d came in, the limit is 10", len(in))
	}
	leaveAll(in)
}

func TestARedisThatLostEverythingIsToldAgain(t *testing.T) {
	r := testbed.StartRedis(t)
	cfg := quick()
	cfg.Settings.PerUser = 10
	one, two := runGate(t, cfg, dial(t, r.Address)), runGate(t, cfg, dial(t, r.Address))
	alice := user(t, "alice")
	testbed.Within(t, patienceOf, "both to follow", func() bool { return following(t, one, two) })
	in := hammer(t, 10, alice, one, two)
	banned := netip.MustParsePrefix("203.0.113.0/24")
	if err := one.Ban(t.Context(), banned, time.Hour, ""); err != nil {
		t.Fatal(err)
	}
	testbed.Within(t, patienceOf, "the other to know the ban", func() bool { _, ok := two.bans.covers(at("203.0.113.1"), two.now()); return ok })
	r.CLI("flushall")
	testbed.Within(t, patienceOf, "Redis to know all sessions again", func() bool { return sessionsOf(t, one, alice) == 10 })
	testbed.Within(t, patienceOf, "Redis to know the ban again", func() bool { all, err := one.Bans(t.Context()); return err == nil && len(all) == 1 })
	if _, err := enter(t, two, at("10.9.9.9"), alice); reason(err) != UserConnections {
		t.Fatalf("an eleventh session: %v", err)
	}
	for _, g := range []*gateway{one, two} {
		if _, ok := g.bans.covers(at("203.0.113.1"), g.now()); !ok {
			t.Fatal("a ban was forgotten with Redis")
		}
	}
	leaveAll(in)
}

func TestSessionsBegunWithoutRedisAreCountedWhenItIsBack(t *testing.T) {
	r := testbed.StartRedis(t)
	cfg := quick()
	cfg.Settings.PerUser = 10
	one, two := runGate(t, cfg, dial(t, r.Address)), runGate(t, cfg, dial(t, r.Address))
	alice := user(t, "alice")
	before := hammer(t, 6, alice, one)
	r.Kill()
	leaveAll(before[:3])
	during := hammer(t, 4, alice, one)
	if len(during) != 4 {
		t.Fatalf("without Redis %d of 4 came in", len(during))
	}
	r.Restart()
	testbed.Within(t, patienceOf, "Redis to know of 7", func() bool { return sessionsOf(t, two, alice) == 7 })
	in := hammer(t, 20, alice, two)
	if len(in) != 3 {
		t.Fatalf("%d more came in, there was room for 3", len(in))
	}
}

// Redis is gone, hangs, or refuses to work: logins go on within the local limits.
func TestWithoutRedisTheLocalLimitsHold(t *testing.T) {
	for name, harm := range map[string]func(*testbed.Redis){
		"killed":     (*testbed.Redis).Kill,
		"frozen":     (*testbed.Redis).Freeze,
		"read only":  func(r *testbed.Redis) { r.CLI("replicaof", "127.0.0.1", "1") },
		"no memory":  func(r *testbed.Redis) { r.CLI("config", "set", "maxmemory", "1") },
		"no rights":  func(r *testbed.Redis) { r.CLI("acl", "setuser", "default", "-@scripting") },
		"wrong type": func(r *testbed.Redis) { r.CLI("set", "imapgate:limit:sessions:all", "x") },
	} {
		t.Run(name, func(t *testing.T) {
			r := testbed.StartRedis(t)
			cfg := quick()
			cfg.Settings.PerUser = 10
			var down atomic.Bool
			g := runHooked(t, cfg, dial(t, r.Address), Hooks{OnRedis: func(up bool) { down.Store(!up) }})
			harm(r)
			entered, slow := 0, 0
			for i := range 20 {
				began := time.Now()
				_, err := enter(t, g, netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), user(t, "alice"))
				if took := time.Since(began); took > 300*time.Millisecond {
					slow++
					t.Logf("login %d took %v", i, took)
				}
				if err == nil {
					entered++
				} else if reason(err) != UserConnections {
					t.Errorf("login %d: %v", i, err)
				}
			}
			if slow > 1 { // once, this machine may have looked elsewhere
				t.Errorf("%d logins took more than 300 ms", slow)
			}
			if entered != 10 {
				t.Errorf("%d of 20 came in, the limit is 10", entered)
			}
			if name != "wrong type" && !down.Load() {
				t.Error("nobody was told that Redis is away")
			}
			began := time.Now()
			v := arrive(t, g.Gate, at("192.0.2.1"))
			for i := range 10 {
				v.Failed(t.Context(), user(t, "bob"), secret("%d", i))
			}
			v.Leave()
			if _, err := g.Arrive("imaps", at("192.0.2.1")); reason(err) != Banned {
				t.Errorf("ten failures without Redis: %v", err)
			}
			if took := time.Since(began); name != "wrong type" && took > 3*time.Second {
				t.Errorf("ten failures took %v", took)
			}
		})
	}
}

func TestABanWithoutRedisIsToldWhenItIsBack(t *testing.T) {
	r := testbed.StartRedis(t)
	told := make(chan bool, 100)
	one := runHooked(t, quick(), dial(t, r.Address), Hooks{OnRedis: func(up bool) { told <- up }})
	two := runGate(t, quick(), dial(t, r.Address))
	testbed.Within(t, patienceOf, "both to follow", func() bool { return following(t, one, two) })
	if up := <-told; !up || len(told) > 0 {
		t.Fatal("it was not told, once, that Redis is there")
	}
	r.Kill()
	v := arrive(t, one.Gate, at("192.0.2.1"))
	for i := range 10 {
		v.Failed(t.Context(), user(t, "alice"), secret("%d", i))
	}
	v.Leave()
	r.Restart()
	testbed.Within(t, patienceOf, "the other to know the ban", func() bool { _, ok := two.bans.covers(at("192.0.2.1"), two.now()); return ok })
}

func TestABanHoldsEverywhereWithinASecond(t *testing.T) {
	r := testbed.StartRedis(t)
	one, two := runGate(t, quick(), dial(t, r.Address)), runGate(t, quick(), dial(t, r.Address))
	addr := at("192.0.2.1")
	testbed.Within(t, patienceOf, "both to follow", func() bool { return following(t, one, two) })
	for i := range 5 { // five here and five there
		for _, g := range []*gateway{one, two} {
			if v, err := g.Arrive("imaps", addr); err == nil {
				v.Failed(t.Context(), user(t, "alice"), secret("%d %p", i, g))
				v.Leave()
			}
		}
	}
	testbed.Within(t, time.Second, "the ban to hold at both", func() bool {
		_, err1 := one.Arrive("imaps", addr)
		_, err2 := two.Arrive("imaps", addr)
		return reason(err1) == Banned && reason(err2) == Banned
	})
	late := runGate(t, quick(), dial(t, r.Address))
	testbed.Within(t, time.Second, "a gateway that starts to know it", func() bool {
		_, err := late.Arrive("imaps", addr)
		return reason(err) == Banned
	})
	operator := newGate(t, quick(), dial(t, r.Address)) // which runs nowhere
	all, err := operator.Bans(t.Context())
	if err != nil || len(all) != 1 || all[0].Net != home(addr) || all[0].Why != ManyFailures || !within(all[0].For, 10*time.Minute) {
		t.Fatalf("the operator sees %+v: %v", all, err)
	}
	if lifted, err := operator.Unban(t.Context(), home(addr)); err != nil || len(lifted) != 1 {
		t.Fatalf("lifted %v: %v", lifted, err)
	}
	testbed.Within(t, time.Second, "the ban to be lifted everywhere", func() bool {
		for _, g := range []*gateway{one, two, late} {
			if _, ok := g.bans.covers(addr, g.now()); ok {
				return false
			}
		}
		return true
	})
	if _, err := guess(t, one.Gate, addr, user(t, "alice"), secret("once more")); err != nil {
		t.Fatalf("behind the pardon: %v", err)
	}
	if _, err := one.Arrive("imaps", addr); err != nil {
		t.Fatalf("one failure behind the pardon: %v", err)
	}
}

// following says whether all gateways know a ban that was set to be seen, and
// lifts it again.
func following(t *testing.T, gates ...*gateway) bool {
	t.Helper()
	probe := netip.MustParsePrefix("198.18.0.1/32")
	if err := gates[0].Ban(t.Context(), probe, time.Minute, ""); err != nil {
		t.Fatal(err)
	}
	for _, g := range gates {
		testbed.Within(t, patienceOf, "a ban to be followed", func() bool { _, ok := g.bans.covers(probe.Addr(), g.now()); return ok })
	}
	if _, err := gates[0].Unban(t.Context(), probe); err != nil {
		t.Fatal(err)
	}
	for _, g := range gates {
		testbed.Within(t, patienceOf, "its end to be followed", func() bool { _, ok := g.bans.covers(probe.Addr(), g.now()); return !ok })
	}
	return true
}

func TestBansSurviveMoreChangesThanAreKept(t *testing.T) {
	r := testbed.StartRedis(t)
	client := dial(t, r.Address)
	one := runGate(t, quick(), client)
	testbed.Within(t, patienceOf, "it to follow", func() bool { return following(t, one) })
	r.CLI("eval", `for i = 1, 9000 do redis.call('XADD', 'imapgate:ban:{all}:changes', '*', 'n', redis.call('INCR', 'imapgate:ban:{all}:count'), 'ban', 'x') end
		redis.call('XTRIM', 'imapgate:ban:{all}:changes', 'MAXLEN', 10)`, "0")
	if err := newGate(t, quick(), client).Ban(t.Context(), netip.MustParsePrefix("192.0.2.0/24"), time.Hour, "a gap"); err != nil {
		t.Fatal(err)
	}
	testbed.Within(t, patienceOf, "the ban behind the gap", func() bool { _, ok := one.bans.covers(at("192.0.2.9"), one.now()); return ok })
}

func TestAUserIsKnownAtEveryGateway(t *testing.T) {
	r := testbed.StartRedis(t)
	one, two := runGate(t, quick(), dial(t, r.Address)), runGate(t, quick(), dial(t, r.Address))
	victim, home := user(t, "victim"), at("198.51.100.7")
	if _, err := logIn(t, one.Gate, home, victim); err != nil {
		t.Fatal(err)
	}
	v := arrive(t, two.Gate, home)
	for i := range 12 { // somebody else at home fails, and somebody elsewhere guesses
		v.Failed(t.Context(), user(t, "neighbor"), secret("%d", i))
		away := arrive(t, two.Gate, netip.AddrFrom4([4]byte{10, byte(i), 0, 1}))
		away.Failed(t.Context(), victim, secret("%d", i))
		away.Leave()
	}
	if err := v.Attempt(t.Context(), user(t, "stranger")); reason(err) != Banned {
		t.Fatalf("a stranger in a banned network: %v", err)
	}
	v.Leave()
	if b, _ := two.bans.covers(home, two.now()); !b.Lived {
		t.Fatal("the gateway does not know that people live in the network it has banned")
	}
	if waited, err := logIn(t, two.Gate, home, victim); err != nil || waited > ioTime {
		t.Fatalf("at a gateway it was never at, the victim waited %v: %v", waited, err)
	}
	about, err := newGate(t, quick(), dial(t, r.Address)).ShowUser(t.Context(), victim)
	if err != nil || len(about.Known) != 1 || about.Known[0].Net != near(home) || about.Hour < 11 || about.Delay < 2*time.Second { // one trip may have been too slow for a busy machine
		t.Fatalf("the operator sees %+v: %v", about, err)
	}
	address, err := newGate(t, quick(), dial(t, r.Address)).ShowAddress(t.Context(), home)
	if err != nil || !address.Lived || address.Ban == nil || len(address.Tiers) != tiers || address.Tiers[0].Day < 11 {
		t.Fatalf("the operator sees %+v: %v", address, err)
	}
}

func TestAnOperatorForgivesAUserEverywhere(t *testing.T) {
	r := testbed.StartRedis(t)
	cfg := quick()
	cfg.Failures.PerUserTotal, cfg.Failures.PerUserHour = 5, 0
	one, two := runGate(t, cfg, dial(t, r.Address)), runGate(t, cfg, dial(t, r.Address))
	testbed.Within(t, patienceOf, "both to follow", func() bool { return following(t, one, two) })
	victim := user(t, "victim")
	for i := range 6 {
		v := arrive(t, one.Gate, netip.AddrFrom4([4]byte{10, byte(i), 0, 1}))
		v.Failed(t.Context(), victim, secret("%d", i))
		v.Leave()
	}
	if _, err := logIn(t, one.Gate, at("192.0.2.1"), victim); reason(err) != UserFailures {
		t.Fatalf("from somewhere new: %v", err)
	}
	if err := newGate(t, cfg, dial(t, r.Address)).Forgive(t.Context(), victim); err != nil {
		t.Fatal(err)
	}
	testbed.Within(t, time.Second, "the user to be forgiven", func() bool {
		_, err := logIn(t, one.Gate, at("192.0.2.1"), victim)
		return err == nil
	})
}

func TestTheRateOfLoginsIsShared(t *testing.T) {
	r := testbed.StartRedis(t)
	cfg := quick()
	cfg.Settings.NewPerMinute, cfg.Settings.NewBurst = 1, 10
	one, two := runGate(t, cfg, dial(t, r.Address)), runGate(t, cfg, dial(t, r.Address))
	in := 0
	for i := range 20 {
		v, err := enter(t, []*gateway{one, two}[i%2], at("192.0.2.1"), user(t, fmt.Sprintf("user%d", i)))
		if err == nil {
			in++
			v.Leave()
		} else if reason(err) != ConnectionRate {
			t.Fatal(err)
		}
	}
	if in != 10 {
		t.Fatalf("%d of 20 came in, the burst is 10", in)
	}
	if keys := r.CLI("keys", "*rate*"); keys != "imapgate:limit:rate:192.0.2.1/32" {
		t.Fatalf("the rate is kept at %q", keys)
	}
}

func TestALoginCostsOneTrip(t *testing.T) {
	r := testbed.StartRedis(t)
	cfg := usual()
	cfg.Settings.Total = 1000
	client := dial(t, r.Address)
	g := &gateway{newGate(t, cfg, client), nil} // it does not run: nothing else asks
	var trips tripCounter
	if v, err := enter(t, g, at("192.0.2.1"), user(t, "first")); err != nil { // scripts are sent to Redis
		t.Fatal(err)
	} else {
		v.Leave()
	}
	client.AddHook(&trips)
	v := arrive(t, g.Gate, at("192.0.2.2"))
	if err := v.Attempt(t.Context(), user(t, "alice")); err != nil {
		t.Fatal(err)
	}
	if n := trips.n.Load(); n != 0 {
		t.Fatalf("before the login Redis was asked %d times", n)
	}
	if err := v.Enter(t.Context(), user(t, "alice")); err != nil {
		t.Fatal(err)
	}
	if n := trips.n.Load(); n != 1 {
		t.Fatalf("a login asked Redis %d times", n)
	}
	v.Leave()
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

func TestAClusterIsAskedSlotBySlot(t *testing.T) {
	c := testbed.StartRedisCluster(t)
	cfg := quick()
	cfg.Settings = Settings{PerUser: 10, PerUserAddress: 10, PerAddress: 100, Total: 1000, NewPerMinute: 60, NewBurst: 30}
	var away atomic.Int64
	hooks := Hooks{OnRedis: func(up bool) {
		if !up {
			away.Add(1)
		}
	}}
	one, two := runHooked(t, cfg, dial(t, c.Addresses...), hooks), runHooked(t, cfg, dial(t, c.Addresses...), hooks)
	for i := range 5 {
		alice := user(t, fmt.Sprintf("alice%d", i))
		in := hammer(t, 40, alice, one, two)
		if len(in) != 10 {
			t.Fatalf("%d came in, the limit is 10", len(in))
		}
		leaveAll(in)
	}
	if !following(t, one, two) {
		t.Fatal("bans are not followed")
	}
	v := arrive(t, one.Gate, at("192.0.2.1"))
	v.Failed(t.Context(), user(t, "alice"), secret("x"))
	v.Leave()
	if a, err := two.ShowAddress(t.Context(), at("192.0.2.1")); err != nil || a.Tiers[2].Day != 1 {
		t.Fatalf("a failure is seen as %+v: %v", a, err)
	}
	if away.Load() != 0 {
		t.Fatal("the cluster was thought to be away")
	}
}

func TestRedisNeedsNoMoreRightsThanTheManualSays(t *testing.T) {
	for name, only := range map[string]string{
		"all keys": "~imapgate:*", "routes only to read": "%R~imapgate:* ~imapgate:limit:* ~imapgate:ban:*",
	} {
		t.Run(name, func(t *testing.T) {
			r := testbed.StartRedis(t)
			r.CLI(strings.Fields(strings.Replace(manualACL(t), "~imapgate:*", only, 1))...)
			c := redis.NewUniversalClient(&redis.UniversalOptions{
				Addrs: []string{r.Address}, Username: "imapgate", Password: "PASSWORD", Protocol: 2, DisableIdentity: true,
			})
			t.Cleanup(func() { _ = c.Close() })
			everything(t, c)
			if log := r.CLI("acl", "log"); log != "" {
				t.Fatalf("Redis refused: %s", log)
			}
		})
	}
}

// everything asks Redis everything that a gate ever does.
func everything(t *testing.T, c redis.UniversalClient) {
	t.Helper()
	var away atomic.Int64
	cfg := usual()
	cfg.Lease = quick().Lease
	g := runHooked(t, cfg, c, Hooks{OnRedis: func(up bool) {
		if !up {
			away.Add(1)
		}
	}})
	alice, addr := user(t, "alice"), at("192.0.2.1")
	v, err := enter(t, g, addr, alice)
	if err != nil {
		t.Fatal(err)
	}
	if !following(t, g) {
		t.Fatal("bans are not followed")
	}
	if n := sessionsOf(t, g, alice); n != 1 {
		t.Fatalf("%d sessions", n)
	}
	stranger := arrive(t, g.Gate, addr)
	for i := range 12 {
		stranger.Failed(t.Context(), user(t, "bob"), secret("%d", i))
	}
	if err := stranger.Attempt(t.Context(), user(t, "bob")); reason(err) != Banned {
		t.Fatalf("behind 12 failures: %v", err)
	}
	stranger.Leave()
	if _, err := g.ShowAddress(t.Context(), addr); err != nil {
		t.Fatal(err)
	}
	if _, err := g.Unban(t.Context(), home(addr)); err != nil {
		t.Fatal(err)
	}
	if err := g.Forgive(t.Context(), alice); err != nil {
		t.Fatal(err)
	}
	v.Leave()
	if away.Load() != 0 {
		t.Fatal("Redis was thought to be away")
	}
}

// manualACL is the user that docs/OPERATIONS.md gives the gateway.
func manualACL(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("../../docs/OPERATIONS.md")
	if err != nil {
		t.Fatal(err)
	}
	_, behind, found := strings.Cut(string(text), "\n    ACL SETUSER ")
	acl, _, ended := strings.Cut(behind, "\n\n")
	if !found || !ended {
		t.Fatal("the manual has no ACL user")
	}
	return "ACL SETUSER " + acl
}
