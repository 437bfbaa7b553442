package upstream

import (
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"imapgate/internal/event"
	"imapgate/internal/testkit"
)

// start is the time at which the tests of circuits begin.
var start = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// after returns a time that many seconds after start.
func after(seconds float64) time.Time {
	return start.Add(time.Duration(seconds * float64(time.Second)))
}

// openCircuit returns a circuit that has opened at start, and its settings.
func openCircuit(t *testing.T) (*circuit, *BreakerSettings) {
	t.Helper()
	c, s := new(circuit), &BreakerSettings{Failures: 3, Within: 10 * time.Second, Hold: 5 * time.Second}
	for i := range 3 {
		if opened := c.recordFailure(loginFailure{at: start}, s, "a test"); opened != (i == 2) {
			t.Fatalf("failure %d: opened %v", i, opened)
		}
	}
	return c, s
}

func TestFailuresOpenACircuit(t *testing.T) {
	alice, bob, carol := user(t, "alice"), user(t, "bob"), user(t, "carol")
	for what, c := range map[string]struct {
		failures []loginFailure // a success if at is zero
		want     bool
	}{
		"two":                           {[]loginFailure{{at: after(0)}, {at: after(1)}}, false},
		"three":                         {[]loginFailure{{at: after(0)}, {at: after(1)}, {at: after(2)}}, true},
		"three over too long a time":    {[]loginFailure{{at: after(0)}, {at: after(1)}, {at: after(11)}}, false},
		"the latest three are near":     {[]loginFailure{{at: after(0)}, {at: after(9)}, {at: after(11)}, {at: after(12)}}, true},
		"a success between":             {[]loginFailure{{at: after(0)}, {at: after(1)}, {}, {at: after(2)}}, false},
		"of one user, after the login":  {[]loginFailure{{after(0), alice}, {after(1), alice}, {after(2), alice}, {after(3), alice}}, false},
		"of three users":                {[]loginFailure{{after(0), alice}, {after(1), bob}, {after(2), carol}}, true},
		"of two, one of them twice":     {[]loginFailure{{after(0), alice}, {after(1), bob}, {after(2), alice}}, false},
		"one user, and no connection":   {[]loginFailure{{after(0), alice}, {at: after(1)}, {after(2), alice}, {at: after(3)}}, true},
		"one user's failure is renewed": {[]loginFailure{{after(0), alice}, {after(9), alice}, {at: after(12)}, {at: after(13)}}, true},
	} {
		var circuit circuit
		s := &BreakerSettings{Failures: 3, Within: 10 * time.Second, Hold: 5 * time.Second}
		for _, f := range c.failures {
			if f.at.IsZero() {
				circuit.recordSuccess()
				continue
			}
			circuit.recordFailure(f, s, "a test")
		}
		if circuit.open != c.want {
			t.Errorf("%s: open %v", what, circuit.open)
		}
	}
}

func TestAProbeIsDueAfterTheHoldTime(t *testing.T) {
	c, s := openCircuit(t)
	if c.mayProbe(after(4.9), false) || !c.mayProbe(after(5), false) {
		t.Error("the hold time does not count")
	}
	c.probing = true
	if c.mayProbe(after(6), false) {
		t.Error("two probes at a time")
	}
	c.recordFailure(loginFailure{at: after(6)}, s, "again")
	c.probing = false
	if c.mayProbe(after(10.9), false) || !c.mayProbe(after(11), false) {
		t.Error("after a failed probe, the hold time does not count")
	}
	if c.recordSuccess(); c.open || c.mayProbe(after(20), false) {
		t.Error("a success does not close the circuit")
	}
}

func TestAHealthCheckPermitsAProbe(t *testing.T) {
	c, s := openCircuit(t)
	if wait, ok := c.untilCheck(after(1)); wait != 4*time.Second || !ok {
		t.Errorf("the next check is due in %v, %v", wait, ok)
	}
	if c.mayProbe(after(6), true) {
		t.Error("a probe before any check")
	}
	c.recordCheck(after(6), s, true, false)
	if !c.mayProbe(after(6), true) {
		t.Error("no probe after a check")
	}
	if _, ok := c.untilCheck(after(6)); ok {
		t.Error("another check is wanted")
	}
	c.recordCheck(after(7), s, false, false)
	if c.mayProbe(after(7), true) {
		t.Error("a probe after a failed check")
	}
	c.recordCheck(after(8), s, true, false)
	c.recordFailure(loginFailure{at: after(9)}, s, "the probe")
	if c.mayProbe(after(15), true) {
		t.Error("a probe failed, and the check before it still counts")
	}
}

func TestAHealthCheckClosesACircuit(t *testing.T) {
	for what, c := range map[string]struct {
		at      float64
		isLogin bool
		probing bool
		open    bool
	}{
		"a login, within the hold time":    {4, true, false, true},
		"a login, after it":                {5, true, false, false},
		"a login, during a probe":          {6, true, true, true},
		"a greeting, soon after a failure": {9, false, false, true},
		"a greeting, long after it":        {10.1, false, false, false},
	} {
		circuit, s := openCircuit(t)
		circuit.probing = c.probing
		if circuit.recordCheck(after(c.at), s, true, c.isLogin); circuit.open != c.open {
			t.Errorf("%s: open %v", what, circuit.open)
		}
	}
}

// One login at a time tries an address whose circuit is open; all others go elsewhere at once.
func TestOneLoginAtATimeIsTheProbe(t *testing.T) {
	t.Parallel()
	first, other := testkit.StartIMAP(t, func(c *testkit.Conn) { _, _ = c.R.ReadByte() }), testkit.StartIMAP(t, serveLogins) // the first is silent
	b := newSeveral(t, withoutTimeouts, first.Addr(), other.Addr())
	a := b.list()[0]
	a.mu.Lock()
	a.circuit.open, a.circuit.probeAt = true, time.Now()
	a.mu.Unlock()
	var logins sync.WaitGroup
	for range 20 {
		logins.Go(func() {
			if at, err := logInAt(t, b, "joe"); err != nil || at != other.Addr() {
				t.Errorf("at %q, %v", at, err)
			}
		})
	}
	logins.Wait()
	if n := first.Accepted(); n != 1 || a.circuit.probing {
		t.Errorf("%d logins were the probe; one still is: %v", n, a.circuit.probing)
	}
}

// A login that goes to another address anyway leaves the probe to one that does not.
func TestALoginThatGoesElsewhereIsNoProbe(t *testing.T) {
	t.Parallel()
	better, worse := testkit.StartIMAP(t, serveLogins), testkit.StartIMAP(t, serveLogins)
	b := newSeveral(t, nil, better.Addr(), worse.Addr())
	a := b.list()[1]
	a.mu.Lock()
	a.circuit.open, a.circuit.probeAt = true, start
	a.mu.Unlock()
	if at, err := logInAt(t, b, "joe"); err != nil || at != better.Addr() {
		t.Errorf("at %q, %v", at, err)
	}
	if _, mayProbe := a.state(time.Now()); !mayProbe {
		t.Error("the probe is used up")
	}
}

// A client can make logins of its own user fail, but not mark an address down.
func TestOneUsersFailuresOpenNoCircuit(t *testing.T) {
	t.Parallel()
	bad := testkit.StartIMAP(t, func(c *testkit.Conn) { _, _ = c.ReadLogin() }) // closes after the credentials
	b := newSeveral(t, nil, bad.Addr(), testkit.StartIMAP(t, serveLogins).Addr())
	for range 2 * b.cfg().Breaker.Failures {
		if at, err := logInAt(t, b, "mallory"); !errors.Is(err, ErrUnavailable) {
			t.Errorf("at %q, %v", at, err)
		}
	}
	if s := b.Addresses()[0]; s.State != event.AddressUp {
		t.Errorf("%+v", s)
	}
	for _, name := range []string{"alice", "bob", "carol", "dave"} {
		if _, err := logInAt(t, b, name); err == nil {
			t.Error("accepted")
		}
	}
	if s := b.Addresses()[0]; s.State != event.AddressDown {
		t.Errorf("five users in a row: %+v", s)
	}
}

// Each address that is left gets a share of the time, so that all can be tried.
func TestAnAttemptLeavesTimeForTheOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, c := range []struct {
			left, most time.Duration
			others     int
			want       time.Duration
		}{
			{30 * time.Second, time.Second, 1, time.Second},
			{30 * time.Second, time.Second, 0, 30 * time.Second},
			{time.Second, time.Second, 1, time.Second / 2},
			{30 * time.Second, 3 * time.Second, 19, 1500 * time.Millisecond},
		} {
			a := attempt{deadline: time.Now().Add(c.left), others: c.others}
			if got := time.Until(a.bound(c.most)); got != c.want {
				t.Errorf("%v left, %d others: %v", c.left, c.others, got)
			}
		}
	})
}
