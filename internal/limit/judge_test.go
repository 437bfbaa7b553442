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
		g := newGate(t, wide(), nil)
		alice, addr := user(t, "alice"), at("192.0.2.1")
		for i, want := range []time.Duration{0, 2, 4, 8, 15, 15, 15, 15, 15, 15} {
			waited, err := guess(t, g, addr, alice, secret("wrong %d", i))
			if err != nil || !within(waited, want*time.Second) {
				t.Fatalf("guess %d waited %v, want %v s: %v", i, waited, want, err)
			}
		}
		if _, err := g.Open("imaps", addr); reason(err) != event.LimitBanned {
			t.Fatalf("behind 10 failures: %v", err)
		}
		if _, err := logIn(t, g, at("192.0.2.2"), user(t, "bob")); err != nil {
			t.Fatalf("another address: %v", err)
		}
		time.Sleep(10*time.Minute + time.Second)
		if _, err := g.Open("imaps", addr); err != nil {
			t.Fatalf("behind the ban: %v", err)
		}
	})
}

func TestADenialTakesTwoSeconds(t *testing.T) {
	g := newGate(t, wide(), nil)
	for i := range 100 {
		v := arrive(t, g, at(fmt.Sprintf("192.0.2.%d", i)))
		if d := v.LoginFailed(t.Context(), user(t, "alice"), secret("%d", i)); !within(d, 2*time.Second) {
			t.Fatalf("failure %d takes %v", i, d)
		}
		v.Close()
	}
}

func TestAWaitEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(t, wide(), nil)
		alice, addr := user(t, "alice"), at("192.0.2.1")
		for i := range 4 {
			if _, err := guess(t, g, addr, alice, secret("%d", i)); err != nil {
				t.Fatal(err)
			}
		}
		v := arrive(t, g, addr)
		defer v.Close()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := v.BeginLogin(ctx, alice); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("got %v", err)
		}
	})
}

func TestTheSameWrongPasswordCountsOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(t, wide(), nil)
		alice, addr := user(t, "alice"), at("192.0.2.1")
		for range 500 { // a phone with the old password
			if _, err := guess(t, g, addr, alice, secret("old")); err != nil {
				t.Fatal(err)
			}
		}
		if n := g.history.Record(alice, addr); n.Nets[0].Day != 1 || n.UserNet != 1 {
			t.Fatalf("500 failures with one password counted as %+v", n)
		}
		for range 5 { // a mechanism without a password has nothing to recognise
			if _, err := guess(t, g, addr, alice, identity.Secret{}); err != nil {
				t.Fatal(err)
			}
		}
		if n := g.history.Record(alice, addr); n.Nets[0].Day != 4 || n.UserNet != 6 {
			t.Fatalf("failures without a password: %+v", n)
		}
	})
}

func TestEightBannedNeighborsAreOneNetwork(t *testing.T) {
	g := newGate(t, wide(), nil)
	for i := range ban.ManyNeighbors {
		if _, ok := g.bans.Find(at("2001:db8:1:ffff::1")); ok {
			t.Fatalf("the /48 is banned behind %d of its networks", i)
		}
		g.ban(t.Context(), netip.MustParsePrefix(fmt.Sprintf("2001:db8:1:%x::/64", i)), event.BanFailures)
	}
	b, ok := g.bans.Find(at("2001:db8:1:ffff::1"))
	if !ok || b.Net.Bits() != 48 || b.Reason != event.BanNeighbors {
		t.Fatalf("behind %d banned networks: %+v", ban.ManyNeighbors, b)
	}
	if _, ok := g.bans.Find(at("2001:db8:2::1")); ok {
		t.Fatal("the next /48 is banned too")
	}
}

// From many networks, each below its own limits, an attacker guesses one user's
// password.
func TestAVictimLogsInFromHomeAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(t, wide(), nil)
		victim, home, hotel := user(t, "victim"), at("198.51.100.7"), at("203.0.113.9")
		if _, err := logIn(t, g, home, victim); err != nil {
			t.Fatal(err)
		}
		refused := 0
		for i := range 1000 {
			_, err := guess(t, g, netip.AddrFrom4([4]byte{10, byte(i / 4), byte(i % 4 * 64), 1}), victim, secret("%d", i))
			if reason(err) == event.LimitUserFailures {
				refused++
			}
		}
		if refused < 850 {
			t.Errorf("only %d of 1000 guesses were not even checked", refused)
		}
		for range 20 {
			if waited, err := logIn(t, g, home, victim); err != nil || waited > 0 {
				t.Fatalf("the victim at home waited %v: %v", waited, err)
			}
		}
		if waited, err := logIn(t, g, at("198.51.100.200"), victim); err != nil || waited > 0 {
			t.Fatalf("the victim with a new address at home waited %v: %v", waited, err)
		}
		if _, err := logIn(t, g, hotel, victim); reason(err) != event.LimitUserFailures {
			t.Fatalf("from where nobody knows it: %v", err)
		}
		time.Sleep(2 * day)
		if waited, err := logIn(t, g, hotel, victim); err != nil || waited > 0 {
			t.Fatalf("two days later, abroad, it waited %v: %v", waited, err)
		}
	})
}

func TestAUserUnderAttackIsDelayedAbroad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(t, wide(), nil)
		victim := user(t, "victim")
		for i := range 12 {
			if _, err := guess(t, g, netip.AddrFrom4([4]byte{10, byte(i), 0, 1}), victim, secret("%d", i)); err != nil {
				t.Fatal(err)
			}
		}
		if waited, err := logIn(t, g, at("203.0.113.9"), victim); err != nil || !within(waited, 4*time.Second) {
			t.Fatalf("abroad it waited %v: %v", waited, err)
		}
		// The right password from a new place is the person itself.
		if waited, err := logIn(t, g, at("203.0.114.9"), victim); err != nil || waited > 0 {
			t.Fatalf("then it waited %v: %v", waited, err)
		}
	})
}

func TestFiveHundredShareAnAddressWithOneThief(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(t, wide(), nil)
		nat := at("192.0.2.1")
		people := make([]identity.User, 500)
		for i := range people {
			people[i] = user(t, fmt.Sprintf("good%d", i))
			if _, err := logIn(t, g, nat, people[i]); err != nil {
				t.Fatal(err)
			}
		}
		good, stopped := 0, 0
		for i := range 2000 {
			if _, err := guess(t, g, nat, user(t, fmt.Sprintf("thief%d", i)), secret("%d", i)); err != nil {
				stopped++
			}
			if waited, err := logIn(t, g, nat, people[i%500]); err == nil && waited == 0 {
				good++
			}
		}
		if good < 1980 || stopped < 1900 {
			t.Fatalf("%d of 2000 good logins, %d of 2000 thefts stopped", good, stopped)
		}
	})
}

func TestAThiefBehindTheSameAddressCannotGuessForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(t, wide(), nil)
		victim, nat := user(t, "victim"), at("192.0.2.1")
		if _, err := logIn(t, g, nat, victim); err != nil {
			t.Fatal(err)
		}
		checked := 0
		for began := time.Now(); time.Since(began) < day; time.Sleep(time.Minute) {
			if _, err := guess(t, g, nat, victim, secret("%v", time.Now())); err == nil {
				checked++
			}
		}
		if checked > 25*20 {
			t.Fatalf("%d guesses in a day", checked)
		}
		if waited, err := logIn(t, g, at("198.51.100.1"), victim); err != nil || waited > 15*6/5*time.Second {
			t.Fatalf("elsewhere the victim waited %v: %v", waited, err)
		}
	})
}

// siege fails so many guesses at a user, each from a network of its own, and gives the
// least wait of the last ten and how many were refused.
func siege(t *testing.T, g *Limiter, victim identity.User, guesses int) (least time.Duration, refused int) {
	t.Helper()
	least = time.Hour
	for i := range guesses {
		waited, err := guess(t, g, netip.AddrFrom4([4]byte{byte(20 + i/250), byte(i % 250), 0, 1}), victim, secret("%v", time.Now()))
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

// When a gateway is new, or Redis has lost what it knew, no networks are known:
// no user may be locked out everywhere for what others guess.
func TestAUserWithoutAKnownNetworkIsOnlyDelayed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(t, usual(), nil)
		victim, home := user(t, "victim"), at("198.51.100.7")
		least, refused := siege(t, g, victim, 500)
		if longest := g.cfg.Failures.MaxDelay; refused > 0 || !within(least, longest) {
			t.Errorf("%d of 500 guesses were refused, and the last ones waited %v, want %v", refused, least, longest)
		}
		time.Sleep(3 * time.Hour) // nothing is left of this hour, and all of the day
		if waited, err := logIn(t, g, home, victim); err != nil || !within(waited, g.cfg.Failures.MaxDelay) {
			t.Fatalf("the victim waited %v: %v", waited, err)
		}
		if waited, err := logIn(t, g, home, victim); err != nil || waited > 0 {
			t.Fatalf("where it is known now, it waited %v: %v", waited, err)
		}
		least, refused = siege(t, g, victim, 500)
		if refused != 400 {
			t.Errorf("of a user with a known network %d of 500 guesses were refused (least wait %v), want 400", refused, least)
		}
		if waited, err := logIn(t, g, home, victim); err != nil || waited > 0 {
			t.Fatalf("at home it waited %v: %v", waited, err)
		}
	})
}

func TestAddressIsRefusedForAllUsers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(t, usual(), nil)
		checked := 0
		for i := range 200 {
			if _, err := guess(t, g, at("203.0.113.9"), user(t, "victim"), secret("%d", i)); err == nil {
				checked++
			}
		}
		if checked > g.cfg.Failures.BanAfter {
			t.Errorf("%d guesses from one address were checked", checked)
		}
	})
}

// A spray is suspected, and a user without a known network is guessed at: the longer of
// the two delays holds, not both and no refusal.
func TestASprayAddsNothingToTheDelayOfAUserWithoutAKnownNetwork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(t, wide(), nil)
		victim := user(t, "victim")
		if _, refused := siege(t, g, victim, 200); refused > 0 {
			t.Fatalf("%d guesses were refused", refused)
		}
		for i := range 50 { // at once: none of them is delayed
			_, _ = guess(t, g, netip.AddrFrom4([4]byte{60, byte(i), 0, 1}), user(t, fmt.Sprint("user", i)), secret("Summer2024"))
		}
		if !g.history.Record(victim, at("198.51.100.7")).Spray {
			t.Fatal("no spray is suspected")
		}
		if waited, err := logIn(t, g, at("198.51.100.7"), victim); err != nil || !within(waited, g.cfg.Failures.MaxDelay) {
			t.Fatalf("the victim waited %v: %v", waited, err)
		}
	})
}

func TestOneNetworkThatTriesEverybodyIsStopped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(t, usual(), nil)
		checked := 0
		for i := range 10000 {
			if _, err := guess(t, g, at("2001:db8::1"), user(t, fmt.Sprintf("user%d", i)), secret("Summer2024")); err == nil {
				checked++
			}
			time.Sleep(10 * time.Millisecond)
		}
		if checked > 20 {
			t.Fatalf("%d guesses were checked", checked)
		}
	})
}

func TestANetworkThatTriesManyUsersIsNamed(t *testing.T) {
	var reports []Spray
	g, err := New(wide(), nil, Hooks{OnSpray: func(s Spray) { reports = append(reports, s) }}, newGate(t, wide(), nil).log)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 60 { // five from each address, none of which is banned
		v := arrive(t, g, netip.AddrFrom4([4]byte{192, 0, 2, byte(1 + i/5)}))
		v.LoginFailed(t.Context(), user(t, fmt.Sprintf("user%d", i)), secret("Summer2024"))
		v.Close()
	}
	if len(reports) == 0 || reports[0].Net != netip.MustParsePrefix("192.0.2.0/26") || reports[0].Users < 30 || reports[0].Users > 40 {
		t.Fatalf("reports %+v", reports)
	}
}

func TestSprayingFromAThousandNetworksIsNoticed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var reports []Spray
		g, err := New(wide(), nil, Hooks{OnSpray: func(s Spray) { reports = append(reports, s) }}, newGate(t, wide(), nil).log)
		if err != nil {
			t.Fatal(err)
		}
		home := at("198.51.100.1")
		for i := range 1800 { // half an hour of ordinary life
			if _, err := logIn(t, g, home, user(t, fmt.Sprintf("good%d", i%300))); err != nil {
				t.Fatal(err)
			}
			if i%100 == 0 {
				_, _ = guess(t, g, at("203.0.113.1"), user(t, "clumsy"), secret("%d", i))
			}
			time.Sleep(time.Second)
		}
		if len(reports) != 0 {
			t.Fatalf("ordinary life is called %+v", reports)
		}
		from := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{byte(20 + i%200), byte(i % 1000 / 200), 0, 1}) }
		for i := range 1000 {
			_, _ = guess(t, g, from(i), user(t, fmt.Sprintf("tried%d", i)), secret("Summer2024"))
			if len(reports) > 0 && i > 10 {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		if len(reports) != 1 || !reports[0].Suspected {
			t.Fatalf("reports %+v", reports)
		}
		if waited, err := logIn(t, g, at("192.0.2.77"), user(t, "newcomer")); err != nil || !within(waited, 4*time.Second) {
			t.Fatalf("from a network nobody knows: waited %v: %v", waited, err)
		}
		if waited, err := logIn(t, g, home, user(t, "good1")); err != nil || waited > 0 {
			t.Fatalf("from a known network: waited %v: %v", waited, err)
		}
		if waited, err := logIn(t, g, home, user(t, "colleague")); err != nil || waited > 0 {
			t.Fatalf("somebody new in a network with right logins: waited %v: %v", waited, err)
		}
		time.Sleep(20 * time.Minute)
		if _, err := logIn(t, g, home, user(t, "good1")); err != nil {
			t.Fatal(err)
		}
		if len(reports) != 2 || reports[1].Suspected {
			t.Fatalf("when it was over, reports %+v", reports)
		}
	})
}

func TestBannedNetworkAdmitsItsUsers(t *testing.T) {
	g := newGate(t, wide(), nil)
	alice, addr := user(t, "alice"), at("192.0.2.1")
	if _, err := logIn(t, g, addr, alice); err != nil {
		t.Fatal(err)
	}
	g.ban(t.Context(), home(addr), event.BanFailures)
	v := arrive(t, g, addr)
	defer v.Close()
	if err := v.BeginLogin(t.Context(), user(t, "stranger")); reason(err) != event.LimitBanned {
		t.Fatalf("a stranger: %v", err)
	}
	if err := v.BeginLogin(t.Context(), alice); err != nil {
		t.Fatalf("who lives there: %v", err)
	}
}

// unclear is a login with an unclear result.
func unclear(t testing.TB, g *Limiter, addr netip.Addr, u identity.User, password identity.Secret) (least time.Duration, err error) {
	t.Helper()
	_, err = attempt(t, g, addr, u, func(v *Conn) error {
		least = v.LoginUnclear(t.Context(), u, password)
		return nil
	})
	return least, err
}

func TestOneUnclearPasswordOfAUserIsNoFailureOfTheAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(t, wide(), nil)
		nat := at("203.0.113.7")
		for range 3 {
			for i := range 30 { // an office whose backend says neither yes nor no
				least, err := unclear(t, g, nat, user(t, fmt.Sprint("user", i)), secret("own%d", i))
				if err != nil || least < g.cfg.Failures.Delay*4/5 {
					t.Fatalf("user%d: %v, %v", i, least, err)
				}
			}
		}
		u := user(t, "user0")
		for i := range 10 { // at most one of these can be right, and it was another
			if _, err := unclear(t, g, nat, u, secret("other%d", i)); err != nil {
				t.Fatalf("guess %d: %v", i, err)
			}
		}
		if _, err := unclear(t, g, nat, u, secret("own0")); reason(err) != event.LimitBanned {
			t.Errorf("ten guesses without a verdict: %v", err)
		}
	})
}

// A user's guesses from many addresses, one from each, have the bound of the user.
func TestUnclearPasswordsFromManyAddressesCountForTheUser(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(t, wide(), nil)
		u, checked := user(t, "victim"), 0
		if _, err := logIn(t, g, at("198.51.100.7"), u); err != nil { // so that there is a network where it is known
			t.Fatal(err)
		}
		for i := range 300 {
			if _, err := unclear(t, g, at(fmt.Sprintf("203.%d.113.7", i%250)), u, secret("guess%d", i)); err == nil {
				checked++
			}
		}
		if most := g.cfg.Failures.PerUserDay; checked > most {
			t.Errorf("%d guesses were checked, %d may be", checked, most)
		}
	})
}

func TestAPasswordThatWasWrongIsNotUnclearLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(t, wide(), nil)
		u, addr := user(t, "someone"), at("203.0.113.7")
		if _, err := guess(t, g, addr, u, secret("old")); err != nil {
			t.Fatal(err)
		}
		for range 30 { // a phone with it, while the backend is slow
			if _, err := unclear(t, g, addr, u, secret("old")); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := unclear(t, g, addr, u, secret("new")); err != nil {
			t.Errorf("the new one: %v", err)
		}
	})
}

func TestUncountedDenialTakesAsLongAsOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(t, wide(), nil)
		u, addr := user(t, "blocked"), at("203.0.113.7")
		for range 30 {
			_, err := attempt(t, g, addr, u, func(v *Conn) error {
				if least := v.LoginDenied(); !within(least, g.cfg.Failures.Delay) {
					t.Errorf("%v", least)
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
		}
	})
}
