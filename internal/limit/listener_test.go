package limit

import (
	"imapgate/internal/event"
	"testing"
	"testing/synctest"
	"time"
)

// twoDoors is a gate whose listener "strict" has limits of its own.
func twoDoors(t testing.TB, usual Config, strict func(*Listener)) *Limiter {
	t.Helper()
	own := usual.defaultListener()
	strict(own)
	usual.Listeners = map[string]Listener{"strict": *own}
	return newGate(t, usual, nil)
}

// through is a visit at a listener that must be let in, and out again with the test.
func through(t testing.TB, g *Limiter, listener, addr string) *Conn {
	t.Helper()
	v, err := g.Open(listener, at(addr))
	if err != nil {
		t.Fatalf("%s may not arrive at %s: %v", addr, listener, err)
	}
	t.Cleanup(v.Close)
	return v
}

func TestFailuresCountEverywhereAndCostWhatTheListenerSays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := twoDoors(t, wide(), func(l *Listener) {
			l.Failures.PerMinute, l.Failures.Delay, l.Failures.BanAfter = 3, 0, 0
		})
		usual, strict := through(t, g, "imaps", "192.0.2.1"), through(t, g, "strict", "192.0.2.1")
		for i := range 3 {
			usual.LoginFailed(t.Context(), user(t, "alice"), secret("%d", i))
		}
		if err := strict.BeginLogin(t.Context(), user(t, "bob")); reason(err) != event.LimitAddressFailures {
			t.Errorf("where three are too many: %v", err)
		}
		if err := usual.BeginLogin(t.Context(), user(t, "bob")); err != nil {
			t.Errorf("where ten are: %v", err)
		}
		for i := range 20 {
			if d := strict.LoginFailed(t.Context(), user(t, "carol"), secret("%d", i)); d != 0 {
				t.Errorf("where nothing waits a denial takes %v", d)
			}
		}
		if n := g.BanCount(); n != 0 {
			t.Error("a listener that bans nobody has banned somebody")
		}
		usual.LoginFailed(t.Context(), user(t, "alice"), secret("once more"))
		if _, err := g.Open("strict", at("192.0.2.1")); reason(err) != event.LimitBanned {
			t.Errorf("who is banned at one listener comes by the other: %v", err)
		}
	})
}

func TestListenersOfOneBudgetShareIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := wide()
		cfg.UserQuota = UserQuota{CommandsPerSecond: 10}
		cfg.Listeners = map[string]Listener{"same": *cfg.defaultListener(), "free": {}}
		g := newGate(t, cfg, nil)
		in := func(listener string) *Conn {
			v := through(t, g, listener, "192.0.2.1")
			if err := v.BeginSession(t.Context(), user(t, "alice")); err != nil {
				t.Fatal(err)
			}
			return v
		}
		usual, same, free := in("imaps"), in("same"), in("free")
		for range 20 {
			usual.Quota().Command()
		}
		if w := same.Quota().Command(); w != 100*time.Millisecond {
			t.Errorf("at a listener with the same budget the next command waits %v", w)
		}
		if b := free.Quota(); b != nil {
			t.Errorf("a listener without a budget has %+v", b)
		}
	})
}

func TestUploadsOfTheDayAreComparedWithTheListeners(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := wide()
		cfg.Listeners = map[string]Listener{"little": {UserQuota: UserQuota{AppendBytesPerDay: 1000}}, "much": {UserQuota: UserQuota{AppendBytesPerDay: 3000}}}
		g := newGate(t, cfg, nil)
		alice := user(t, "alice")
		upload := func(listener string, n int64) bool {
			v := through(t, g, listener, "192.0.2.1")
			if err := v.BeginSession(t.Context(), alice); err != nil {
				t.Fatal(err)
			}
			return v.Quota().Upload(t.Context(), n)
		}
		for i, step := range []struct {
			listener string
			n        int64
			fits     bool
		}{{"little", 600, true}, {"imaps", 500, true}, {"little", 1, false}, {"much", 1900, true}, {"much", 1, false}, {"imaps", 1, true}} {
			if fits := upload(step.listener, step.n); fits != step.fits {
				t.Errorf("step %d: %d bytes at %s: %v", i, step.n, step.listener, fits)
			}
		}
		if a, err := g.InspectUser(t.Context(), alice); err != nil || a.Uploaded != 3001 || !a.UploadsCounted || a.UploadLimit != 0 {
			t.Errorf("an operator sees %+v: %v", a, err)
		}
	})
}
