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

func TestCountsAreWrittenAgainToAnEmptyRedis(t *testing.T) {
	r := testbed.StartRedis(t)
	cfg := shortTTL()
	cfg.Connections.PerUser = 10
	one, two := runTwo(t, cfg, r)
	alice := user(t, "alice")
	awaitSharedBans(t, one, two)
	conns := openSessions(t, 10, alice, one, two)
	banned := netip.MustParsePrefix("203.0.113.0/24")
	if err := one.Ban(t.Context(), banned, time.Hour, ""); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, "the other gateway to have the ban", func() bool { _, ok := two.bans.Find(ip("203.0.113.1")); return ok })
	r.CLI("flushall")
	testkit.Eventually(t, "Redis to count all sessions again", func() bool { return sessionCount(t, one, alice) == 10 })
	testkit.Eventually(t, "Redis to have the ban again", func() bool { all, err := one.Bans(t.Context()); return err == nil && len(all) == 1 })
	if _, err := openSession(t, two, ip("10.9.9.9"), alice); reason(err) != event.LimitUser {
		t.Fatalf("an eleventh session: %v", err)
	}
	for _, g := range []*gateway{one, two} {
		if _, ok := g.bans.Find(ip("203.0.113.1")); !ok {
			t.Fatal("a gateway has lost its ban together with Redis")
		}
	}
	closeAll(conns)
}

func TestSessionsBegunWithoutRedisAreCountedLater(t *testing.T) {
	r := testbed.StartRedis(t)
	cfg := shortTTL()
	cfg.Connections.PerUser = 10
	one, two := runTwo(t, cfg, r)
	alice := user(t, "alice")
	before := openSessions(t, 6, alice, one)
	r.Kill()
	closeAll(before[:3])
	outage := openSessions(t, 4, alice, one)
	if len(outage) != 4 {
		t.Fatalf("without Redis %d of 4 sessions were admitted", len(outage))
	}
	r.Restart()
	testkit.Eventually(t, "Redis to count 7 sessions", func() bool { return sessionCount(t, two, alice) == 7 })
	conns := openSessions(t, 20, alice, two)
	if len(conns) != 3 {
		t.Fatalf("%d more sessions were admitted, 3 slots were free", len(conns))
	}
}

// While Redis is down, hangs or returns errors, logins succeed within the local limits.
func TestWithoutRedisTheLocalLimitsHold(t *testing.T) {
	for name, inject := range map[string]func(*testbed.Redis){
		"killed":        (*testbed.Redis).Kill,
		"frozen":        (*testbed.Redis).Freeze,
		"read only":     func(r *testbed.Redis) { r.CLI("replicaof", "127.0.0.1", "1") },
		"no memory":     func(r *testbed.Redis) { r.CLI("config", "set", "maxmemory", "1") },
		"no permission": func(r *testbed.Redis) { r.CLI("acl", "setuser", "default", "-@scripting") },
		"wrong type":    func(r *testbed.Redis) { r.CLI("set", "imapgate:limit:sessions:all", "x") },
	} {
		t.Run(name, func(t *testing.T) {
			r := testbed.StartRedis(t)
			cfg := shortTTL()
			cfg.Connections.PerUser, cfg.Wait = 10, cluster.Wait
			var down atomic.Bool
			client, timeouts := dialRedis(t, r.Address), &timeoutCounter{}
			client.AddHook(timeouts)
			g := runWithHooks(t, cfg, client, Hooks{OnRedis: func(up bool) { down.CompareAndSwap(false, !up) }})
			inject(r)
			admitted, began := 0, time.Now()
			for i := range 20 {
				conn := openConn(t, g.Limiter, netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}))
				before := timeouts.n.Load()
				err := conn.BeginSession(timeouts.withLogin(t.Context()), user(t, "alice"))
				if n := timeouts.n.Load() - before; n > 1 {
					t.Errorf("login %d waited for Redis %d times", i, n)
				}
				if err == nil {
					admitted++
					continue
				}
				conn.Close()
				if reason(err) != event.LimitUser {
					t.Errorf("login %d: %v", i, err)
				}
			}
			if admitted != 10 {
				t.Errorf("%d of 20 sessions were admitted, the limit is 10", admitted)
			}
			if name != "wrong type" {
				testkit.Eventually(t, "Redis to be reported as down", down.Load)
			}
			conn := openConn(t, g.Limiter, ip("192.0.2.1"))
			for i := range 10 {
				conn.LoginFailed(timeouts.withLogin(t.Context()), user(t, "bob"), secret("%d", i))
			}
			conn.Close()
			if _, err := g.Open("imaps", ip("192.0.2.1")); reason(err) != event.LimitBanned {
				t.Errorf("ten failures without Redis: %v", err)
			}
			// Logins wait until the breaker opens, and one for each trial after that.
			if n, most := timeouts.n.Load(), int64(breaker.Threshold+time.Since(began)/breaker.TrialInterval+1); n > most {
				t.Errorf("logins have waited for Redis %d times, want %d at most", n, most)
			}
		})
	}
}

// runThenKillRedis runs two gateways until they know of each other, calls before, and kills
// their Redis.
func runThenKillRedis(t *testing.T, cfg Config, before func(one, two *gateway)) (one, two *gateway) {
	t.Helper()
	r := testbed.StartRedis(t)
	var down atomic.Int32
	hooks := Hooks{OnRedis: func(up bool) {
		if !up {
			down.Add(1)
		}
	}}
	one, two = runWithHooks(t, cfg, dialRedis(t, r.Address), hooks), runWithHooks(t, cfg, dialRedis(t, r.Address), hooks)
	for _, g := range []*gateway{one, two} {
		testkit.Eventually(t, "each gateway to know of the other", func() bool {
			return g.cluster.Gateways() == 2
		})
	}
	before(one, two)
	r.Kill()
	testkit.Eventually(t, "both gateways to report Redis as down", func() bool { return down.Load() == 2 })
	return one, two
}

func TestWithoutRedisGatewaysDivideTheTotal(t *testing.T) {
	cfg := shortTTL()
	cfg.Connections.Total, cfg.Connections.PerUser = 11, 5
	var conns []*Conn
	begin := func(g *gateway, n byte) error {
		addr := netip.AddrFrom4([4]byte{10, 0, 0, n})
		conn, err := openSession(t, g, addr, user(t, "user"+addr.String()))
		if err == nil {
			conns = append(conns, conn)
		}
		return err
	}
	one, two := runThenKillRedis(t, cfg, func(one, _ *gateway) {
		for i := range byte(7) {
			if err := begin(one, i); err != nil {
				t.Fatal(err)
			}
		}
	})
	if err := begin(one, 100); reason(err) != event.LimitTotal {
		t.Errorf("a session beyond the gateway's share: %v", err)
	}
	for i := range byte(5) {
		if err := begin(two, 200+i); err != nil {
			t.Errorf("session %d of a share of 5: %v", i, err)
		}
	}
	if err := begin(two, 210); reason(err) != event.LimitTotal {
		t.Errorf("session 6 of a share of 5: %v", err)
	}
	closeAll(conns)
	// The limit of one user is not divided: a balancer may send all their connections to one gateway.
	if conns := openSessions(t, 20, user(t, "alice"), one); len(conns) != cfg.Connections.PerUser {
		t.Errorf("%d sessions of a user were admitted, the limit is %d", len(conns), cfg.Connections.PerUser)
	}
}

func TestWithoutRedisTheFreePartOfALimitIsDivided(t *testing.T) {
	cfg := shortTTL()
	cfg.Failures = Failures{PerUserDay: 10}
	victim := user(t, "victim")
	guessFrom := func(g *gateway, n byte) error {
		_, err := guess(t, g.Limiter, netip.AddrFrom4([4]byte{10, n, 0, 1}), victim, secret("%d", n))
		return err
	}
	one, two := runThenKillRedis(t, cfg, func(one, two *gateway) {
		for _, g := range []*gateway{one, two} { // a user without a known network is not refused
			if _, err := logIn(t, g.Limiter, ip("198.51.100.7"), victim); err != nil {
				t.Fatal(err)
			}
		}
		for i := range byte(6) {
			for _, g := range []*gateway{one, two}[i%2 : i%2+1] {
				if err := guessFrom(g, i); err != nil {
					t.Fatal(err)
				}
			}
		}
	})
	for k, g := range []*gateway{one, two} {
		guesses := 0
		for i := range byte(20) {
			if guessFrom(g, 100+100*byte(k)+i) == nil {
				guesses++
			}
		}
		if guesses < 2 || guesses > 3 { // the gateway that counted last knows of all six, the other of five
			t.Errorf("gateway %d verified %d of the 4 remaining guesses, want 2 or 3", k, guesses)
		}
	}
}

func TestRedisDownGivesAnAttackerNoMoreGuesses(t *testing.T) {
	cfg := shortTTL()
	cfg.Failures = Failures{PerUserDay: 10}
	victim, knownAddr := user(t, "victim"), ip("198.51.100.7")
	one, two := runThenKillRedis(t, cfg, func(one, two *gateway) {
		for _, g := range []*gateway{one, two} {
			if _, err := logIn(t, g.Limiter, knownAddr, victim); err != nil {
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
		t.Errorf("two gateways verified %d guesses, the limit is 10", guesses)
	}
	for _, g := range []*gateway{one, two} {
		if _, err := logIn(t, g.Limiter, knownAddr, victim); err != nil {
			t.Errorf("the victim at a known address: %v", err)
		}
	}
}
