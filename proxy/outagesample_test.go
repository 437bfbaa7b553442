package proxy

import (
	"fmt"
	"testing"
	"time"

	"imapgate/auth"
	"imapgate/internal/event"
	"imapgate/internal/identity"
	"imapgate/internal/limit"
	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
	"imapgate/proxy/upstream"
	"imapgate/routing"
)

// withPausedUsers uses a Redis with users on east, some of them paused.
func withPausedUsers(t testing.TB) func(*harnessConfig) {
	t.Helper()
	store := testbed.StartRedis(t)
	for i := range 8 {
		store.CLI("HSET", fmt.Sprintf("imapgate:user:user%d@example.org", i), "backend", "east", "state", []string{"active", "paused"}[i%2])
	}
	store.CLI("HSET", "imapgate:user:blocked@example.org", "backend", "east", "state", "blocked")
	rdb, err := routing.Dial(routing.RedisConfig{RedisSettings: routing.RedisSettings{Addresses: []string{store.Address}}})
	testkit.NoError(t, err)
	t.Cleanup(func() { _ = rdb.Close() })
	return func(s *harnessConfig) {
		s.redis, s.routes.Source = rdb, routing.SourceRedis
		s.auth.Methods = []string{auth.Passthrough}
		s.cfg.FleetSecret = identity.NewSecret("of the groups")
	}
}

// Without the password, a paused user and an unknown one cannot be distinguished: both are
// UNAVAILABLE equally often, and each always the same.
func TestPausedUserIsIndistinguishableFromUnknown(t *testing.T) {
	b := openHarness(t, openTestBackend(t).addr(), withCountedUsers, withPausedUsers(t))
	for i := range 8 {
		want := []string{authFailedReply, unavailableReply}[i%2]
		if got := b.tryLogin("198.51.100.7", fmt.Sprint("user", i), "wrong"); got != want {
			t.Errorf("user%d: %s", i, got)
		}
	}
	answers := map[string]int{}
	for i := range 40 {
		address := fmt.Sprintf("203.%d.113.7", i)
		first := b.tryLogin(address, fmt.Sprint("unknown", i), "wrong")
		if again := b.tryLogin(address, fmt.Sprint("unknown", i), "other"); again != first {
			t.Errorf("unknown%d received %s and %s", i, first, again)
		}
		answers[first]++
	}
	if answers[authFailedReply]+answers[unavailableReply] != 40 || min(answers[authFailedReply], answers[unavailableReply]) < 10 {
		t.Errorf("received %v", answers)
	}
	b.wantRecord("login_refused", event.UserPaused)
	b.wantRecord("login_refused", event.NoRoute) // the operator sees the real reason
	for _, r := range b.records() {
		if r.field("reason") == string(event.UserPaused) && r.field("user")[:4] != "user" {
			t.Errorf("%v", r)
		}
	}
}

func TestUserOfDownBackendIsIndistinguishableFromUnknown(t *testing.T) {
	b := newHarness(t, openTestBackend(t).addr(), withCountedUsers, func(s *harnessConfig) {
		s.backends["gone"] = upstream.Config{Settings: upstream.Settings{Address: refusingAddress, TLS: event.NoTLS}, LoginSettings: upstream.LoginSettings{UpstreamConnectTimeout: 50 * time.Millisecond}}
		s.limits = limit.Config{Settings: limit.Settings{Failures: failureLimits()}}
	})
	if got := b.tryLogin("203.0.113.7", "unknown", "wrong"); got != authFailedReply {
		t.Errorf("where nothing is down: %s", got)
	}
	for i := range 12 { // erin is the only user seen: unknown users are answered like her, and no login counts
		if got := b.tryLogin("203.0.113.7", "erin", fmt.Sprint("guess", i)); got != unavailableReply {
			t.Fatalf("erin, try %d: %s", i, got)
		}
		if got := b.tryLogin("203.0.113.7", "unknown", fmt.Sprint("guess", i)); got != unavailableReply {
			t.Fatalf("unknown user, try %d: %s", i, got)
		}
	}
	if got := b.tryLogin("203.0.113.7", "frank", "wrong"); got != authFailedReply { // in the passwd-file
		t.Errorf("frank: %s", got)
	}
}

// The answer about an unknown user takes as long as the one about a user did.
func TestUnknownUserIsUnavailableNoSooner(t *testing.T) {
	const slow = 300 * time.Millisecond
	v := openAnsweringBackend(t, func(string, string) string { return "nothing" })
	b := newHarness(t, v.Addr(), withCountedUsers, func(s *harnessConfig) {
		s.backends["east"] = upstream.Config{Settings: upstream.Settings{Address: v.Addr(), TLS: event.NoTLS}, LoginSettings: upstream.LoginSettings{UpstreamLoginTimeout: slow, AnswerTimeout: slow}}
	})
	for _, user := range []string{"a", "unknown"} {
		start := time.Now()
		if got := b.tryLogin("203.0.113.7", user, "wrong"); got != unavailableReply || time.Since(start) < slow {
			t.Errorf("%s: %s after %v", user, got, time.Since(start))
		}
	}
}
