package limit

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"imapgate/internal/event"
	"imapgate/internal/identity"
	"imapgate/internal/limit/ban"
)

func TestDelaysGrowAndTheAddressIsBanned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(t, noConnLimits(), nil)
		alice, addr := user(t, "alice"), ip("192.0.2.1")
		for i, want := range []time.Duration{0, 2, 4, 8, 15, 15, 15, 15, 15, 15} {
			waited, err := guess(t, l, addr, alice, secret("wrong %d", i))
			if err != nil || !isAbout(waited, want*time.Second) {
				t.Fatalf("guess %d waited %v, want %v s: %v", i, waited, want, err)
			}
		}
		if _, err := l.Open("imaps", addr); reason(err) != event.LimitBanned {
			t.Fatalf("after 10 failures: %v", err)
		}
		if _, err := logIn(t, l, ip("192.0.2.2"), user(t, "bob")); err != nil {
			t.Fatalf("another address: %v", err)
		}
		time.Sleep(10*time.Minute + time.Second)
		if _, err := l.Open("imaps", addr); err != nil {
			t.Fatalf("after the end of the ban: %v", err)
		}
	})
}

func TestADenialTakesTwoSeconds(t *testing.T) {
	l := newLimiter(t, noConnLimits(), nil)
	for i := range 100 {
		conn := openConn(t, l, ip(fmt.Sprintf("192.0.2.%d", i)))
		if d := conn.LoginFailed(t.Context(), user(t, "alice"), secret("%d", i)); !isAbout(d, 2*time.Second) {
			t.Fatalf("failure %d takes %v", i, d)
		}
		conn.Close()
	}
}

func TestADelayEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(t, noConnLimits(), nil)
		alice, addr := user(t, "alice"), ip("192.0.2.1")
		for i := range 4 {
			if _, err := guess(t, l, addr, alice, secret("%d", i)); err != nil {
				t.Fatal(err)
			}
		}
		conn := openConn(t, l, addr)
		defer conn.Close()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := conn.BeginLogin(ctx, alice); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("a login whose context ended during its delay: %v", err)
		}
	})
}

func TestTheSameWrongPasswordCountsOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(t, noConnLimits(), nil)
		alice, addr := user(t, "alice"), ip("192.0.2.1")
		for range 500 { // a phone repeats the old password
			if _, err := guess(t, l, addr, alice, secret("old")); err != nil {
				t.Fatal(err)
			}
		}
		if n := l.history.Record(alice, addr); n.Nets[0].Day != 1 || n.UserNet != 1 {
			t.Fatalf("500 failures with one password counted as %+v", n)
		}
		for range 5 { // a mechanism without a password: no repetition can be recognized
			if _, err := guess(t, l, addr, alice, identity.Secret{}); err != nil {
				t.Fatal(err)
			}
		}
		if n := l.history.Record(alice, addr); n.Nets[0].Day != 4 || n.UserNet != 6 {
			t.Fatalf("failures without a password: %+v", n)
		}
	})
}

func TestEightBannedNeighborsBanTheirNetwork(t *testing.T) {
	l := newLimiter(t, noConnLimits(), nil)
	for i := range ban.ManyNeighbors {
		if _, ok := l.bans.Find(ip("2001:db8:1:ffff::1")); ok {
			t.Fatalf("the /48 is banned after %d of its networks", i)
		}
		l.ban(t.Context(), netip.MustParsePrefix(fmt.Sprintf("2001:db8:1:%x::/64", i)), event.BanFailures)
	}
	b, ok := l.bans.Find(ip("2001:db8:1:ffff::1"))
	if !ok || b.Net.Bits() != 48 || b.Reason != event.BanNeighbors {
		t.Fatalf("after %d banned networks: %+v", ban.ManyNeighbors, b)
	}
	if _, ok := l.bans.Find(ip("2001:db8:2::1")); ok {
		t.Fatal("the next /48 is banned too")
	}
}

// An attacker guesses the password of one user from many networks, and exceeds the limits of
// none of them.
func TestAUserUnderAttackLogsInFromAKnownNetworkAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(t, noConnLimits(), nil)
		victim, knownAddr, unknownAddr := user(t, "victim"), ip("198.51.100.7"), ip("203.0.113.9")
		if _, err := logIn(t, l, knownAddr, victim); err != nil {
			t.Fatal(err)
		}
		refused := 0
		for i := range 1000 {
			_, err := guess(t, l, netip.AddrFrom4([4]byte{10, byte(i / 4), byte(i % 4 * 64), 1}), victim, secret("%d", i))
			if reason(err) == event.LimitUserFailures {
				refused++
			}
		}
		if refused < 850 {
			t.Errorf("only %d of 1000 guesses were refused before they were verified", refused)
		}
		for range 20 {
			if waited, err := logIn(t, l, knownAddr, victim); err != nil || waited > 0 {
				t.Fatalf("the victim at a known address waited %v: %v", waited, err)
			}
		}
		if waited, err := logIn(t, l, ip("198.51.100.200"), victim); err != nil || waited > 0 {
			t.Fatalf("the victim at a new address in a known network waited %v: %v", waited, err)
		}
		if _, err := logIn(t, l, unknownAddr, victim); reason(err) != event.LimitUserFailures {
			t.Fatalf("the victim in an unknown network: %v", err)
		}
		time.Sleep(2 * day)
		if waited, err := logIn(t, l, unknownAddr, victim); err != nil || waited > 0 {
			t.Fatalf("two days later, in an unknown network, the victim waited %v: %v", waited, err)
		}
	})
}

func TestAUserUnderAttackIsDelayedInUnknownNetworks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(t, noConnLimits(), nil)
		victim := user(t, "victim")
		for i := range 12 {
			if _, err := guess(t, l, netip.AddrFrom4([4]byte{10, byte(i), 0, 1}), victim, secret("%d", i)); err != nil {
				t.Fatal(err)
			}
		}
		if waited, err := logIn(t, l, ip("203.0.113.9"), victim); err != nil || !isAbout(waited, 4*time.Second) {
			t.Fatalf("in an unknown network the victim waited %v: %v", waited, err)
		}
		// After a login with the right password its failures delay the user no more.
		if waited, err := logIn(t, l, ip("203.0.114.9"), victim); err != nil || waited > 0 {
			t.Fatalf("in another unknown network the victim then waited %v: %v", waited, err)
		}
	})
}

func TestFiveHundredUsersShareAnAddressWithAnAttacker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(t, noConnLimits(), nil)
		nat := ip("192.0.2.1")
		users := make([]identity.User, 500)
		for i := range users {
			users[i] = user(t, fmt.Sprintf("good%d", i))
			if _, err := logIn(t, l, nat, users[i]); err != nil {
				t.Fatal(err)
			}
		}
		good, refused := 0, 0
		for i := range 2000 {
			if _, err := guess(t, l, nat, user(t, fmt.Sprintf("tried%d", i)), secret("%d", i)); err != nil {
				refused++
			}
			if waited, err := logIn(t, l, nat, users[i%500]); err == nil && waited == 0 {
				good++
			}
		}
		if good < 1980 || refused < 1900 {
			t.Fatalf("%d of 2000 good logins succeeded at once, %d of 2000 guesses were refused", good, refused)
		}
	})
}

func TestAnAttackerAtAUsersAddressIsStopped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(t, noConnLimits(), nil)
		victim, nat := user(t, "victim"), ip("192.0.2.1")
		if _, err := logIn(t, l, nat, victim); err != nil {
			t.Fatal(err)
		}
		verified := 0
		for began := time.Now(); time.Since(began) < day; time.Sleep(time.Minute) {
			if _, err := guess(t, l, nat, victim, secret("%v", time.Now())); err == nil {
				verified++
			}
		}
		if verified > 25*20 {
			t.Fatalf("%d guesses were verified in a day", verified)
		}
		if waited, err := logIn(t, l, ip("198.51.100.1"), victim); err != nil || waited > 15*6/5*time.Second {
			t.Fatalf("at another address the victim waited %v: %v", waited, err)
		}
	})
}

// guessFromManyNetworks makes guesses at a user, each from its own network. It returns the
// least delay of the last ten, and how many were refused.
func guessFromManyNetworks(t *testing.T, l *Limiter, victim identity.User, guesses int) (least time.Duration, refused int) {
	t.Helper()
	least = time.Hour
	for i := range guesses {
		waited, err := guess(t, l, netip.AddrFrom4([4]byte{byte(20 + i/250), byte(i % 250), 0, 1}), victim, secret("%v", time.Now()))
		switch {
		case reason(err) == event.LimitUserFailures:
			refused++
		case err != nil:
			t.Fatalf("guess %d: %v", i, err)
		case i >= guesses-10:
			least = min(least, waited)
		}
	}
	return least, refused
}

// After a gateway starts without data, or Redis has lost its data, users have no known networks.
// Guesses of others may not lock a user out everywhere then.
func TestAUserWithoutAKnownNetworkIsOnlyDelayed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(t, defaultConfig(), nil)
		victim, knownAddr := user(t, "victim"), ip("198.51.100.7")
		least, refused := guessFromManyNetworks(t, l, victim, 500)
		if longest := l.cfg.Failures.MaxDelay; refused > 0 || !isAbout(least, longest) {
			t.Errorf("%d of 500 guesses were refused, and the last ones waited %v, want %v", refused, least, longest)
		}
		time.Sleep(3 * time.Hour) // the failures of the hour have expired, those of the day have not
		if waited, err := logIn(t, l, knownAddr, victim); err != nil || !isAbout(waited, l.cfg.Failures.MaxDelay) {
			t.Fatalf("the victim waited %v: %v", waited, err)
		}
		if waited, err := logIn(t, l, knownAddr, victim); err != nil || waited > 0 {
			t.Fatalf("in the network known by now the victim waited %v: %v", waited, err)
		}
		least, refused = guessFromManyNetworks(t, l, victim, 500)
		if refused != 400 {
			t.Errorf("with a known network %d of 500 guesses were refused (least delay %v), want 400", refused, least)
		}
		if waited, err := logIn(t, l, knownAddr, victim); err != nil || waited > 0 {
			t.Fatalf("at a known address the victim waited %v: %v", waited, err)
		}
	})
}

func TestAddressIsRefusedForAllUsers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(t, defaultConfig(), nil)
		verified := 0
		for i := range 200 {
			if _, err := guess(t, l, ip("203.0.113.9"), user(t, "victim"), secret("%d", i)); err == nil {
				verified++
			}
		}
		if verified > l.cfg.Failures.BanAfter {
			t.Errorf("%d guesses from one address were verified", verified)
		}
	})
}

// Spraying is suspected, and the user has no known network. The longer of the two delays
// applies, not their sum, and the login is not refused.
func TestASprayDoesNotLengthenTheDelayOfAUserWithoutAKnownNetwork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(t, noConnLimits(), nil)
		victim := user(t, "victim")
		if _, refused := guessFromManyNetworks(t, l, victim, 200); refused > 0 {
			t.Fatalf("%d guesses were refused", refused)
		}
		for i := range 50 { // at once: none of them is delayed
			_, _ = guess(t, l, netip.AddrFrom4([4]byte{60, byte(i), 0, 1}), user(t, fmt.Sprint("user", i)), secret("Summer2024"))
		}
		if !l.history.Record(victim, ip("198.51.100.7")).Spray {
			t.Fatal("spraying is not suspected")
		}
		if waited, err := logIn(t, l, ip("198.51.100.7"), victim); err != nil || !isAbout(waited, l.cfg.Failures.MaxDelay) {
			t.Fatalf("the victim waited %v: %v", waited, err)
		}
	})
}

func TestOneNetworkThatTriesAllUsersIsStopped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(t, defaultConfig(), nil)
		verified := 0
		for i := range 10000 {
			if _, err := guess(t, l, ip("2001:db8::1"), user(t, fmt.Sprintf("user%d", i)), secret("Summer2024")); err == nil {
				verified++
			}
			time.Sleep(10 * time.Millisecond)
		}
		if verified > 20 {
			t.Fatalf("%d guesses were verified", verified)
		}
	})
}

func TestANetworkThatTriesManyUsersIsReported(t *testing.T) {
	var reports []Spray
	l, err := New(noConnLimits(), nil, Hooks{OnSpray: func(s Spray) { reports = append(reports, s) }}, newLimiter(t, noConnLimits(), nil).log)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 60 { // five from each address, none of which is banned
		conn := openConn(t, l, netip.AddrFrom4([4]byte{192, 0, 2, byte(1 + i/5)}))
		conn.LoginFailed(t.Context(), user(t, fmt.Sprintf("user%d", i)), secret("Summer2024"))
		conn.Close()
	}
	if len(reports) == 0 || reports[0].Net != netip.MustParsePrefix("192.0.2.0/26") || reports[0].Users < 30 || reports[0].Users > 40 {
		t.Fatalf("the reports are %+v", reports)
	}
}

func TestSprayingFromAThousandNetworksIsReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var reports []Spray
		l, err := New(noConnLimits(), nil, Hooks{OnSpray: func(s Spray) { reports = append(reports, s) }}, newLimiter(t, noConnLimits(), nil).log)
		if err != nil {
			t.Fatal(err)
		}
		knownAddr := ip("198.51.100.1")
		for i := range 1800 { // half an hour with few failures
			if _, err := logIn(t, l, knownAddr, user(t, fmt.Sprintf("good%d", i%300))); err != nil {
				t.Fatal(err)
			}
			if i%100 == 0 {
				_, _ = guess(t, l, ip("203.0.113.1"), user(t, "clumsy"), secret("%d", i))
			}
			time.Sleep(time.Second)
		}
		if len(reports) != 0 {
			t.Fatalf("few failures are reported as %+v", reports)
		}
		from := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{byte(20 + i%200), byte(i % 1000 / 200), 0, 1}) }
		for i := range 1000 {
			_, _ = guess(t, l, from(i), user(t, fmt.Sprintf("tried%d", i)), secret("Summer2024"))
			if len(reports) > 0 && i > 10 {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		if len(reports) != 1 || !reports[0].Suspected {
			t.Fatalf("the reports are %+v", reports)
		}
		if waited, err := logIn(t, l, ip("192.0.2.77"), user(t, "unknown")); err != nil || !isAbout(waited, 4*time.Second) {
			t.Fatalf("in an unknown network a user waited %v: %v", waited, err)
		}
		if waited, err := logIn(t, l, knownAddr, user(t, "good1")); err != nil || waited > 0 {
			t.Fatalf("in a known network a user waited %v: %v", waited, err)
		}
		if waited, err := logIn(t, l, knownAddr, user(t, "colleague")); err != nil || waited > 0 {
			t.Fatalf("in an active network a new user waited %v: %v", waited, err)
		}
		time.Sleep(20 * time.Minute)
		if _, err := logIn(t, l, knownAddr, user(t, "good1")); err != nil {
			t.Fatal(err)
		}
		if len(reports) != 2 || reports[1].Suspected {
			t.Fatalf("after the end of the spraying the reports are %+v", reports)
		}
	})
}

func TestBannedNetworkAdmitsItsUsers(t *testing.T) {
	l := newLimiter(t, noConnLimits(), nil)
	alice, addr := user(t, "alice"), ip("192.0.2.1")
	if _, err := logIn(t, l, addr, alice); err != nil {
		t.Fatal(err)
	}
	l.ban(t.Context(), addrPrefix(addr), event.BanFailures)
	conn := openConn(t, l, addr)
	defer conn.Close()
	if err := conn.BeginLogin(t.Context(), user(t, "bob")); reason(err) != event.LimitBanned {
		t.Fatalf("a user who is not known there: %v", err)
	}
	if err := conn.BeginLogin(t.Context(), alice); err != nil {
		t.Fatalf("a user who is known there: %v", err)
	}
}

func TestUncountedDenialTakesAsLongAsOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(t, noConnLimits(), nil)
		u, addr := user(t, "blocked"), ip("203.0.113.7")
		for range 30 {
			_, err := attempt(t, l, addr, u, func(conn *Conn) error {
				if least := conn.LoginDenied(); !isAbout(least, l.cfg.Failures.Delay) {
					t.Errorf("the denial takes %v", least)
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
		}
	})
}
