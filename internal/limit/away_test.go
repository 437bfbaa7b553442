//go:build unix

package limit

import (
	"net/netip"
	"sync/atomic"
	"testing"

	"imapgate/internal/testbed"
)

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
		testbed.Within(t, patienceOf, "them to know of each other", func() bool {
			g.shared.mu.Lock()
			defer g.shared.mu.Unlock()
			return g.shared.alive == 2
		})
	}
	before(one, two)
	r.Kill()
	testbed.Within(t, patienceOf, "both to miss Redis", func() bool { return down.Load() == 2 })
	return one, two
}

func TestWithoutRedisGatewaysShareWhatEverybodyHas(t *testing.T) {
	cfg := quick()
	cfg.Settings.Total, cfg.Settings.PerUser = 11, 5
	var here []*Visit
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
	if err := come(one, 100); reason(err) != TotalSessions {
		t.Errorf("beyond its share a gateway lets in one more: %v", err)
	}
	for i := range byte(5) {
		if err := come(two, 200+i); err != nil {
			t.Errorf("session %d of a share of 5: %v", i, err)
		}
	}
	if err := come(two, 210); reason(err) != TotalSessions {
		t.Errorf("session 6 of a share of 5: %v", err)
	}
	leaveAll(here)
	// What one user has is not divided: a balancer may keep it at one gateway.
	if in := hammer(t, 20, user(t, "alice"), one); len(in) != cfg.Settings.PerUser {
		t.Errorf("%d sessions of a user came in, the limit is %d", len(in), cfg.Settings.PerUser)
	}
}

func TestWithoutRedisAnAttackerHasNoMoreGuessesAtAUser(t *testing.T) {
	cfg := quick()
	cfg.Failures = Failures{PerUserTotal: 10}
	victim, home := user(t, "victim"), at("198.51.100.7")
	one, two := apart(t, cfg, func(one, two *gateway) {
		for _, g := range []*gateway{one, two} {
			if _, err := logIn(t, g.Gate, home, victim); err != nil {
				t.Fatal(err)
			}
		}
	})
	guesses := 0
	for i := range byte(50) {
		for _, g := range []*gateway{one, two} {
			if _, err := guess(t, g.Gate, netip.AddrFrom4([4]byte{10, i, 0, 1}), victim, secret("%d", i)); err == nil {
				guesses++
			} else if reason(err) != UserFailures {
				t.Fatal(err)
			}
		}
	}
	if guesses != 10 {
		t.Errorf("two gateways looked at %d guesses, the limit is 10", guesses)
	}
	for _, g := range []*gateway{one, two} {
		if _, err := logIn(t, g.Gate, home, victim); err != nil {
			t.Errorf("the victim at home: %v", err)
		}
	}
}
