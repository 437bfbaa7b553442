package login

import (
	"errors"
	"fmt"
	"imapgate/internal/event"
	"imapgate/internal/identity"
	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
	"imapgate/proxy/upstream"
	"slices"
	"testing"
	"time"

	"go.uber.org/zap"
)

func parseUser(t testing.TB, name string) identity.User {
	t.Helper()
	u, err := identity.Canonicalize(name, "example.org")
	testkit.NoError(t, err)
	return u
}

// unreachableError returns upstream's error for an unreachable backend.
func unreachableError(t testing.TB) error {
	t.Helper()
	b := upstream.New(testbed.WithDefaults(upstream.Config{Settings: upstream.Settings{Address: "127.0.0.1:1", TLS: event.NoTLS}, LoginSettings: upstream.LoginSettings{UpstreamConnectTimeout: 50 * time.Millisecond}}), upstream.Hooks{}, zap.NewNop())
	_, err := b.Login(t.Context(), upstream.Request{User: parseUser(t, "x"), Password: identity.NewSecret("y")})
	if upstream.ResultOf(t.Context(), err) != event.ConnectUnreachable {
		t.Fatal(err)
	}
	return err
}

// isUnavailable reports whether an unknown name is answered UNAVAILABLE.
func (s *outageSample) isUnavailable(t testing.TB, name string, shown credentialType) bool {
	t.Helper()
	group, ok := s.groupOf(parseUser(t, name))
	if ok {
		_, ok = s.outageAt(outageKey{group, shown}, 0)
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
		{func() { s.recordAnswer(outageKey{"west", passwordCredential}, 0, gone, time.Second) }, 700, 800},
		{func() { s.recordAnswer(outageKey{"east", passwordCredential}, 0, gone, time.Second) }, 1000, 1000},
		{func() { s.recordAnswer(outageKey{"west", passwordCredential}, 0, nil, 0) }, 450, 550},
		{func() { s.recordAnswer(outageKey{"east", passwordCredential}, 0, upstream.ErrLoop, 0) }, 450, 550},     // not about east
		{func() { s.recordAnswer(outageKey{"east", passwordCredential}, 0, upstream.ErrDenied, 0) }, 450, 550},   // without a verdict: the backend was not asked
		{func() { s.recordAnswer(outageKey{"west", passwordCredential}, 0, errors.New("other"), 0) }, 950, 1000}, // protocol error
	} {
		step.do()
		if n := s.countUnavailable(t, 1000); n < step.least || n > step.most {
			t.Errorf("%d of 1000, not %d to %d", n, step.least, step.most)
		}
	}
	for i := range 300 { // all paused users have moved to east
		s.addUser(parseUser(t, fmt.Sprint("user", i)), "east")
	}
	if s.recordAnswer(outageKey{"east", passwordCredential}, 0, nil, 0); s.countUnavailable(t, 1000) != 0 {
		t.Error("unavailable while every backend answers")
	}
	isElsewhere := func(u sampledUser) bool { return u.group != "east" }
	if len(s.index) != len(s.ring) || slices.ContainsFunc(s.ring[:], isElsewhere) {
		t.Errorf("%d users in %v", len(s.index), s.ring)
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
	one.recordAnswer(outageKey{"west", passwordCredential}, 0, gone, time.Second)
	two.recordAnswer(outageKey{"west", passwordCredential}, 0, gone, time.Second)
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
