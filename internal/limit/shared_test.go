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
	cfg := quick()
	cfg.Connections.PerUser = 50
	one, two := runGate(t, cfg, dial(t, r.Address)), runGate(t, cfg, dial(t, r.Address))
	alice := user(t, "alice")
	for round := range 5 {
		in := hammer(t, 200, alice, one, two)
		if len(in) != 50 {
			t.Fatalf("round %d: %d of 200 came in, the limit is 50", round, len(in))
		}
		leaveAll(in)
		testkit.Eventually(t, "the places to be free everywhere", func() bool { return sessionsOf(t, one, alice) == 0 })
	}
	testkit.Eventually(t, "Redis to forget that anybody was there", func() bool { return r.CLI("keys", "imapgate:limit:sessions:*") == "" })
}

func TestWhoLeavesMakesRoomAtTheOtherGateway(t *testing.T) {
	r := testbed.StartRedis(t)
	cfg := quick()
	cfg.Connections.PerUserAddress = 1
	one, two := runGate(t, cfg, dial(t, r.Address)), runGate(t, cfg, dial(t, r.Address))
	v, err := enter(t, one, at("192.0.2.1"), user(t, "alice"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := enter(t, two, at("192.0.2.1"), user(t, "alice")); reason(err) != event.LimitUserAddress {
		t.Fatalf("at the other gateway: %v", err)
	}
	v.Close()
	testkit.Eventually(t, "room at the other gateway", func() bool {
		v, err := enter(t, two, at("192.0.2.1"), user(t, "alice"))
		if err != nil {
			return false
		}
		v.Close()
		return true
	})
}

func TestTheSessionsOfAKilledGatewayVanish(t *testing.T) {
	r := testbed.StartRedis(t)
	cfg := quick()
	cfg.Connections.PerUser = 10
	one, two := runGate(t, cfg, dial(t, r.Address)), runGate(t, cfg, dial(t, r.Address))
	alice := user(t, "alice")
	if in := hammer(t, 20, alice, one); len(in) != 10 {
		t.Fatalf("%d came in", len(in))
	}
	// They stay for as long as their gateway says that it is alive, although
	// nothing is written at any of them.
	until := time.Now().Add(2 * cfg.HeartbeatTTL)
	testkit.Eventually(t, "two leases to pass", func() bool {
		if v, err := enter(t, two, at("10.9.9.9"), alice); err == nil {
			v.Close()
			t.Fatal("an eleventh session came in")
		}
		return time.Now().After(until)
	})
	one.kill()
	testkit.Eventually(t, "the dead gateway's sessions to be forgotten", func() bool {
		v, err := enter(t, two, at("10.9.9.9"), alice)
		if err == nil {
			v.Close()
		}
		return err == nil
	})
	again := runGate(t, cfg, dial(t, r.Address))
	testkit.Eventually(t, "the one who tried to be gone", func() bool { return sessionsOf(t, again, alice) == 0 })
	in := hammer(t, 60, alice, again, two)
	if len(in) != 10 {
		t.Fatalf("with a new gateway in its place %d came in, the limit is 10", len(in))
	}
	leaveAll(in)
}

func TestAnOperatorForgivesAUserEverywhere(t *testing.T) {
	r := testbed.StartRedis(t)
	cfg := quick()
	cfg.Failures.PerUserDay, cfg.Failures.PerUserHour = 5, 0
	one, two := runGate(t, cfg, dial(t, r.Address)), runGate(t, cfg, dial(t, r.Address))
	following(t, one, two)
	victim := user(t, "victim")
	if _, err := logIn(t, one.Limiter, at("198.51.100.1"), victim); err != nil {
		t.Fatal(err)
	}
	for i := range 6 {
		v := arrive(t, one.Limiter, netip.AddrFrom4([4]byte{10, byte(i), 0, 1}))
		v.LoginFailed(t.Context(), victim, secret("%d", i))
		v.Close()
	}
	if _, err := logIn(t, one.Limiter, at("192.0.2.1"), victim); reason(err) != event.LimitUserFailures {
		t.Fatalf("from somewhere new: %v", err)
	}
	if err := newGate(t, cfg, dial(t, r.Address)).ResetUser(t.Context(), victim); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, "the user to be forgiven", func() bool {
		_, err := logIn(t, one.Limiter, at("192.0.2.1"), victim)
		return err == nil
	})
}

func TestTheRateOfLoginsIsShared(t *testing.T) {
	r := testbed.StartRedis(t)
	cfg := quick()
	cfg.Connections.NewPerMinute, cfg.Connections.NewBurst = 1, 10
	one, two := runGate(t, cfg, dial(t, r.Address)), runGate(t, cfg, dial(t, r.Address))
	in := 0
	for i := range 20 {
		v, err := enter(t, []*gateway{one, two}[i%2], at("192.0.2.1"), user(t, fmt.Sprintf("user%d", i)))
		if err == nil {
			in++
			v.Close()
		} else if reason(err) != event.LimitConnectionRate {
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
	cfg.Connections.Total = 1000
	client := dial(t, r.Address)
	g := &gateway{newGate(t, cfg, client), nil} // it does not run: nothing else asks
	var trips tripCounter
	if v, err := enter(t, g, at("192.0.2.1"), user(t, "first")); err != nil { // scripts are sent to Redis
		t.Fatal(err)
	} else {
		v.Close()
	}
	client.AddHook(&trips)
	v := arrive(t, g.Limiter, at("192.0.2.2"))
	if err := v.BeginLogin(t.Context(), user(t, "alice")); err != nil {
		t.Fatal(err)
	}
	if n := trips.n.Load(); n != 0 {
		t.Fatalf("before the login Redis was asked %d times", n)
	}
	if err := v.BeginSession(t.Context(), user(t, "alice")); err != nil {
		t.Fatal(err)
	}
	if n := trips.n.Load(); n != 1 {
		t.Fatalf("a login asked Redis %d times", n)
	}
	v.Close()
}

func TestAClusterIsAskedSlotBySlot(t *testing.T) {
	c := testbed.StartRedisCluster(t)
	cfg := quick()
	cfg.Connections = Connections{PerUser: 10, PerUserAddress: 10, PerAddress: 100, Total: 1000, NewPerMinute: 60, NewBurst: 30}
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
	following(t, one, two)
	v := arrive(t, one.Limiter, at("192.0.2.1"))
	v.LoginFailed(t.Context(), user(t, "alice"), secret("x"))
	v.Close()
	if a, err := two.InspectAddress(t.Context(), at("192.0.2.1")); err != nil || a.Tiers[2].Day != 1 {
		t.Fatalf("a failure is seen as %+v: %v", a, err)
	}
	if away.Load() != 0 {
		t.Fatal("the cluster was thought to be away")
	}
}
