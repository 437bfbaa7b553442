package proxy

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"go.uber.org/zap"

	"imapgate/auth"
	"imapgate/internal/event"
	"imapgate/internal/identity"
	"imapgate/internal/limit"
	"imapgate/internal/testbed"
	"imapgate/proxy/upstream"
	"imapgate/routing"
)

func parseUser(t testing.TB, name string) identity.User {
	t.Helper()
	u, err := identity.Canonicalize(name, "example.org")
	must(t, err)
	return u
}

// unreachableError returns upstream's error for an unreachable backend.
func unreachableError(t testing.TB) error {
	t.Helper()
	b := upstream.New(testbed.WithDefaults(upstream.Config{Settings: upstream.Settings{Address: refusingAddress, TLS: upstream.NoTLS}, LoginSettings: upstream.LoginSettings{UpstreamConnectTimeout: 50 * time.Millisecond}}), upstream.Hooks{}, zap.NewNop())
	_, err := b.Login(t.Context(), upstream.Request{User: parseUser(t, "x"), Password: identity.NewSecret("y")})
	if upstream.ResultOf(err) != event.ConnectUnreachable {
		t.Fatal(err)
	}
	return err
}

// isUnavailable reports whether an unknown name is answered UNAVAILABLE.
func (s *outageSample) isUnavailable(t testing.TB, name string, shown credentialType) bool {
	t.Helper()
	group, ok := s.groupOf(parseUser(t, name))
	if ok {
		_, ok = s.outageAt(outageKey{group, shown, 0})
	}
	return ok
}

// countUnavailable counts the unknown names that are answered UNAVAILABLE.
func (s *outageSample) countUnavailable(t testing.TB, n int) (unavailable int) {
	t.Helper()
	for i := range n {
		if s.isUnavailable(t, fmt.Sprint("unknown", i), passwordCredential) {
			unavailable++
		}
	}
	return unavailable
}

func TestUnknownNamesAreUnavailableAsOftenAsKnownUsers(t *testing.T) {
	s := newOutageSample(identity.NewSecret("shared by the gateways"))
	if n := s.countUnavailable(t, 100); n != 0 {
		t.Errorf("%d of 100 where no user was seen", n)
	}
	for i := range 200 {
		s.addUser(parseUser(t, fmt.Sprint("user", i)), []string{"east", "west", "west", noBackend}[i%4])
	}
	gone := unreachableError(t)
	for _, step := range []struct {
		do          func()
		least, most int // of 1000
	}{
		{func() {}, 200, 300}, // a quarter is paused
		{func() { s.recordAnswer(outageKey{"west", passwordCredential, 0}, gone, time.Second) }, 700, 800},
		{func() { s.recordAnswer(outageKey{"east", passwordCredential, 0}, gone, time.Second) }, 1000, 1000},
		{func() { s.recordAnswer(outageKey{"west", passwordCredential, 0}, nil, 0) }, 450, 550},
		{func() { s.recordAnswer(outageKey{"east", passwordCredential, 0}, upstream.ErrLoop, 0) }, 450, 550},     // not about east
		{func() { s.recordAnswer(outageKey{"east", passwordCredential, 0}, upstream.ErrDenied, 0) }, 450, 550},   // without a verdict: the backend was not asked
		{func() { s.recordAnswer(outageKey{"west", passwordCredential, 0}, errors.New("other"), 0) }, 950, 1000}, // protocol error
	} {
		step.do()
		if n := s.countUnavailable(t, 1000); n < step.least || n > step.most {
			t.Errorf("%d of 1000, not %d to %d", n, step.least, step.most)
		}
	}
	for i := range 300 { // all paused users have moved to east
		s.addUser(parseUser(t, fmt.Sprint("user", i)), "east")
	}
	if s.recordAnswer(outageKey{"east", passwordCredential, 0}, nil, 0); s.countUnavailable(t, 1000) != 0 {
		t.Error("unavailable while every backend answers")
	}
	if len(s.index) != len(s.ring) || len(s.groupSizes) != 1 || s.groupSizes["east"] != len(s.ring) {
		t.Errorf("%d users in %v", len(s.index), s.groupSizes)
	}
}

func TestNameGroupIsStableAcrossGatewaysAndShares(t *testing.T) {
	secret := identity.NewSecret("shared by the gateways")
	one, two := newOutageSample(secret), newOutageSample(secret)
	for i := range 100 {
		one.addUser(parseUser(t, fmt.Sprint("a", i)), []string{"east", "west"}[i%2])
		two.addUser(parseUser(t, fmt.Sprint("b", i)), []string{"east", "west"}[i%2])
	}
	gone := unreachableError(t)
	one.recordAnswer(outageKey{"west", passwordCredential, 0}, gone, time.Second)
	two.recordAnswer(outageKey{"west", passwordCredential, 0}, gone, time.Second)
	before := map[string]bool{}
	for i := range 500 {
		name := fmt.Sprint("unknown", i)
		here := one.isUnavailable(t, name, passwordCredential)
		if there := two.isUnavailable(t, name, passwordCredential); here != there {
			t.Fatalf("%s is unavailable at one gateway and not at the other", name)
		}
		before[name] = here
	}
	for i := range 10 { // ten more users on west
		one.addUser(parseUser(t, fmt.Sprint("c", i)), "west")
	}
	for name, was := range before {
		if was && !one.isUnavailable(t, name, passwordCredential) {
			t.Fatalf("%s has left the group that has grown", name)
		}
	}
}

// withPausedUsers uses a Redis with users on east, some of them paused.
func withPausedUsers(t testing.TB) func(*harnessConfig) {
	t.Helper()
	store := testbed.StartRedis(t)
	for i := range 8 {
		store.CLI("HSET", fmt.Sprintf("imapgate:user:user%d@example.org", i), "backend", "east", "state", []string{"active", "paused"}[i%2])
	}
	store.CLI("HSET", "imapgate:user:blocked@example.org", "backend", "east", "state", "blocked")
	rdb, err := routing.Dial(routing.RedisConfig{RedisSettings: routing.RedisSettings{Addresses: []string{store.Address}}})
	must(t, err)
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
		s.backends["gone"] = upstream.Config{Settings: upstream.Settings{Address: refusingAddress, TLS: upstream.NoTLS}, LoginSettings: upstream.LoginSettings{UpstreamConnectTimeout: 50 * time.Millisecond}}
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
	b := newHarness(t, v.addr(), withCountedUsers, func(s *harnessConfig) {
		s.backends["east"] = upstream.Config{Settings: upstream.Settings{Address: v.addr(), TLS: upstream.NoTLS}, LoginSettings: upstream.LoginSettings{UpstreamLoginTimeout: slow}, AnswerTimeout: slow}
	})
	for _, user := range []string{"a", "unknown"} {
		start := time.Now()
		if got := b.tryLogin("203.0.113.7", user, "wrong"); got != unavailableReply || time.Since(start) < slow {
			t.Errorf("%s: %s after %v", user, got, time.Since(start))
		}
	}
}
