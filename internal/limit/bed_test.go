package limit

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/zap/zaptest"

	"imapgate/internal/event"
	"imapgate/internal/identity"
	"imapgate/internal/testbed"
)

const day = 24 * time.Hour

// usual are the defaults of the gateway, with no network exempt.
func usual() Config {
	return withTimes(Config{
		Settings: Settings{Connections: Connections{
			PerUserAddress: 10, PerUser: 50, PerAddress: 100, PreauthPerAddress: 20, NewPerMinute: 60, NewBurst: 30,
		}, Failures: Failures{
			PerMinute: 10, PerDay: 50, Delay: 2 * time.Second, MaxDelay: 15 * time.Second, PerUserHour: 10, PerUserDay: 100,
			PerUserNetworkHour: 20, BanAfter: 10,
		}},
		Prefix: "imapgate:",
		wait:   testbed.Timeout,
	})
}

// wide are limits of connections that nothing here reaches.
func wide() Config {
	c := usual()
	c.Connections = Connections{}
	return c
}

// withTimes returns c with the usual durations of bans and known networks where it has none.
func withTimes(c Config) Config {
	f := &c.Failures
	f.BanWithin, f.BanDuration = cmp.Or(f.BanWithin, 10*time.Minute), cmp.Or(f.BanDuration, 10*time.Minute)
	f.MaxBanDuration, f.KnownFor = cmp.Or(f.MaxBanDuration, max(day, f.BanDuration)), cmp.Or(f.KnownFor, 30*day)
	return c
}

func newGate(t testing.TB, cfg Config, client redis.UniversalClient) *Limiter {
	t.Helper()
	g, err := New(withTimes(cfg), client, Hooks{}, zaptest.NewLogger(t))
	if err != nil {
		t.Fatal(err)
	}
	clients.Store(g, client)
	return g
}

func user(t testing.TB, name string) identity.User {
	t.Helper()
	u, err := identity.Canonicalize(name, "example.org")
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func secret(format string, args ...any) identity.Secret {
	return identity.NewSecret(fmt.Sprintf(format, args...))
}

// home returns what counts as one address.
func home(a netip.Addr) netip.Prefix { return identity.AddrPrefix(a) }

// clients has the Redis clients of limiters.
var clients sync.Map

func at(text string) netip.Addr { return netip.MustParseAddr(text) }

// arrive opens a connection that must be admitted.
func arrive(t testing.TB, g *Limiter, addr netip.Addr) *Conn {
	t.Helper()
	v, err := g.Open("imaps", addr)
	if err != nil {
		t.Fatalf("%v may not arrive: %v", addr, err)
	}
	return v
}

// logIn is a whole login that is right, and how long it had to wait.
func logIn(t testing.TB, g *Limiter, addr netip.Addr, u identity.User) (waited time.Duration, err error) {
	t.Helper()
	return attempt(t, g, addr, u, func(v *Conn) error { return v.BeginSession(t.Context(), u) })
}

// guess is a login that is wrong. It says what refused it before it was checked.
func guess(t testing.TB, g *Limiter, addr netip.Addr, u identity.User, password identity.Secret) (waited time.Duration, err error) {
	t.Helper()
	return attempt(t, g, addr, u, func(v *Conn) error {
		v.LoginFailed(t.Context(), u, password)
		return nil
	})
}

// attempt is a visit with one login, of which checked is told if nothing refuses it
// before.
func attempt(t testing.TB, g *Limiter, addr netip.Addr, u identity.User, checked func(*Conn) error) (waited time.Duration, err error) {
	t.Helper()
	v, err := g.Open("imaps", addr)
	if err != nil {
		return 0, err
	}
	defer v.Close()
	began := time.Now()
	err = v.BeginLogin(t.Context(), u)
	waited = time.Since(began)
	if err != nil {
		return waited, err
	}
	return waited, checked(v)
}

// reason returns the reason of a refusal, or "" for another error.
func reason(err error) event.Limit {
	var r *Refusal
	if errors.As(err, &r) {
		return r.Reason
	}
	return ""
}

// within says whether d is want, a fifth more or less.
func within(d, want time.Duration) bool { return d >= want*4/5 && d <= want*6/5 }
