//go:build unix

package limit

import (
	"net/netip"
	"testing"

	"imapgate/internal/event"
	"imapgate/internal/testbed"
)

// Guesses at a user with unclear results have one bound at all
// gateways together, and are seen at each. Networks and pairs have none of them.
func TestUnclearPasswordsCountForTheUserAtAllGateways(t *testing.T) {
	r := testbed.StartRedis(t)
	cfg := quick()
	cfg.Failures.PerUserDay, cfg.Failures.PerUserHour = 20, 0
	one, two := runGate(t, cfg, dial(t, r.Address)), runGate(t, cfg, dial(t, r.Address))
	following(t, one, two)
	victim := user(t, "victim")
	if _, err := logIn(t, one.Limiter, at("198.51.100.1"), victim); err != nil { // so that there is a network where it is known
		t.Fatal(err)
	}
	checked := 0
	for i := range 60 {
		g, addr := []*gateway{one, two}[i%2], netip.AddrFrom4([4]byte{10, byte(i), 0, 1})
		if _, err := unclear(t, g.Limiter, addr, victim, secret("guess%d", i)); err == nil {
			checked++
		} else if reason(err) != event.LimitUserFailures {
			t.Fatalf("guess %d: %v", i, err)
		}
	}
	if most := cfg.Failures.PerUserDay + 1; checked > most { // a gateway learns with its next guess
		t.Errorf("%d guesses were checked, %d may be", checked, most)
	}
	for name, g := range map[string]*gateway{"one": one, "two": two} {
		if a, err := g.InspectUser(t.Context(), victim); err != nil || a.Day != checked {
			t.Errorf("%s shows %d failures of %d: %v", name, a.Day, checked, err)
		}
	}
	if a, err := two.InspectAddress(t.Context(), at("10.0.0.1")); err != nil || a.Tiers[2].Day != 0 {
		t.Errorf("the network is seen as %+v: %v", a, err)
	}
	if keys := r.CLI("keys", "*fail*"); keys != "imapgate:limit:failed:user:victim@example.org" {
		t.Errorf("failures are kept at %q", keys)
	}
}
