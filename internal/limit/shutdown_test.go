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

// runUntilStop runs a limiter until stop is called. stop waits for Run.
func runUntilStop(t *testing.T, l *Limiter) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }() // ends with ctx; waited for by stop
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	}
}

func TestAStoppingGatewayFreesItsSlotsAtOnce(t *testing.T) {
	r := testbed.StartRedis(t)
	cfg := noConnLimits() // with the default heartbeat TTL
	cfg.Connections.PerUserAddress = 3
	one := &gateway{Limiter: newLimiter(t, cfg, dialRedis(t, r.Address))}
	stop := runUntilStop(t, one.Limiter)
	two := runGateway(t, cfg, dialRedis(t, r.Address))
	alice, phone := user(t, "alice"), ip("192.0.2.1")
	var conns []*Conn
	for range 3 {
		conn, err := openSession(t, one, phone, alice)
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, conn)
	}
	if _, err := openSession(t, two, phone, alice); reason(err) != event.LimitUserAddress {
		t.Fatalf("at the other gateway: %v", err)
	}
	closeAll(conns[:2])
	// The last session ends while the gateway stops.
	go func() { conns[2].Close() }() // ends at once; Run waits for it
	stop()
	again, err := openSession(t, two, phone, alice)
	if err != nil {
		t.Fatalf("after the stop: %v", err)
	}
	again.Close()
	if alive := r.CLI("zcard", "imapgate:limit:gateways"); alive != "1" {
		t.Errorf("Redis has %s gateways, want 1", alive)
	}
}

func TestGatewayStopsWithoutRedisOrWithASession(t *testing.T) {
	for name, isFrozen := range map[string]bool{"with a session": false, "with a frozen Redis": true} {
		t.Run(name, func(t *testing.T) {
			r, cfg := testbed.StartRedis(t), noConnLimits()
			cfg.Wait = cluster.Wait
			g := &gateway{Limiter: newLimiter(t, cfg, dialRedis(t, r.Address))}
			stop := runUntilStop(t, g.Limiter)
			conn, err := openSession(t, g, ip("192.0.2.1"), user(t, "alice"))
			if err != nil {
				t.Fatal(err)
			}
			if isFrozen {
				r.Freeze()
			}
			stop()
			conn.Close()
		})
	}
}

func TestAUserAtTheLimitMayReconnectAtOnce(t *testing.T) {
	r := testbed.StartRedis(t)
	cfg := shortTTL()
	cfg.Connections.PerUserAddress, cfg.Connections.PerUser = 1, 2
	one, two := runTwo(t, cfg, r)
	alice := user(t, "alice")
	conn, err := openSession(t, one, ip("192.0.2.1"), alice)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		conn.Close()
		if conn, err = openSession(t, one, ip("192.0.2.1"), alice); err != nil {
			t.Fatalf("session %d: %v", i, err)
		}
	}
	other, err := openSession(t, two, ip("192.0.2.2"), alice)
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	third, err := openSession(t, two, ip("192.0.2.1"), alice)
	testkit.Eventually(t, "the other gateway to admit a session", func() bool {
		if err != nil {
			third, err = openSession(t, two, ip("192.0.2.1"), alice)
		}
		return err == nil
	})
	if _, err := openSession(t, one, ip("192.0.2.3"), alice); reason(err) != event.LimitUser {
		t.Fatalf("a session beyond the limit: %v", err)
	}
	other.Close()
	third.Close()
	testkit.Eventually(t, "all sessions to be gone", func() bool { return sessionCount(t, two, alice) == 0 })
}

func TestALoginWaitsForAFrozenRedisOnce(t *testing.T) {
	r := testbed.StartRedis(t)
	cfg := noConnLimits()
	cfg.Failures.Delay, cfg.Failures.MaxDelay = time.Millisecond, time.Millisecond
	cfg.Wait = cluster.Wait
	client, timeouts := dialRedis(t, r.Address), &timeoutCounter{}
	client.AddHook(timeouts)
	g := &gateway{Limiter: newLimiter(t, cfg, client)}
	alice, phone, attacker := user(t, "alice"), ip("192.0.2.1"), ip("203.0.113.9")
	for i := range cfg.Failures.BanAfter - 1 { // the next failure bans the address
		if _, err := guess(t, g.Limiter, attacker, alice, secret("wrong %d", i)); err != nil && reason(err) == "" {
			t.Fatal(err)
		}
	}
	if _, err := guess(t, g.Limiter, phone, alice, secret("typo")); err != nil { // so that BeginLogin asks Redis
		t.Fatal(err)
	}
	r.Freeze()
	for name, login := range map[string]func(*Conn) error{
		"right": func(conn *Conn) error { return conn.BeginSession(timeouts.withLogin(t.Context()), alice) },
		"wrong": func(conn *Conn) error {
			conn.LoginFailed(timeouts.withLogin(t.Context()), alice, secret("again"))
			return nil
		},
	} {
		from := phone
		if name == "wrong" {
			from = attacker
		}
		conn := openConn(t, g.Limiter, from)
		timeouts.n.Store(0)
		if err := conn.BeginLogin(timeouts.withLogin(t.Context()), alice); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if err := login(conn); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if n := timeouts.n.Load(); n != 1 {
			t.Errorf("%s: waited %d times for a frozen Redis", name, n)
		}
		conn.Close()
	}
}
