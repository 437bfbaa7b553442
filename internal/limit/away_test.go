//go:build unix

package limit

import (
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"imapgate/internal/breaker"
	"imapgate/internal/cluster"
	"imapgate/internal/event"
	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
)

func TestRedisThatLostEverythingGetsItAgain(t *testing.T) {
	r := testbed.StartRedis(t)
	cfg := quick()
	cfg.Connections.PerUser = 10
	one, two := runGate(t, cfg, dial(t, r.Address)), runGate(t, cfg, dial(t, r.Address))
	alice := user(t, "alice")
	following(t, one, two)
	in := hammer(t, 10, alice, one, two)
	banned := netip.MustParsePrefix("203.0.113.0/24")
	if err := one.Ban(t.Context(), banned, time.Hour, ""); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, "the other to know the ban", func() bool { _, ok := two.bans.Find(at("203.0.113.1")); return ok })
	r.CLI("flushall")
	testkit.Eventually(t, "Redis to know all sessions again", func() bool { return sessionsOf(t, one, alice) == 10 })
	testkit.Eventually(t, "Redis to know the ban again", func() bool { all, err := one.Bans(t.Context()); return err == nil && len(all) == 1 })
	if _, err := enter(t, two, at("10.9.9.9"), alice); reason(err) != event.LimitUser {
		t.Fatalf("an eleventh session: %v", err)
	}
	for _, g := range []*gateway{one, two} {
		if _, ok := g.bans.Find(at("203.0.113.1")); !ok {
			t.Fatal("a ban was forgotten with Redis")
		}
	}
	leaveAll(in)
}

func TestSessionsBegunWithoutRedisAreCountedWhenItIsBack(t *testing.T) {
	r := testbed.StartRedis(t)
	cfg := quick()
	cfg.Connections.PerUser = 10
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
	testkit.Eventually(t, "Redis to know of 7", func() bool { return sessionsOf(t, two, alice) == 7 })
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
			cfg.Connections.PerUser, cfg.wait = 10, cluster.Wait
			var down atomic.Bool
			client, late := dial(t, r.Address), &waits{}
			client.AddHook(late)
			g := runHooked(t, cfg, client, Hooks{OnRedis: func(up bool) { down.CompareAndSwap(false, !up) }})
			harm(r)
			entered, began := 0, time.Now()
			for i := range 20 {
				v := arrive(t, g.Limiter, netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}))
				before := late.n.Load()
				err := v.BeginSession(late.of(t.Context()), user(t, "alice"))
				if n := late.n.Load() - before; n > 1 {
					t.Errorf("login %d waited %d times", i, n)
				}
				if err == nil {
					entered++
					continue
				}
				v.Close()
				if reason(err) != event.LimitUser {
					t.Errorf("login %d: %v", i, err)
				}
			}
			if entered != 10 {
				t.Errorf("%d of 20 came in, the limit is 10", entered)
			}
			if name != "wrong type" {
				testkit.Eventually(t, "Redis to be told as away", down.Load)
			}
			v := arrive(t, g.Limiter, at("192.0.2.1"))
			for i := range 10 {
				v.LoginFailed(late.of(t.Context()), user(t, "bob"), secret("%d", i))
			}
			v.Close()
			if _, err := g.Open("imaps", at("192.0.2.1")); reason(err) != event.LimitBanned {
				t.Errorf("ten failures without Redis: %v", err)
			}
			// Those who find out, and one each time that Redis is tried again.
			if n, most := late.n.Load(), int64(breaker.Threshold+time.Since(began)/breaker.TrialInterval+1); n > most {
				t.Errorf("logins have waited %d times, want %d at most", n, most)
			}
		})
	}
}

// apart are two gateways that know of each other and have lost their Redis.
func apart(t *testing.T, cfg Config, before func(one, two *gateway)) (one, two *gateway) {
	t.Helper()
	r := testbed.StartRedis(t)
	var down atomic.Int32
	hooks := Hooks{OnRedis: func(up bool) {
		if !up {
			down.Add(1)
		}
	}}
	one, two = runHooked(t, cfg, dial(t, r.Address), hooks), runHooked(t, cfg, dial(t, r.Address), hooks)
	for _, g := range []*gateway{one, two} {
		testkit.Eventually(t, "them to know of each other", func() bool {
			return g.cluster.Gateways() == 2
		})
	}
	before(one, two)
	r.Kill()
	testkit.Eventually(t, "both to miss Redis", func() bool { return down.Load() == 2 })
	return one, two
}

func TestWithoutRedisGatewaysShareWhatEverybodyHas(t *testing.T) {
	cfg := quick()
	cfg.Connections.Total, cfg.Connections.PerUser = 11, 5
	var here []*Conn
	come := func(g *gateway, n byte) error {
		addr := netip.AddrFrom4([4]byte{10, 0, 0, n})
		v, err := enter(t, g, addr, user(t, "user"+addr.String()))
		if err == nil {
			here = append(here, v)
		}
		return err
	}
	one, two := apart(t, cfg, func(one, _ *gateway) {
		for i := range byte(7) {
			if err := come(one, i); err != nil {
				t.Fatal(err)
			}
		}
	})
	if err := come(one, 100); reason(err) != event.LimitTotal {
		t.Errorf("beyond its share a gateway lets in one more: %v", err)
	}
	for i := range byte(5) {
		if err := come(two, 200+i); err != nil {
			t.Errorf("session %d of a share of 5: %v", i, err)
		}
	}
	if err := come(two, 210); reason(err) != event.LimitTotal {
		t.Errorf("session 6 of a share of 5: %v", err)
	}
	leaveAll(here)
	// What one user has is not divided: a balancer may keep it at one gateway.
	if in := hammer(t, 20, user(t, "alice"), one); len(in) != cfg.Connections.PerUser {
		t.Errorf("%d sessions of a user came in, the limit is %d", len(in), cfg.Connections.PerUser)
	}
}

func TestWithoutRedisOnlyTheRestOfALimitIsDivided(t *testing.T) {
	cfg := quick()
	cfg.Failures = Failures{PerUserDay: 10}
	victim := user(t, "victim")
	try := func(g *gateway, n byte) error {
		_, err := guess(t, g.Limiter, netip.AddrFrom4([4]byte{10, n, 0, 1}), victim, secret("%d", n))
		return err
	}
	one, two := apart(t, cfg, func(one, two *gateway) {
		for _, g := range []*gateway{one, two} { // or it would not be refused anywhere
			if _, err := logIn(t, g.Limiter, at("198.51.100.7"), victim); err != nil {
				t.Fatal(err)
			}
		}
		for i := range byte(6) {
			for _, g := range []*gateway{one, two}[i%2 : i%2+1] {
				if err := try(g, i); err != nil {
					t.Fatal(err)
				}
			}
		}
	})
	for k, g := range []*gateway{one, two} {
		guesses := 0
		for i := range byte(20) {
			if try(g, 100+100*byte(k)+i) == nil {
				guesses++
			}
		}
		if guesses < 2 || guesses > 3 { // the gateway that was asked last knows of all six, the other of five
			t.Errorf("gateway %d looks at %d guesses of the 4 that are left", k, guesses)
		}
	}
}

func TestWithoutRedisAnAttackerHasNoMoreGuessesAtAUser(t *testing.T) {
	cfg := quick()
	cfg.Failures = Failures{PerUserDay: 10}
	victim, home := user(t, "victim"), at("198.51.100.7")
	one, two := apart(t, cfg, func(one, two *gateway) {
		for _, g := range []*gateway{one, two} {
			if _, err := logIn(t, g.Limiter, home, victim); err != nil {
				t.Fatal(err)
			}
		}
	})
	guesses := 0
	for i := range byte(50) {
		for _, g := range []*gateway{one, two} {
			if _, err := guess(t, g.Limiter, netip.AddrFrom4([4]byte{10, i, 0, 1}), victim, secret("%d", i)); err == nil {
				guesses++
			} else if reason(err) != event.LimitUserFailures {
				t.Fatal(err)
			}
		}
	}
	if guesses != 10 {
		t.Errorf("two gateways looked at %d guesses, the limit is 10", guesses)
	}
	for _, g := range []*gateway{one, two} {
		if _, err := logIn(t, g.Limiter, home, victim); err != nil {
			t.Errorf("the victim at home: %v", err)
		}
	}
}
