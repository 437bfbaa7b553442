//go:build unix

package limit

import (
	"net/netip"
	"testing"

	"imapgate/internal/event"
	"imapgate/internal/testbed"
)

// Logins with an unclear verdict count for the user at all gateways together, and each gateway
// shows them. They do not count for networks, nor for the user in a network.
func TestUnclearPasswordsCountForTheUserAtAllGateways(t *testing.T) {
	r := testbed.StartRedis(t)
	cfg := shortTTL()
	cfg.Failures.PerUserDay, cfg.Failures.PerUserHour = 20, 0
	one, two := runTwo(t, cfg, r)
	awaitSharedBans(t, one, two)
	victim := user(t, "victim")
	if _, err := logIn(t, one.Limiter, ip("198.51.100.1"), victim); err != nil { // so that the user has a known network
		t.Fatal(err)
	}
	verified := 0
	for i := range 60 {
		g, addr := []*gateway{one, two}[i%2], netip.AddrFrom4([4]byte{10, byte(i), 0, 1})
		if _, err := loginUnclear(t, g.Limiter, addr, victim, secret("guess%d", i)); err == nil {
			verified++
		} else if reason(err) != event.LimitUserFailures {
			t.Fatalf("guess %d: %v", i, err)
		}
	}
	if most := cfg.Failures.PerUserDay + 1; verified > most { // a gateway learns the count of the other with its next guess
		t.Errorf("%d guesses were verified, the limit is %d", verified, most)
	}
	for name, g := range map[string]*gateway{"one": one, "two": two} {
		if a, err := g.InspectUser(t.Context(), victim); err != nil || a.Day != verified {
			t.Errorf("%s shows %d failures of %d: %v", name, a.Day, verified, err)
		}
	}
	if a, err := two.InspectAddress(t.Context(), ip("10.0.0.1")); err != nil || a.Tiers[2].Day != 0 {
		t.Errorf("the status of the network is %+v: %v", a, err)
	}
	if keys := r.CLI("keys", "*fail*"); keys != "imapgate:limit:failed:user:victim@example.org" {
		t.Errorf("failures are kept at %q", keys)
	}
}
