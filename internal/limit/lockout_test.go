package limit

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"imapgate/internal/cluster"
	"imapgate/internal/event"
	"imapgate/internal/identity"
	"imapgate/internal/sanitize"
)

// usersKnownAt returns n users who have logged in from an address.
func usersKnownAt(t *testing.T, l *Limiter, n int, addr netip.Addr) []identity.User {
	t.Helper()
	all := make([]identity.User, n)
	for i := range all {
		all[i] = user(t, fmt.Sprintf("known%d", i))
		if _, err := logIn(t, l, addr, all[i]); err != nil {
			t.Fatal(err)
		}
	}
	return all
}

func TestANeighborThatTriesAllUsersIsStopped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(t, noConnLimits(), nil)
		knownAddr, verified := ip("192.0.2.7"), 0
		all := usersKnownAt(t, l, 2000, knownAddr)
		for i := range 3 * len(all) {
			if _, err := guess(t, l, ip("192.0.2.99"), all[i%len(all)], secret("%d", i)); err == nil {
				verified++
			}
		}
		if most := 10 * l.cfg.Failures.PerDay; verified > most {
			t.Errorf("%d of 6000 guesses were verified, the limit is %d", verified, most)
		}
		for _, u := range all {
			if waited, err := logIn(t, l, knownAddr, u); err != nil || waited > 0 {
				t.Fatalf("%v at a known address waited %v: %v", u, waited, err)
			}
		}
	})
}

// 100 users share an address with an attacker who knows all their names. The users log in every
// ten minutes, and the attacker guesses on five connections without a pause. Numbers and times
// are a fifth of those of 500 users and a whole day.
func TestAnAttackerAmongManyUsersIsBoundedAndHindersFew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const hours, targets = 5, 10
		cfg, nat := noConnLimits(), ip("192.0.2.7")
		cfg.Failures.PerDay /= 5
		l := newLimiter(t, cfg, nil)
		all := usersKnownAt(t, l, 100, nat)
		var verified, next, good, bad atomic.Int64
		var attacker sync.WaitGroup
		began := time.Now()
		for range 5 {
			attacker.Go(func() {
				for time.Since(began) < hours*time.Hour {
					n := next.Add(1)
					if _, err := guess(t, l, nat, all[n%targets], secret("%d", n)); err == nil {
						verified.Add(1)
					}
					time.Sleep(2 * time.Second) // the time of the denial
				}
			})
		}
		for ; time.Since(began) < hours*time.Hour; time.Sleep(10 * time.Minute) {
			for _, u := range all[targets:] {
				if waited, err := logIn(t, l, nat, u); err == nil && waited == 0 {
					good.Add(1)
				} else {
					bad.Add(1)
				}
			}
		}
		attacker.Wait()
		t.Logf("%d guesses verified, %d logins admitted at once, %d delayed or refused", verified.Load(), good.Load(), bad.Load())
		if most := int64(10*10*l.cfg.Failures.PerDay) + hours*targets*4; verified.Load() > most {
			t.Errorf("%d guesses were verified, the limit is %d", verified.Load(), most)
		}
		if bad.Load() > 0 {
			t.Errorf("%d logins of users who were not attacked were delayed or refused", bad.Load())
		}
	})
}

func TestANeighborCannotLockAUserOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(t, noConnLimits(), nil)
		victim, knownAddr := user(t, "victim"), ip("192.0.2.7")
		if _, err := logIn(t, l, knownAddr, victim); err != nil {
			t.Fatal(err)
		}
		for i := range 3 * 20 {
			_, _ = guess(t, l, ip(fmt.Sprintf("192.0.2.%d", 200+i%20)), victim, secret("%d", i))
		}
		if waited, err := logIn(t, l, knownAddr, victim); err != nil || waited > 0 {
			t.Fatalf("at a known address the victim waited %v: %v", waited, err)
		}
		if waited, err := logIn(t, l, ip("192.0.2.8"), victim); err != nil || !isAbout(waited, 15*time.Second) {
			t.Fatalf("at another address of the network the victim waited %v: %v", waited, err)
		}
	})
}

func TestAFewPhonesDoNotLockOutACarrier(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := noConnLimits()
		cfg.Failures.Delay, cfg.Failures.MaxDelay = 500*time.Millisecond, 2*time.Second // so that all guesses fit in one day
		l := newLimiter(t, cfg, nil)
		good := user(t, "good")
		if _, err := logIn(t, l, ip("2001:db8:aaaa:1::1"), good); err != nil {
			t.Fatal(err)
		}
		flood := func(net string, n int) (verified int) {
			for i := range n { // each from another /48
				if _, err := guess(t, l, ip(fmt.Sprintf("%s:%x::1", net, i)), user(t, fmt.Sprintf("tried%d", i)), secret("%v", time.Now())); err == nil {
					verified++
				}
			}
			return verified
		}
		if n := flood("2001:db8", 1000); n != 1000 {
			t.Fatalf("only %d of 1000 guesses from an active network were verified", n)
		}
		if waited, err := logIn(t, l, ip("2001:db8:aaaa:2::1"), good); err != nil || waited > 1200*time.Millisecond {
			t.Fatalf("a user at a new address of a known carrier waited %v: %v", waited, err)
		}
		if waited, err := logIn(t, l, ip("2001:db8:bbbb:2::1"), user(t, "unknown")); err != nil || !isAbout(waited, 2*time.Second) {
			t.Fatalf("a new user there waited %v: %v", waited, err)
		}
		if n := flood("2001:db9", 1000); n > 9*l.cfg.Failures.PerDay {
			t.Fatalf("%d guesses from an inactive network were verified", n)
		}
		if n := 1000 + flood("2001:db8", 4500); n > 9*10*l.cfg.Failures.PerDay {
			t.Fatalf("%d guesses from an active network were verified", n)
		}
		if waited, err := logIn(t, l, ip("2001:db8:aaaa:3::1"), good); err != nil || waited > 1200*time.Millisecond {
			t.Fatalf("after that, a user at a new address of a known carrier waited %v: %v", waited, err)
		}
	})
}

func TestLoginsInProgressCountAsFailures(t *testing.T) {
	for _, c := range []struct {
		name string
		from func(i int) netip.Addr
		who  func(i int) string
		most int
	}{
		{"at a user", func(i int) netip.Addr { return netip.AddrFrom4([4]byte{byte(20 + i%200), byte(i / 200), 1, 1}) }, func(int) string { return "victim" }, 100},
		{"from an address", func(int) netip.Addr { return ip("192.0.2.1") }, func(i int) string { return fmt.Sprint("user", i) }, 10},
		{"from an address at a user", func(int) netip.Addr { return ip("192.0.2.1") }, func(int) string { return "victim" }, 10},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLimiter(t, noConnLimits(), nil)
				if _, err := logIn(t, l, ip("198.51.100.1"), user(t, "victim")); err != nil {
					t.Fatal(err)
				}
				var verified atomic.Int64
				var all sync.WaitGroup
				for i := range 1000 {
					all.Go(func() {
						u, conn := user(t, c.who(i)), openConn(t, l, c.from(i))
						defer conn.Close()
						if conn.BeginLogin(t.Context(), u) != nil {
							return
						}
						verified.Add(1)
						time.Sleep(2 * time.Second) // the backend takes this long to answer NO
						conn.LoginFailed(t.Context(), u, secret("%d", i))
					})
				}
				all.Wait()
				if n := int(verified.Load()); n > c.most {
					t.Errorf("%d of 1000 guesses were verified, the limit is %d", n, c.most)
				}
				if n := l.history.Pending(); n != 0 {
					t.Errorf("%d logins are still in progress", n)
				}
			})
		})
	}
}

// All users of an office log in at once, none of whom is known there.
func TestABurstOfRightLoginsIsAdmitted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(t, noConnLimits(), nil)
		var all sync.WaitGroup
		for i := range 100 {
			all.Go(func() {
				u, conn := user(t, fmt.Sprint("user", i)), openConn(t, l, ip("192.0.2.1"))
				defer conn.Close()
				if err := conn.BeginLogin(t.Context(), u); err != nil {
					t.Errorf("login %d: %v", i, err)
					return
				}
				time.Sleep(100 * time.Millisecond) // the backend takes this long to answer OK
				if err := conn.BeginSession(t.Context(), u); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
	})
}

func TestACheckDoesNotCountAsALoginInProgress(t *testing.T) {
	l := newLimiter(t, noConnLimits(), nil)
	victim := user(t, "victim")
	conn := openConn(t, l, ip("192.0.2.1"))
	defer conn.Close()
	if err := conn.CheckLogin(t.Context(), victim); err != nil {
		t.Fatal(err)
	}
	if n := l.history.Pending(); n != 0 {
		t.Errorf("%d logins are in progress", n)
	}
	for i := range l.cfg.Failures.PerMinute {
		conn.LoginFailed(t.Context(), victim, secret("%d", i))
	}
	if err := conn.CheckLogin(t.Context(), victim); reason(err) != event.LimitBanned {
		t.Errorf("an address with too many failures: %v", err)
	}
}

func TestAClientGoneDuringItsLoginLeavesNoCount(t *testing.T) {
	l := newLimiter(t, noConnLimits(), nil)
	for i := range 1000 {
		conn := openConn(t, l, netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 1}))
		for range 3 { // a backend that is down, twice
			if err := conn.BeginLogin(t.Context(), user(t, fmt.Sprint("user", i%7))); err != nil {
				t.Fatal(err)
			}
		}
		conn.Close()
	}
	if n := l.history.Pending(); n != 0 {
		t.Fatalf("%d logins are still in progress", n)
	}
}

func TestARepeatedWrongPasswordIsDelayedMoreAndMore(t *testing.T) {
	l := newLimiter(t, noConnLimits(), nil)
	alice := user(t, "alice")
	for i := range 30 {
		conn := openConn(t, l, ip("192.0.2.1"))
		want := 2 * time.Second
		if i > 20 {
			want = 15 * time.Second
		}
		if d := conn.LoginFailed(t.Context(), alice, secret("old")); (i <= 10 || i > 20) && !isAbout(d, want) {
			t.Fatalf("repetition %d takes %v, want %v", i, d, want)
		}
		conn.Close()
	}
	if waited, err := logIn(t, l, ip("192.0.2.1"), alice); err != nil || waited > 3*time.Second {
		t.Fatalf("the right password waited %v: %v", waited, err)
	}
}

// An attacker uses a stolen password from a network in which the user is known because of it.
func TestAnOperatorsBanAppliesToKnownUsers(t *testing.T) {
	l := newLimiter(t, noConnLimits(), nil)
	alice, addr := user(t, "alice"), ip("192.0.2.66")
	if _, err := logIn(t, l, addr, alice); err != nil {
		t.Fatal(err)
	}
	conn := openConn(t, l, addr) // before the ban
	defer conn.Close()
	if err := l.Ban(t.Context(), addrPrefix(addr), time.Hour, ""); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Open("imaps", addr); reason(err) != event.LimitBanned {
		t.Errorf("a connection from a banned network: %v", err)
	}
	if err := conn.BeginLogin(t.Context(), alice); reason(err) != event.LimitBanned {
		t.Errorf("a login of a known user from a banned network: %v", err)
	}
}

func TestAnUnknownUserNameCountsOnce(t *testing.T) {
	l := newLimiter(t, noConnLimits(), nil)
	noUser := identity.User{}
	fail := func(addr string, presented identity.Secret) time.Duration {
		conn := openConn(t, l, ip(addr))
		defer conn.Close()
		return conn.LoginFailed(t.Context(), noUser, presented)
	}
	for i := range 50 {
		want := 2 * time.Second
		if i > 20 {
			want = 15 * time.Second
		}
		if d := fail("192.0.2.1", secret("the same")); (i <= 10 || i > 20) && !isAbout(d, want) {
			t.Fatalf("repetition %d takes %v, want %v", i, d, want)
		}
	}
	if n := l.history.Record(identity.User{}, ip("192.0.2.1")).Nets[0]; n.Ban != 1 || n.Day != 1 {
		t.Errorf("50 repetitions count as %+v", n)
	}
	for i := range 10 {
		fail("192.0.2.2", secret("%d", i)) // in the same network
	}
	if _, err := l.Open("imaps", ip("192.0.2.2")); reason(err) != event.LimitBanned {
		t.Fatalf("after 10 different ones: %v", err)
	}
	for range 10 {
		fail("203.0.113.1", identity.Secret{}) // without a password to compare
	}
	if _, err := l.Open("imaps", ip("203.0.113.1")); reason(err) != event.LimitBanned {
		t.Fatalf("after 10 without a password to compare: %v", err)
	}
}

// A wrong SCRAM proof does not reveal which password was presented.
func TestFailuresWithoutAPasswordCountForTheUserAndAFewForTheNetwork(t *testing.T) {
	c := noConnLimits()
	c.Failures.PerUserNetworkHour = 20
	l := newLimiter(t, c, nil)
	alice := user(t, "alice")
	for range 20 {
		conn := openConn(t, l, ip("192.0.2.1"))
		conn.LoginFailed(t.Context(), alice, identity.Secret{})
		conn.Close()
	}
	past := l.history.Record(alice, ip("192.0.2.1"))
	if past.Nets[0].Ban != 3 || past.UserNet != 20 || past.UserAddress != 20 || past.User.Day != 20 {
		t.Errorf("20 failures without a password count as %+v", past)
	}
	if _, err := logIn(t, l, ip("192.0.2.1"), alice); reason(err) != event.LimitPairFailures {
		t.Errorf("the user after 20 failures in the network: %v", err)
	}
	for i := range 3 {
		conn := openConn(t, l, ip("192.0.2.1"))
		for range 5 {
			conn.LoginFailed(t.Context(), user(t, fmt.Sprint("user", i)), identity.Secret{})
		}
		conn.Close()
	}
	if _, err := l.Open("imaps", ip("192.0.2.1")); reason(err) != event.LimitBanned {
		t.Errorf("an address with failures of several users: %v", err)
	}
}

func TestABanIsAnIPv4OrIPv6NetworkAsItsClientsAre(t *testing.T) {
	l := newLimiter(t, noConnLimits(), nil)
	net, err := ParseNet("::ffff:192.0.2.0/120")
	if err != nil || net != netip.MustParsePrefix("192.0.2.0/24") {
		t.Fatalf("ParseNet returns %v, %v", net, err)
	}
	if err := l.Ban(t.Context(), net, time.Hour, ""); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Open("imaps", ip("192.0.2.7")); reason(err) != event.LimitBanned {
		t.Fatalf("a connection from a banned network: %v", err)
	}
	for _, text := range []string{"0.0.0.0/0", "10.0.0.0/7", "::/0", "2000::/3"} {
		if err := l.Ban(context.Background(), netip.MustParsePrefix(text), time.Hour, ""); err == nil {
			t.Errorf("%s is banned", text)
		}
	}
}

func TestANoteIsOneLineWithoutControlCharacters(t *testing.T) {
	for note, want := range map[string]string{
		"ticket 4711": "ticket 4711", "a\nb\tc": "a b c", "a\u2028b\u2029c": "a b c",
		"a\u202eb\u2066c": "a b c", "a\u200bb\u061cc": "a b c", "schön\x80": "schön",
	} {
		if got := sanitize.Line(note, cluster.MaxNote); got != want {
			t.Errorf("%q became %q, want %q", note, got, want)
		}
	}
}
