//go:build unix

package limit

import (
	"fmt"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"imapgate/internal/event"
	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
)

func TestTwoGatewaysAdmitExactlyTheLimit(t *testing.T) {
	r := testbed.StartRedis(t)
	cfg := shortTTL()
	cfg.Connections.PerUser = 50
	one, two := runTwo(t, cfg, r)
	alice := user(t, "alice")
	for round := range 5 {
		conns := openSessions(t, 200, alice, one, two)
		if len(conns) != 50 {
			t.Fatalf("round %d: %d of 200 sessions were admitted, the limit is 50", round, len(conns))
		}
		closeAll(conns)
		testkit.Eventually(t, "all sessions to be gone", func() bool { return sessionCount(t, one, alice) == 0 })
	}
	testkit.Eventually(t, "Redis to have no counts of sessions", func() bool { return r.CLI("keys", "imapgate:limit:sessions:*") == "" })
}

func TestASessionThatEndsFreesASlotAtTheOtherGateway(t *testing.T) {
	r := testbed.StartRedis(t)
	cfg := shortTTL()
	cfg.Connections.PerUserAddress = 1
	one, two := runTwo(t, cfg, r)
	conn, err := openSession(t, one, ip("192.0.2.1"), user(t, "alice"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := openSession(t, two, ip("192.0.2.1"), user(t, "alice")); reason(err) != event.LimitUserAddress {
		t.Fatalf("at the other gateway: %v", err)
	}
	conn.Close()
	testkit.Eventually(t, "a free slot at the other gateway", func() bool {
		conn, err := openSession(t, two, ip("192.0.2.1"), user(t, "alice"))
		if err != nil {
			return false
		}
		conn.Close()
		return true
	})
}

func TestSessionsOfAKilledGatewayExpire(t *testing.T) {
	r := testbed.StartRedis(t)
	cfg := shortTTL()
	cfg.Connections.PerUser = 10
	one, two := runTwo(t, cfg, r)
	alice := user(t, "alice")
	if conns := openSessions(t, 20, alice, one); len(conns) != 10 {
		t.Fatalf("%d sessions were admitted, the limit is 10", len(conns))
	}
	// The sessions count for as long as their gateway writes its heartbeat, although their
	// own counts do not change.
	until := time.Now().Add(2 * cfg.HeartbeatTTL)
	testkit.Eventually(t, "the heartbeat TTL to pass twice", func() bool {
		if conn, err := openSession(t, two, ip("10.9.9.9"), alice); err == nil {
			conn.Close()
			t.Fatal("an eleventh session was admitted")
		}
		return time.Now().After(until)
	})
	one.kill()
	testkit.Eventually(t, "the sessions of the killed gateway to expire", func() bool {
		conn, err := openSession(t, two, ip("10.9.9.9"), alice)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	replacement := runGateway(t, cfg, dialRedis(t, r.Address))
	testkit.Eventually(t, "the last session to be gone", func() bool { return sessionCount(t, replacement, alice) == 0 })
	conns := openSessions(t, 60, alice, replacement, two)
	if len(conns) != 10 {
		t.Fatalf("with a new gateway in its place %d sessions were admitted, the limit is 10", len(conns))
	}
	closeAll(conns)
}

func TestFailuresOfAUserAreClearedAtAllGateways(t *testing.T) {
	r := testbed.StartRedis(t)
	cfg := shortTTL()
	cfg.Failures.PerUserDay, cfg.Failures.PerUserHour = 5, 0
	one, two := runTwo(t, cfg, r)
	awaitSharedBans(t, one, two)
	victim := user(t, "victim")
	if _, err := logIn(t, one.Limiter, ip("198.51.100.1"), victim); err != nil {
		t.Fatal(err)
	}
	for i := range 6 {
		conn := openConn(t, one.Limiter, netip.AddrFrom4([4]byte{10, byte(i), 0, 1}))
		conn.LoginFailed(t.Context(), victim, secret("%d", i))
		conn.Close()
	}
	if _, err := logIn(t, one.Limiter, ip("192.0.2.1"), victim); reason(err) != event.LimitUserFailures {
		t.Fatalf("from an unknown network: %v", err)
	}
	if err := newLimiter(t, cfg, dialRedis(t, r.Address)).ResetUser(t.Context(), victim); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, "the user's failures to be cleared", func() bool {
		_, err := logIn(t, one.Limiter, ip("192.0.2.1"), victim)
		return err == nil
	})
}

func TestTheRateOfLoginsIsShared(t *testing.T) {
	r := testbed.StartRedis(t)
	cfg := shortTTL()
	cfg.Connections.NewPerMinute, cfg.Connections.NewBurst = 1, 10
	one, two := runTwo(t, cfg, r)
	admitted := 0
	for i := range 20 {
		conn, err := openSession(t, []*gateway{one, two}[i%2], ip("192.0.2.1"), user(t, fmt.Sprintf("user%d", i)))
		if err == nil {
			admitted++
			conn.Close()
		} else if reason(err) != event.LimitConnectionRate {
			t.Fatal(err)
		}
	}
	if admitted != 10 {
		t.Fatalf("%d of 20 sessions were admitted, the burst is 10", admitted)
	}
	if keys := r.CLI("keys", "*rate*"); keys != "imapgate:limit:rate:192.0.2.1/32" {
		t.Fatalf("the rate is kept at %q", keys)
	}
}

func TestALoginCostsOneRoundTrip(t *testing.T) {
	r := testbed.StartRedis(t)
	cfg := defaultConfig()
	cfg.Connections.Total = 1000
	client := dialRedis(t, r.Address)
	g := &gateway{newLimiter(t, cfg, client), nil} // it does not run, so that it sends nothing else
	var roundTrips roundTripCounter
	if conn, err := openSession(t, g, ip("192.0.2.1"), user(t, "first")); err != nil { // sends the scripts to Redis
		t.Fatal(err)
	} else {
		conn.Close()
	}
	client.AddHook(&roundTrips)
	conn := openConn(t, g.Limiter, ip("192.0.2.2"))
	if err := conn.BeginLogin(t.Context(), user(t, "alice")); err != nil {
		t.Fatal(err)
	}
	if n := roundTrips.n.Load(); n != 0 {
		t.Fatalf("before the session there were %d round trips", n)
	}
	if err := conn.BeginSession(t.Context(), user(t, "alice")); err != nil {
		t.Fatal(err)
	}
	if n := roundTrips.n.Load(); n != 1 {
		t.Fatalf("a login took %d round trips", n)
	}
	conn.Close()
}

func TestAClusterIsQueriedByHashSlot(t *testing.T) {
	c := testbed.StartRedisCluster(t)
	cfg := shortTTL()
	cfg.Connections = Connections{PerUser: 10, PerUserAddress: 10, PerAddress: 100, Total: 1000, NewPerMinute: 60, NewBurst: 30}
	var outages atomic.Int64
	hooks := Hooks{OnRedis: func(up bool) {
		if !up {
			outages.Add(1)
		}
	}}
	one, two := runWithHooks(t, cfg, dialRedis(t, c.Addresses...), hooks), runWithHooks(t, cfg, dialRedis(t, c.Addresses...), hooks)
	for i := range 5 {
		alice := user(t, fmt.Sprintf("alice%d", i))
		conns := openSessions(t, 40, alice, one, two)
		if len(conns) != 10 {
			t.Fatalf("%d sessions were admitted, the limit is 10", len(conns))
		}
		closeAll(conns)
	}
	awaitSharedBans(t, one, two)
	conn := openConn(t, one.Limiter, ip("192.0.2.1"))
	conn.LoginFailed(t.Context(), user(t, "alice"), secret("x"))
	conn.Close()
	if a, err := two.InspectAddress(t.Context(), ip("192.0.2.1")); err != nil || a.Tiers[2].Day != 1 {
		t.Fatalf("after a failure the status is %+v: %v", a, err)
	}
	if outages.Load() != 0 {
		t.Fatal("the cluster was reported as down")
	}
}

// A client that is refused again and again must neither take other slots nor cost more than a
// login.
func TestARefusalAtAnotherGatewayCostsOneRoundTrip(t *testing.T) {
	r := testbed.StartRedis(t)
	cfg := shortTTL()
	cfg.Connections.PerUser = 1
	client := dialRedis(t, r.Address)
	// The gateways do not run, so that they send nothing else.
	one, two := &gateway{newLimiter(t, cfg, dialRedis(t, r.Address)), nil}, &gateway{newLimiter(t, cfg, client), nil}
	conn, err := openSession(t, one, ip("192.0.2.1"), user(t, "alice"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	retry := func() {
		if _, err := openSession(t, two, ip("192.0.2.2"), user(t, "alice")); reason(err) != event.LimitUser {
			t.Fatalf("a second session: %v", err)
		}
	}
	retry() // connects, which is another round trip
	var roundTrips roundTripCounter
	client.AddHook(&roundTrips)
	for range 3 {
		retry()
	}
	if n := roundTrips.n.Load(); n != 3 {
		t.Errorf("three refusals took %d round trips", n)
	}
	if keys := r.CLI("keys", "imapgate:limit:sessions:*192.0.2.2*"); keys != "" {
		t.Errorf("a refused session has left %q", keys)
	}
	if n := r.CLI("hlen", "imapgate:limit:sessions:all"); n != "1" {
		t.Errorf("%s gateways count sessions, one has a session", n)
	}
	if n := two.CountersInUse(); n != 0 {
		t.Errorf("%d counts are left without a connection", n)
	}
}
