package limit

import (
	"testing"
	"testing/synctest"
	"time"

	"imapgate/internal/event"
)

// newStrictLimiter returns a limiter whose listener "strict" has its own limits, which strict
// changes from those of the others.
func newStrictLimiter(t testing.TB, normal Config, strict func(*Settings)) *Limiter {
	t.Helper()
	own := normal.Settings
	strict(&own)
	normal.Listeners = map[string]Settings{"strict": own}
	return newLimiter(t, normal, nil)
}

// openConnAt opens a connection at a listener, which must be admitted. It closes with the test.
func openConnAt(t testing.TB, l *Limiter, listener, addr string) *Conn {
	t.Helper()
	conn, err := l.Open(listener, ip(addr))
	if err != nil {
		t.Fatalf("open from %s at %s: %v", addr, listener, err)
	}
	t.Cleanup(conn.Close)
	return conn
}

func TestFailuresAreComparedWithTheListenersLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newStrictLimiter(t, noConnLimits(), func(s *Settings) {
			s.Failures.PerMinute, s.Failures.Delay, s.Failures.BanAfter = 3, 0, 0
		})
		normal, strict := openConnAt(t, l, "imaps", "192.0.2.1"), openConnAt(t, l, "strict", "192.0.2.1")
		for i := range 3 {
			normal.LoginFailed(t.Context(), user(t, "alice"), secret("%d", i))
		}
		if err := strict.BeginLogin(t.Context(), user(t, "bob")); reason(err) != event.LimitAddressFailures {
			t.Errorf("three failures at a listener with a limit of three: %v", err)
		}
		if err := normal.BeginLogin(t.Context(), user(t, "bob")); err != nil {
			t.Errorf("three failures at a listener with a limit of ten: %v", err)
		}
		for i := range 20 {
			if d := strict.LoginFailed(t.Context(), user(t, "carol"), secret("%d", i)); d != 0 {
				t.Errorf("a denial at a listener without delays takes %v", d)
			}
		}
		if n := l.BanCount(); n != 0 {
			t.Error("a listener without bans has banned a network")
		}
		normal.LoginFailed(t.Context(), user(t, "alice"), secret("once more"))
		if _, err := l.Open("strict", ip("192.0.2.1")); reason(err) != event.LimitBanned {
			t.Errorf("a banned address at another listener: %v", err)
		}
	})
}

func TestListenersWithTheSameQuotaShareIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := noConnLimits()
		cfg.UserQuota = Quotas{CommandsPerSecond: 10}
		cfg.Listeners = map[string]Settings{"same": cfg.Settings, "free": {}}
		l := newLimiter(t, cfg, nil)
		begin := func(listener string) *Conn {
			conn := openConnAt(t, l, listener, "192.0.2.1")
			if err := conn.BeginSession(t.Context(), user(t, "alice")); err != nil {
				t.Fatal(err)
			}
			return conn
		}
		normal, same, free := begin("imaps"), begin("same"), begin("free")
		for range 20 {
			normal.Quota().Command()
		}
		if w := same.Quota().Command(); w != 100*time.Millisecond {
			t.Errorf("at a listener with the same quota the next command waits %v", w)
		}
		if q := free.Quota(); q != nil {
			t.Errorf("a listener without a quota has %+v", q)
		}
	})
}

func TestUploadsAreComparedWithTheListenersLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := noConnLimits()
		cfg.Listeners = map[string]Settings{"small": {UserQuota: Quotas{AppendBytesPerDay: 1000}}, "large": {UserQuota: Quotas{AppendBytesPerDay: 3000}}}
		l := newLimiter(t, cfg, nil)
		alice := user(t, "alice")
		upload := func(listener string, n int64) bool {
			conn := openConnAt(t, l, listener, "192.0.2.1")
			if err := conn.BeginSession(t.Context(), alice); err != nil {
				t.Fatal(err)
			}
			return conn.Quota().Upload(t.Context(), n)
		}
		for i, step := range []struct {
			listener string
			n        int64
			fits     bool
		}{{"small", 600, true}, {"imaps", 500, true}, {"small", 1, false}, {"large", 1900, true}, {"large", 1, false}, {"imaps", 1, true}} {
			if fits := upload(step.listener, step.n); fits != step.fits {
				t.Errorf("step %d: upload of %d bytes at %s: %v", i, step.n, step.listener, fits)
			}
		}
		if a, err := l.InspectUser(t.Context(), alice); err != nil || a.Uploaded != 3001 || !a.UploadsCounted || a.UploadLimit != 0 {
			t.Errorf("the status is %+v: %v", a, err)
		}
	})
}
