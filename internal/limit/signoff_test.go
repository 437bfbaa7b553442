//go:build unix

package limit

import (
	"context"
	"testing"
	"time"

	"imapgate/internal/cluster"
	"imapgate/internal/event"
	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
)

// runToEnd runs a gate until stop, which waits for Run.
func runToEnd(t *testing.T, g *Limiter) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }() // ends with ctx; waited for by stop
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	}
}

func TestAGatewayThatStopsMakesRoomAtTheOthersAtOnce(t *testing.T) {
	r := testbed.StartRedis(t)
	cfg := wide() // with leases of the real length
	cfg.Connections.PerUserAddress = 3
	one := &gateway{Limiter: newGate(t, cfg, dial(t, r.Address))}
	stop := runToEnd(t, one.Limiter)
	two := runGate(t, cfg, dial(t, r.Address))
	alice, phone := user(t, "alice"), at("192.0.2.1")
	var in []*Conn
	for range 3 {
		v, err := enter(t, one, phone, alice)
		if err != nil {
			t.Fatal(err)
		}
		in = append(in, v)
	}
	if _, err := enter(t, two, phone, alice); reason(err) != event.LimitUserAddress {
		t.Fatalf("at the other gateway: %v", err)
	}
	leaveAll(in[:2])
	// The last one leaves when the stop is under way.
	go func() { in[2].Close() }() // ends at once; Run waits for it
	stop()
	again, err := enter(t, two, phone, alice)
	if err != nil {
		t.Fatalf("behind the stop: %v", err)
	}
	again.Close()
	if alive := r.CLI("zcard", "imapgate:limit:gateways"); alive != "1" {
		t.Errorf("%s gateways are thought to live", alive)
	}
}

func TestGatewayStopsWithoutRedisOrWithASession(t *testing.T) {
	for name, isFrozen := range map[string]bool{"with a session": false, "with a frozen Redis": true} {
		t.Run(name, func(t *testing.T) {
			r, cfg := testbed.StartRedis(t), wide()
			cfg.wait = cluster.Wait
			g := &gateway{Limiter: newGate(t, cfg, dial(t, r.Address))}
			stop := runToEnd(t, g.Limiter)
			v, err := enter(t, g, at("192.0.2.1"), user(t, "alice"))
			if err != nil {
				t.Fatal(err)
			}
			if isFrozen {
				r.Freeze()
			}
			stop()
			v.Close()
		})
	}
}

func TestWhoLeavesAtTheLimitMayComeBackAtOnce(t *testing.T) {
	r := testbed.StartRedis(t)
	cfg := quick()
	cfg.Connections.PerUserAddress, cfg.Connections.PerUser = 1, 2
	one, two := runGate(t, cfg, dial(t, r.Address)), runGate(t, cfg, dial(t, r.Address))
	alice := user(t, "alice")
	v, err := enter(t, one, at("192.0.2.1"), alice)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		v.Close()
		if v, err = enter(t, one, at("192.0.2.1"), alice); err != nil {
			t.Fatalf("time %d: %v", i, err)
		}
	}
	other, err := enter(t, two, at("192.0.2.2"), alice)
	if err != nil {
		t.Fatal(err)
	}
	v.Close()
	third, err := enter(t, two, at("192.0.2.1"), alice)
	testkit.Eventually(t, "the other gateway to hear of it", func() bool {
		if err != nil {
			third, err = enter(t, two, at("192.0.2.1"), alice)
		}
		return err == nil
	})
	if _, err := enter(t, one, at("192.0.2.3"), alice); reason(err) != event.LimitUser {
		t.Fatalf("one more than the limit: %v", err)
	}
	other.Close()
	third.Close()
	testkit.Eventually(t, "nobody to be there", func() bool { return sessionsOf(t, two, alice) == 0 })
}

func TestALoginWaitsForAFrozenRedisOnce(t *testing.T) {
	r := testbed.StartRedis(t)
	cfg := wide()
	cfg.Failures.Delay, cfg.Failures.MaxDelay = time.Millisecond, time.Millisecond
	cfg.wait = cluster.Wait
	client, late := dial(t, r.Address), &waits{}
	client.AddHook(late)
	g := &gateway{Limiter: newGate(t, cfg, client)}
	alice, phone, thief := user(t, "alice"), at("192.0.2.1"), at("203.0.113.9")
	for i := range cfg.Failures.BanAfter - 1 { // the next is a ban, and all that goes with it
		if _, err := guess(t, g.Limiter, thief, alice, secret("wrong %d", i)); err != nil && reason(err) == "" {
			t.Fatal(err)
		}
	}
	if _, err := guess(t, g.Limiter, phone, alice, secret("a slip")); err != nil { // so that Attempt asks
		t.Fatal(err)
	}
	r.Freeze()
	for name, login := range map[string]func(*Conn) error{
		"right": func(v *Conn) error { return v.BeginSession(late.of(t.Context()), alice) },
		"wrong": func(v *Conn) error { v.LoginFailed(late.of(t.Context()), alice, secret("again")); return nil },
	} {
		from := phone
		if name == "wrong" {
			from = thief
		}
		v := arrive(t, g.Limiter, from)
		late.n.Store(0)
		if err := v.BeginLogin(late.of(t.Context()), alice); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if err := login(v); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if n := late.n.Load(); n != 1 {
			t.Errorf("%s: waited %d times for a frozen Redis", name, n)
		}
		v.Close()
	}
}
