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
	one, two := runGateway(t, shortTTL(), dialRedis(t, r.Address)), runGateway(t, shortTTL(), dialRedis(t, r.Address))
	victim, knownAddr := user(t, "victim"), ip("198.51.100.7")
	if _, err := logIn(t, one.Limiter, knownAddr, victim); err != nil {
		t.Fatal(err)
	}
	conn := openConn(t, two.Limiter, knownAddr)
	for i := range 12 { // failures at the known address, and guesses from elsewhere
		conn.LoginFailed(t.Context(), user(t, "neighbor"), secret("%d", i))
		elsewhere := openConn(t, two.Limiter, netip.AddrFrom4([4]byte{10, byte(i), 0, 1}))
		elsewhere.LoginFailed(t.Context(), victim, secret("%d", i))
		elsewhere.Close()
	}
	if err := conn.BeginLogin(t.Context(), user(t, "unknown")); reason(err) != event.LimitBanned {
		t.Fatalf("an unknown user in a banned network: %v", err)
	}
	conn.Close()
	if b, _ := two.bans.Find(knownAddr); !b.Active {
		t.Fatal("the gateway does not know that the network it has banned is active")
	}
	if waited, err := logIn(t, two.Limiter, knownAddr, victim); err != nil || waited >= defaultConfig().Failures.Delay {
		t.Fatalf("at a gateway new to them, the victim waited %v: %v", waited, err)
	}
	status, err := newLimiter(t, shortTTL(), dialRedis(t, r.Address)).InspectUser(t.Context(), victim)
	// One failure may be missing: on a busy machine a round trip may time out.
	if err != nil || len(status.Known) != 1 || status.Known[0].Net != penalty.UserNet(knownAddr) || status.Hour < 11 || status.Delay < 2*time.Second {
		t.Fatalf("status of the user: %+v: %v", status, err)
	}
	address, err := newLimiter(t, shortTTL(), dialRedis(t, r.Address)).InspectAddress(t.Context(), knownAddr)
	if err != nil || address.Ban == nil || len(address.Tiers) != penalty.Tiers || address.Tiers[0].Day < 11 {
		t.Fatalf("status of the address: %+v: %v", address, err)
	}
}

// A gateway that does not know the user asks Redis whether the user has known networks.
func TestAUserKnownElsewhereIsRefusedInUnknownNetworks(t *testing.T) {
	r := testbed.StartRedis(t)
	cfg := shortTTL()
	cfg.Failures = Failures{PerUserDay: 5} // without delays
	one, two := runTwo(t, cfg, r)
	known, unknown := user(t, "known"), user(t, "unknown")
	if _, err := logIn(t, one.Limiter, ip("198.51.100.7"), known); err != nil {
		t.Fatal(err)
	}
	for i := range 6 {
		for _, u := range []identity.User{known, unknown} {
			elsewhere := openConn(t, two.Limiter, netip.AddrFrom4([4]byte{10, byte(i), 0, 1}))
			elsewhere.LoginFailed(t.Context(), u, secret("%d", i))
			elsewhere.Close()
		}
	}
	if _, err := logIn(t, two.Limiter, ip("192.0.2.1"), known); reason(err) != event.LimitUserFailures {
		t.Errorf("a user with a known network: %v", err)
	}
	if status, err := newLimiter(t, cfg, dialRedis(t, r.Address)).InspectUser(t.Context(), known); err != nil || !status.KnownOnly {
		t.Errorf("status of the user: %+v: %v", status, err)
	}
	if status, err := newLimiter(t, cfg, dialRedis(t, r.Address)).InspectUser(t.Context(), unknown); err != nil || status.KnownOnly {
		t.Errorf("status of the user: %+v: %v", status, err)
	}
	if _, err := logIn(t, two.Limiter, ip("192.0.2.1"), unknown); err != nil {
		t.Errorf("a user without a known network: %v", err)
	}
}
