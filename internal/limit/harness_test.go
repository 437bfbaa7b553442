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
	"imapgate/internal/testkit"
)

const day = 24 * time.Hour

// defaultConfig returns the gateway's defaults, with no exempt networks.
func defaultConfig() Config {
	return withTimes(Config{
		Settings: Settings{Connections: Connections{
			PerUserAddress: 10, PerUser: 50, PerAddress: 100, PreauthPerAddress: 20, NewPerMinute: 60, NewBurst: 30,
		}, Failures: Failures{
			PerMinute: 10, PerDay: 50, Delay: 2 * time.Second, MaxDelay: 15 * time.Second, PerUserHour: 10, PerUserDay: 100,
			PerUserNetworkHour: 20, BanAfter: 10,
		}},
		Prefix: "imapgate:",
		Wait:   testbed.Timeout,
	})
}

// noConnLimits returns the defaults without limits of connections.
func noConnLimits() Config {
	cfg := defaultConfig()
	cfg.Connections = Connections{}
	return cfg
}

// withTimes returns c with the default durations of bans and known networks where it has none.
func withTimes(c Config) Config {
	f := &c.Failures
	f.BanWithin, f.BanDuration = cmp.Or(f.BanWithin, 10*time.Minute), cmp.Or(f.BanDuration, 10*time.Minute)
	f.MaxBanDuration, f.KnownFor = cmp.Or(f.MaxBanDuration, max(day, f.BanDuration)), cmp.Or(f.KnownFor, 30*day)
	return c
}

func newLimiter(t testing.TB, cfg Config, client redis.UniversalClient) *Limiter {
	t.Helper()
	l, err := New(withTimes(cfg), client, Hooks{}, zaptest.NewLogger(t))
	if err != nil {
		t.Fatal(err)
	}
	redisClients.Store(l, client)
	return l
}

func user(t testing.TB, name string) identity.User {
	t.Helper()
	return testkit.Must(identity.Canonicalize(name, "example.org"))(t)
}

func secret(format string, args ...any) identity.Secret {
	return identity.NewSecret(fmt.Sprintf(format, args...))
}

// addrPrefix returns the network that counts as one address.
func addrPrefix(a netip.Addr) netip.Prefix { return identity.AddrPrefix(a) }

// redisClients maps a limiter to its Redis client.
var redisClients sync.Map

func ip(text string) netip.Addr { return netip.MustParseAddr(text) }

// openConn opens a connection, which must be admitted.
func openConn(t testing.TB, l *Limiter, addr netip.Addr) *Conn {
	t.Helper()
	conn, err := l.Open("imaps", addr)
	if err != nil {
		t.Fatalf("open from %v: %v", addr, err)
	}
	return conn
}

// logIn makes a login attempt that succeeds. It returns how long the attempt was delayed.
func logIn(t testing.TB, l *Limiter, addr netip.Addr, u identity.User) (waited time.Duration, err error) {
	t.Helper()
	return attempt(t, l, addr, u, func(conn *Conn) error { return conn.BeginSession(t.Context(), u) })
}

// guess makes a login attempt with a wrong password. It returns an error if the attempt was
// refused before the password was verified.
func guess(t testing.TB, l *Limiter, addr netip.Addr, u identity.User, password identity.Secret) (waited time.Duration, err error) {
	t.Helper()
	return attempt(t, l, addr, u, func(conn *Conn) error {
		conn.LoginFailed(t.Context(), u, password)
		return nil
	})
}

// attempt opens a connection, makes one login attempt and closes the connection. It calls finish,
// which ends the attempt with a verdict, unless the connection or the attempt is refused.
func attempt(t testing.TB, l *Limiter, addr netip.Addr, u identity.User, finish func(*Conn) error) (waited time.Duration, err error) {
	t.Helper()
	conn, err := l.Open("imaps", addr)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	began := time.Now()
	err = conn.BeginLogin(t.Context(), u)
	waited = time.Since(began)
	if err != nil {
		return waited, err
	}
	return waited, finish(conn)
}

// reason returns the reason of a refusal, or "" for another error.
func reason(err error) event.Limit {
	var r *Refusal
	if errors.As(err, &r) {
		return r.Reason
	}
	return ""
}

// isAbout reports whether d is want, a fifth more or less.
func isAbout(d, want time.Duration) bool { return d >= want*4/5 && d <= want*6/5 }
