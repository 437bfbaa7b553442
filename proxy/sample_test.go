package proxy

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"go.uber.org/zap"

	"imapgate/auth"
	"imapgate/internal/audit"
	"imapgate/internal/identity"
	"imapgate/internal/limit"
	"imapgate/internal/testbed"
	"imapgate/proxy/upstream"
	"imapgate/routing"
)

func named(t testing.TB, name string) identity.User {
	t.Helper()
	u, err := identity.Canon(name, "example.org")
	must(t, err)
	return u
}

// errAway is a backend that cannot be reached, as upstream has it.
func errAway(t testing.TB) error {
	t.Helper()
	b := upstream.New(upstream.Config{Address: deadAddress, TLSMode: upstream.NoTLS, ConnectTimeout: 50 * time.Millisecond}, upstream.Hooks{}, zap.NewNop())
	_, err := b.Login(t.Context(), upstream.Request{User: named(t, "x"), Password: identity.NewSecret("y")})
	if upstream.ResultOf(err) != upstream.ResultUnreachable {
		t.Fatal(err)
	}
	return err
}

// unavailable reports whether a name that nobody has is answered UNAVAILABLE.
func (s *sample) unavailable(t testing.TB, name string, shown credential) bool {
	t.Helper()
	group, ok := s.group(named(t, name))
	if ok {
		_, ok = s.outage(way{group, shown, 0})
	}
	return ok
}

// unavailableOf counts names that nobody has, and that are answered UNAVAILABLE.
func (s *sample) unavailableOf(t testing.TB, n int) (unavailable int) {
	t.Helper()
	for i := range n {
		if s.unavailable(t, fmt.Sprint("nobody", i), aPassword) {
			unavailable++
		}
	}
	return unavailable
}

func TestUnknownNamesAreUnavailableAsOftenAsUsers(t *testing.T) {
	s := newSample(identity.NewSecret("shared by the gateways"))
	if n := s.unavailableOf(t, 100); n != 0 {
		t.Errorf("%d of 100 where no user was seen", n)
	}
	for i := range 200 {
		s.saw(named(t, fmt.Sprint("user", i)), []string{"east", "west", "west", noBackend}[i%4])
	}
	gone := errAway(t)
	for _, step := range []struct {
		do          func()
		least, most int // of 1000
	}{
		{func() {}, 200, 300}, // a quarter is paused
		{func() { s.answered(way{"west", aPassword, 0}, gone, time.Second) }, 700, 800},
		{func() { s.answered(way{"east", aPassword, 0}, gone, time.Second) }, 1000, 1000},
		{func() { s.answered(way{"west", aPassword, 0}, nil, 0) }, 450, 550},
		{func() { s.answered(way{"east", aPassword, 0}, upstream.ErrLoop, 0) }, 450, 550},     // says nothing of east
		{func() { s.answered(way{"east", aPassword, 0}, upstream.ErrDenied, 0) }, 450, 550},   // without a verdict: no backend was asked
		{func() { s.answered(way{"west", aPassword, 0}, errors.New("other"), 0) }, 950, 1000}, // broke the protocol
	} {
		step.do()
		if n := s.unavailableOf(t, 1000); n < step.least || n > step.most {
			t.Errorf("%d of 1000, not %d to %d", n, step.least, step.most)
		}
	}
	for i := range 300 { // all who were paused have moved to east
		s.saw(named(t, fmt.Sprint("user", i)), "east")
	}
	if s.answered(way{"east", aPassword, 0}, nil, 0); s.unavailableOf(t, 1000) != 0 {
		t.Error("unavailable while every backend answers")
	}
	if len(s.at) != len(s.ring) || len(s.size) != 1 || s.size["east"] != len(s.ring) {
		t.Errorf("%d users in %v", len(s.at), s.size)
	}
}

func TestANameFallsToTheSameGroupAtEveryGatewayAndWhileSharesChange(t *testing.T) {
	secret := identity.NewSecret("shared by the gateways")
	one, two := newSample(secret), newSample(secret)
	for i := range 100 {
		one.saw(named(t, fmt.Sprint("a", i)), []string{"east", "west"}[i%2])
		two.saw(named(t, fmt.Sprint("b", i)), []string{"east", "west"}[i%2])
	}
	gone := errAway(t)
	one.answered(way{"west", aPassword, 0}, gone, time.Second)
	two.answered(way{"west", aPassword, 0}, gone, time.Second)
	before := map[string]bool{}
	for i := range 500 {
		name := fmt.Sprint("nobody", i)
		here := one.unavailable(t, name, aPassword)
		if there := two.unavailable(t, name, aPassword); here != there {
			t.Fatalf("%s is unavailable at one gateway and not at the other", name)
		}
		before[name] = here
	}
	for i := range 10 { // some users more live at west
		one.saw(named(t, fmt.Sprint("c", i)), "west")
	}
	for name, was := range before {
		if was && !one.unavailable(t, name, aPassword) {
			t.Fatalf("%s has left the group that has grown", name)
		}
	}
}

// byPause is a Redis whose users live at east, and of whom some are paused.
func byPause(t testing.TB) func(*setup) {
	t.Helper()
	store := testbed.StartRedis(t)
	for i := range 8 {
		store.CLI("HSET", fmt.Sprintf("imapgate:user:user%d@example.org", i), "backend", "east", "state", []string{"active", "paused"}[i%2])
	}
	store.CLI("HSET", "imapgate:user:blocked@example.org", "backend", "east", "state", "blocked")
	rdb, err := routing.Dial(routing.RedisConfig{Addresses: []string{store.Address}})
	must(t, err)
	t.Cleanup(func() { _ = rdb.Close() })
	return func(s *setup) {
		s.redis, s.routes.Source = rdb, routing.SourceRedis
		s.auth.Methods = []string{auth.Passthrough}
		s.cfg.Secret = identity.NewSecret("of the groups")
	}
}

// Whoever does not know the password cannot tell a paused user from nobody: both are
// UNAVAILABLE as often, and always the same.
func TestAPausedUserIsNotToldFromNobody(t *testing.T) {
	b := openBed(t, openMailbox(t).addr(), counting, byPause(t))
	for i := range 8 {
		want := []string{deniedReply, unavailableReply}[i%2]
		if got := b.guess("198.51.100.7", fmt.Sprint("user", i), "wrong"); got != want {
			t.Errorf("user%d: %s", i, got)
		}
	}
	heard := map[string]int{}
	for i := range 40 {
		address := fmt.Sprintf("203.%d.113.7", i)
		first := b.guess(address, fmt.Sprint("nobody", i), "wrong")
		if again := b.guess(address, fmt.Sprint("nobody", i), "other"); again != first {
			t.Errorf("nobody%d hears %s and %s", i, first, again)
		}
		heard[first]++
	}
	if heard[deniedReply]+heard[unavailableReply] != 40 || min(heard[deniedReply], heard[unavailableReply]) < 10 {
		t.Errorf("heard %v", heard)
	}
	b.wantRecord("login_refused", audit.UserPaused)
	b.wantRecord("login_refused", audit.NoRoute) // the operator is told the truth
	for _, r := range b.records() {
		if r.field("reason") == string(audit.UserPaused) && r.field("user")[:4] != "user" {
			t.Errorf("%v", r)
		}
	}
}

func TestAUserOfABackendThatIsDownIsNotToldFromNobody(t *testing.T) {
	b := newBed(t, openMailbox(t).addr(), counting, func(s *setup) {
		s.backends["gone"] = upstream.Config{Address: deadAddress, TLSMode: upstream.NoTLS, ConnectTimeout: 50 * time.Millisecond}
		s.limits = limit.Config{Failures: guesses()}
	})
	if got := b.guess("203.0.113.7", "nobody", "wrong"); got != deniedReply {
		t.Errorf("where nothing is down: %s", got)
	}
	for i := range 12 { // erin is the only user seen: everybody fares as she does, and nothing counts
		if got := b.guess("203.0.113.7", "erin", fmt.Sprint("guess", i)); got != unavailableReply {
			t.Fatalf("erin, try %d: %s", i, got)
		}
		if got := b.guess("203.0.113.7", "nobody", fmt.Sprint("guess", i)); got != unavailableReply {
			t.Fatalf("nobody, try %d: %s", i, got)
		}
	}
	if got := b.guess("203.0.113.7", "frank", "wrong"); got != deniedReply { // in the passwd-file
		t.Errorf("frank: %s", got)
	}
}

// The answer about nobody takes as long as the one about a user did.
func TestNobodyIsUnavailableNoSoonerThanAUser(t *testing.T) {
	const slow = 300 * time.Millisecond
	v := openVerdicts(t, func(string, string) string { return "nothing" })
	b := newBed(t, v.addr(), counting, func(s *setup) {
		s.backends["east"] = upstream.Config{Address: v.addr(), TLSMode: upstream.NoTLS, LoginTimeout: slow, AnswerTimeout: slow}
	})
	for _, user := range []string{"a", "nobody"} {
		began := time.Now()
		if got := b.guess("203.0.113.7", user, "wrong"); got != unavailableReply || time.Since(began) < slow {
			t.Errorf("%s: %s after %v", user, got, time.Since(began))
		}
	}
}
