//go:build unix

package limit

import (
	"net/netip"
	"testing"
	"time"

	"imapgate/internal/event"
	"imapgate/internal/identity"
	"imapgate/internal/limit/penalty"
	"imapgate/internal/testbed"
)

func TestAUserIsKnownAtEveryGateway(t *testing.T) {
	r := testbed.StartRedis(t)
	one, two := runGate(t, quick(), dial(t, r.Address)), runGate(t, quick(), dial(t, r.Address))
	victim, home := user(t, "victim"), at("198.51.100.7")
	if _, err := logIn(t, one.Limiter, home, victim); err != nil {
		t.Fatal(err)
	}
	v := arrive(t, two.Limiter, home)
	for i := range 12 { // another user at home fails, and an attacker elsewhere guesses
		v.LoginFailed(t.Context(), user(t, "neighbor"), secret("%d", i))
		away := arrive(t, two.Limiter, netip.AddrFrom4([4]byte{10, byte(i), 0, 1}))
		away.LoginFailed(t.Context(), victim, secret("%d", i))
		away.Close()
	}
	if err := v.BeginLogin(t.Context(), user(t, "stranger")); reason(err) != event.LimitBanned {
		t.Fatalf("a stranger in a banned network: %v", err)
	}
	v.Close()
	if b, _ := two.bans.Find(home); !b.Active {
		t.Fatal("the gateway does not know that people live in the network it has banned")
	}
	if waited, err := logIn(t, two.Limiter, home, victim); err != nil || waited >= usual().Failures.Delay {
		t.Fatalf("at a gateway it was never at, the victim waited %v: %v", waited, err)
	}
	about, err := newGate(t, quick(), dial(t, r.Address)).InspectUser(t.Context(), victim)
	if err != nil || len(about.Known) != 1 || about.Known[0].Net != penalty.UserNet(home) || about.Hour < 11 || about.Delay < 2*time.Second { // one trip may have been too slow for a busy machine
		t.Fatalf("the operator sees %+v: %v", about, err)
	}
	address, err := newGate(t, quick(), dial(t, r.Address)).InspectAddress(t.Context(), home)
	if err != nil || address.Ban == nil || len(address.Tiers) != penalty.Tiers || address.Tiers[0].Day < 11 {
		t.Fatalf("the operator sees %+v: %v", address, err)
	}
}

// A gateway that has never seen the user asks Redis whether any network of it is known.
func TestAUserWhoIsKnownAtAnotherGatewayIsRefusedWhereItIsNot(t *testing.T) {
	r := testbed.StartRedis(t)
	cfg := quick()
	cfg.Failures = Failures{PerUserDay: 5} // without delays
	one, two := runGate(t, cfg, dial(t, r.Address)), runGate(t, cfg, dial(t, r.Address))
	known, unknown := user(t, "known"), user(t, "unknown")
	if _, err := logIn(t, one.Limiter, at("198.51.100.7"), known); err != nil {
		t.Fatal(err)
	}
	for i := range 6 {
		for _, u := range []identity.User{known, unknown} {
			away := arrive(t, two.Limiter, netip.AddrFrom4([4]byte{10, byte(i), 0, 1}))
			away.LoginFailed(t.Context(), u, secret("%d", i))
			away.Close()
		}
	}
	if _, err := logIn(t, two.Limiter, at("192.0.2.1"), known); reason(err) != event.LimitUserFailures {
		t.Errorf("a user with a known network: %v", err)
	}
	if about, err := newGate(t, cfg, dial(t, r.Address)).InspectUser(t.Context(), known); err != nil || !about.KnownOnly {
		t.Errorf("the operator sees %+v: %v", about, err)
	}
	if about, err := newGate(t, cfg, dial(t, r.Address)).InspectUser(t.Context(), unknown); err != nil || about.KnownOnly {
		t.Errorf("the operator sees %+v: %v", about, err)
	}
	if _, err := logIn(t, two.Limiter, at("192.0.2.1"), unknown); err != nil {
		t.Errorf("a user without one: %v", err)
	}
}
