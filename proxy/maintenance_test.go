package proxy

import (
	"fmt"
	"testing"

	"imapgate/internal/event"
	"imapgate/proxy/upstream"
)

// Maintenance reveals neither which users exist nor whether a password is right.
func TestMaintenanceIsTheAnswerToUnknownUsersToo(t *testing.T) {
	backend := openTestBackend(t)
	b := newHarness(t, backend.addr(), withCountedUsers, func(s *harnessConfig) {
		s.backends["east"] = upstream.Config{Settings: upstream.Settings{Address: backend.addr(), TLS: event.NoTLS, Maintenance: "Back at noon."}}
	})
	const text = "NO [UNAVAILABLE] Back at noon."
	for i := range 12 { // more than could fail without a delay or a ban
		for _, user := range []string{"a", "unknown", "alice", "neither"} {
			if got := b.tryLogin("203.0.113.7", user, fmt.Sprint("guess", i)); got != text {
				t.Fatalf("%s, try %d: %s", user, i, got)
			}
		}
	}
	if got := b.tryLogin("203.0.113.7", "frank", "wrong"); got != authFailedReply { // in the passwd-file
		t.Errorf("a wrong password that the gateway verifies: %s", got)
	}
	if got := b.tryLogin("203.0.113.7", "frank", password); got != text {
		t.Errorf("a right one: %s", got)
	}
	if got := b.tryLogin("203.0.113.7", "carol", password); got == text {
		t.Errorf("at a backend without maintenance: %s", got)
	}
	if r := b.wantRecord("login_refused", event.Maintenance); r.field("upstream") != string(event.ConnectMaintenance) || r.field("result") != string(event.ResultUnavailable) {
		t.Errorf("%v", r)
	}
	b.wantRecord("login_refused", event.NoRoute) // the operator sees the real reason
}
