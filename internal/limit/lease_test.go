//go:build unix

package limit

import (
	"testing"

	"imapgate/internal/event"
	"imapgate/internal/testbed"
)

// A client that is refused over and over must neither fill other places nor cost more
// than a login.
func TestARefusalElsewhereTakesNothingAndIsOneTrip(t *testing.T) {
	r := testbed.StartRedis(t)
	cfg := quick()
	cfg.Connections.PerUser = 1
	client := dial(t, r.Address)
	// They do not run: nothing is given back behind this test.
	one, two := &gateway{newGate(t, cfg, dial(t, r.Address)), nil}, &gateway{newGate(t, cfg, client), nil}
	v, err := enter(t, one, at("192.0.2.1"), user(t, "alice"))
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	again := func() {
		if _, err := enter(t, two, at("192.0.2.2"), user(t, "alice")); reason(err) != event.LimitUser {
			t.Fatalf("a second session: %v", err)
		}
	}
	again() // connects, which is a trip of its own
	var trips tripCounter
	client.AddHook(&trips)
	for range 3 {
		again()
	}
	if n := trips.n.Load(); n != 3 {
		t.Errorf("three refusals made %d trips", n)
	}
	if keys := r.CLI("keys", "imapgate:limit:sessions:*192.0.2.2*"); keys != "" {
		t.Errorf("who was refused has left %q", keys)
	}
	if n := r.CLI("hlen", "imapgate:limit:sessions:all"); n != "1" {
		t.Errorf("at the place of all are %s gateways, one has a session", n)
	}
	if n := two.CountersInUse(); n != 0 {
		t.Errorf("%d counts without a connection", n)
	}
}
