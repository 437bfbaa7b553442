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

// people are so many users who have logged in from an address.
func people(t *testing.T, g *Limiter, n int, addr netip.Addr) []identity.User {
	t.Helper()
	all := make([]identity.User, n)
	for i := range all {
		all[i] = user(t, fmt.Sprintf("resident%d", i))
		if _, err := logIn(t, g, addr, all[i]); err != nil {
			t.Fatal(err)
		}
	}
	return all
}

func TestANeighborWhoTriesEverybodyIsStopped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(t, wide(), nil)
		home, checked := at("192.0.2.7"), 0
		all := people(t, g, 2000, home)
		for i := range 3 * len(all) {
			if _, err := guess(t, g, at("192.0.2.99"), all[i%len(all)], secret("%d", i)); err == nil {
				checked++
			}
		}
		if most := 10 * g.cfg.Failures.PerDay; checked > most {
			t.Errorf("%d of 6000 guesses were checked, %d may be", checked, most)
		}
		for _, u := range all {
			if waited, err := logIn(t, g, home, u); err != nil || waited > 0 {
				t.Fatalf("%v at home waited %v: %v", u, waited, err)
			}
		}
	})
}

// 100 people and a thief who knows all their names share one address. People log in every ten
// minutes, the thief guesses as fast as five connections can. Numbers and times are a fifth of
// those of a day of 500 people.
func TestThiefAmongManyIsBoundedAndHindersFew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const hours, targets = 5, 10
		cfg, nat := wide(), at("192.0.2.7")
		cfg.Failures.PerDay /= 5
		g := newGate(t, cfg, nil)
		all := people(t, g, 100, nat)
		var checked, next, good, bad atomic.Int64
		var thief sync.WaitGroup
		began := time.Now()
		for range 5 {
			thief.Go(func() {
				for time.Since(began) < hours*time.Hour {
					n := next.Add(1)
					if _, err := guess(t, g, nat, all[n%targets], secret("%d", n)); err == nil {
						checked.Add(1)
					}
					time.Sleep(2 * time.Second) // its denial
				}
			})
		}
		for ; time.Since(began) < hours*time.Hour; time.Sleep(10 * time.Minute) {
			for _, u := range all[targets:] {
				if waited, err := logIn(t, g, nat, u); err == nil && waited == 0 {
					good.Add(1)
				} else {
					bad.Add(1)
				}
			}
		}
		thief.Wait()
		t.Logf("%d guesses checked, %d good logins, %d not", checked.Load(), good.Load(), bad.Load())
		if most := int64(10*10*g.cfg.Failures.PerDay) + hours*targets*4; checked.Load() > most {
			t.Errorf("%d guesses were checked, %d may be", checked.Load(), most)
		}
		if bad.Load() > 0 {
			t.Errorf("%d of those who were not guessed at waited or were refused", bad.Load())
		}
	})
}

func TestANeighborCannotLockAUserOutOfItsHome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(t, wide(), nil)
		victim, home := user(t, "victim"), at("192.0.2.7")
		if _, err := logIn(t, g, home, victim); err != nil {
			t.Fatal(err)
		}
		for i := range 3 * 20 {
			_, _ = guess(t, g, at(fmt.Sprintf("192.0.2.%d", 200+i%20)), victim, secret("%d", i))
		}
		if waited, err := logIn(t, g, home, victim); err != nil || waited > 0 {
			t.Fatalf("at its own address the victim waited %v: %v", waited, err)
		}
		if waited, err := logIn(t, g, at("192.0.2.8"), victim); err != nil || !within(waited, 15*time.Second) {
			t.Fatalf("at another address of its provider it waited %v: %v", waited, err)
		}
	})
}

func TestAFewTelephonesDoNotShutOutACarrier(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := wide()
		cfg.Failures.Delay, cfg.Failures.MaxDelay = 500*time.Millisecond, 2*time.Second // all of it is on one day
		g := newGate(t, cfg, nil)
		good := user(t, "good")
		if _, err := logIn(t, g, at("2001:db8:aaaa:1::1"), good); err != nil {
			t.Fatal(err)
		}
		flood := func(net string, n int) (checked int) {
			for i := range n { // each from a /48 of its own
				if _, err := guess(t, g, at(fmt.Sprintf("%s:%x::1", net, i)), user(t, fmt.Sprintf("nobody%d", i)), secret("%v", time.Now())); err == nil {
					checked++
				}
			}
			return checked
		}
		if n := flood("2001:db8", 1000); n != 1000 {
			t.Fatalf("%d of 1000 were even checked where somebody lives", n)
		}
		if waited, err := logIn(t, g, at("2001:db8:aaaa:2::1"), good); err != nil || waited > 1200*time.Millisecond {
			t.Fatalf("a customer with the next address waited %v: %v", waited, err)
		}
		if waited, err := logIn(t, g, at("2001:db8:bbbb:2::1"), user(t, "newcomer")); err != nil || !within(waited, 2*time.Second) {
			t.Fatalf("somebody new there waited %v: %v", waited, err)
		}
		if n := flood("2001:db9", 1000); n > 9*g.cfg.Failures.PerDay {
			t.Fatalf("%d guesses were checked from where noUser lives", n)
		}
		if n := 1000 + flood("2001:db8", 4500); n > 9*10*g.cfg.Failures.PerDay {
			t.Fatalf("%d guesses were checked from where somebody lives", n)
		}
		if waited, err := logIn(t, g, at("2001:db8:aaaa:3::1"), good); err != nil || waited > 1200*time.Millisecond {
			t.Fatalf("then a customer with the next address waited %v: %v", waited, err)
		}
	})
}

func TestABurstIsCountedBeforeItFails(t *testing.T) {
	for _, c := range []struct {
		name string
		from func(i int) netip.Addr
		who  func(i int) string
		most int
	}{
		{"at a user", func(i int) netip.Addr { return netip.AddrFrom4([4]byte{byte(20 + i%200), byte(i / 200), 1, 1}) }, func(int) string { return "victim" }, 100},
		{"from an address", func(int) netip.Addr { return at("192.0.2.1") }, func(i int) string { return fmt.Sprint("user", i) }, 10},
		{"from an address at a user", func(int) netip.Addr { return at("192.0.2.1") }, func(int) string { return "victim" }, 10},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := newGate(t, wide(), nil)
				if _, err := logIn(t, g, at("198.51.100.1"), user(t, "victim")); err != nil {
					t.Fatal(err)
				}
				var checked atomic.Int64
				var all sync.WaitGroup
				for i := range 1000 {
					all.Go(func() {
						u, v := user(t, c.who(i)), arrive(t, g, c.from(i))
						defer v.Close()
						if v.BeginLogin(t.Context(), u) != nil {
							return
						}
						checked.Add(1)
						time.Sleep(2 * time.Second) // the backend's time for a NO
						v.LoginFailed(t.Context(), u, secret("%d", i))
					})
				}
				all.Wait()
				if n := int(checked.Load()); n > c.most {
					t.Errorf("%d of 1000 guesses were checked, %d may be", n, c.most)
				}
				if n := g.history.Pending(); n != 0 {
					t.Errorf("%d claims are left behind", n)
				}
			})
		})
	}
}

// An office comes to work, whose users are not known there.
func TestABurstOfRightLoginsIsLetIn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(t, wide(), nil)
		var all sync.WaitGroup
		for i := range 100 {
			all.Go(func() {
				u, v := user(t, fmt.Sprint("user", i)), arrive(t, g, at("192.0.2.1"))
				defer v.Close()
				if err := v.BeginLogin(t.Context(), u); err != nil {
					t.Errorf("login %d: %v", i, err)
					return
				}
				time.Sleep(100 * time.Millisecond) // the backend's time for an OK
				if err := v.BeginSession(t.Context(), u); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
	})
}

func TestACheckIsNoLoginUnderWay(t *testing.T) {
	g := newGate(t, wide(), nil)
	victim := user(t, "victim")
	v := arrive(t, g, at("192.0.2.1"))
	defer v.Close()
	if err := v.CheckLogin(t.Context(), victim); err != nil {
		t.Fatal(err)
	}
	if n := g.history.Pending(); n != 0 {
		t.Errorf("%d claims are held", n)
	}
	for i := range g.cfg.Failures.PerMinute {
		v.LoginFailed(t.Context(), victim, secret("%d", i))
	}
	if err := v.CheckLogin(t.Context(), victim); reason(err) != event.LimitBanned {
		t.Errorf("an address with too many failures: %v", err)
	}
}

func TestWhoVanishesAmidALoginLeavesNothing(t *testing.T) {
	g := newGate(t, wide(), nil)
	for i := range 1000 {
		v := arrive(t, g, netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 1}))
		for range 3 { // a backend that is away, twice
			if err := v.BeginLogin(t.Context(), user(t, fmt.Sprint("user", i%7))); err != nil {
				t.Fatal(err)
			}
		}
		v.Close()
	}
	if n := g.history.Pending(); n != 0 {
		t.Fatalf("%d claims are left behind", n)
	}
}

func TestAWrongPasswordThatIsRepeatedForEverIsDeniedEverSlower(t *testing.T) {
	g := newGate(t, wide(), nil)
	alice := user(t, "alice")
	for i := range 30 {
		v := arrive(t, g, at("192.0.2.1"))
		want := 2 * time.Second
		if i > 20 {
			want = 15 * time.Second
		}
		if d := v.LoginFailed(t.Context(), alice, secret("old")); (i <= 10 || i > 20) && !within(d, want) {
			t.Fatalf("repetition %d takes %v, want %v", i, d, want)
		}
		v.Close()
	}
	if waited, err := logIn(t, g, at("192.0.2.1"), alice); err != nil || waited > 3*time.Second {
		t.Fatalf("the right one waited %v: %v", waited, err)
	}
}

// An account that was stolen is used from where the thief is known by now.
func TestAnOperatorsBanHoldsForWhoIsKnown(t *testing.T) {
	g := newGate(t, wide(), nil)
	alice, addr := user(t, "alice"), at("192.0.2.66")
	if _, err := logIn(t, g, addr, alice); err != nil {
		t.Fatal(err)
	}
	v := arrive(t, g, addr) // before the ban
	defer v.Close()
	if err := g.Ban(t.Context(), home(addr), time.Hour, ""); err != nil {
		t.Fatal(err)
	}
	if _, err := g.Open("imaps", addr); reason(err) != event.LimitBanned {
		t.Errorf("it may arrive: %v", err)
	}
	if err := v.BeginLogin(t.Context(), alice); reason(err) != event.LimitBanned {
		t.Errorf("it may log in: %v", err)
	}
}

func TestANameThatIsNobodysCountsOnceUntilItChanges(t *testing.T) {
	g := newGate(t, wide(), nil)
	noUser := identity.User{}
	fail := func(addr string, shown identity.Secret) time.Duration {
		v := arrive(t, g, at(addr))
		defer v.Close()
		return v.LoginFailed(t.Context(), noUser, shown)
	}
	for i := range 50 {
		want := 2 * time.Second
		if i > 20 {
			want = 15 * time.Second
		}
		if d := fail("192.0.2.1", secret("the same")); (i <= 10 || i > 20) && !within(d, want) {
			t.Fatalf("repetition %d takes %v, want %v", i, d, want)
		}
	}
	if n := g.history.Record(identity.User{}, at("192.0.2.1")).Nets[0]; n.Ban != 1 || n.Day != 1 {
		t.Errorf("50 of the same count as %+v", n)
	}
	for i := range 10 {
		fail("192.0.2.2", secret("%d", i)) // in the same network
	}
	if _, err := g.Open("imaps", at("192.0.2.2")); reason(err) != event.LimitBanned {
		t.Fatalf("10 others: %v", err)
	}
	for range 10 {
		fail("203.0.113.1", identity.Secret{}) // of which nothing is known
	}
	if _, err := g.Open("imaps", at("203.0.113.1")); reason(err) != event.LimitBanned {
		t.Fatalf("10 of which nothing is known: %v", err)
	}
}

// A proof of SCRAM says that the password was wrong, not which one it was.
func TestFailuresWithoutAPasswordCountForTheUserAndAFewForTheNetwork(t *testing.T) {
	c := wide()
	c.Failures.PerUserNetworkHour = 20
	g := newGate(t, c, nil)
	alice := user(t, "alice")
	for range 20 {
		v := arrive(t, g, at("192.0.2.1"))
		v.LoginFailed(t.Context(), alice, identity.Secret{})
		v.Close()
	}
	past := g.history.Record(alice, at("192.0.2.1"))
	if past.Nets[0].Ban != 3 || past.UserNet != 20 || past.UserAddress != 20 || past.User.Day != 20 {
		t.Errorf("20 of them count as %+v", past)
	}
	if _, err := logIn(t, g, at("192.0.2.1"), alice); reason(err) != event.LimitPairFailures {
		t.Errorf("the user may go on there: %v", err)
	}
	for i := range 3 {
		v := arrive(t, g, at("192.0.2.1"))
		for range 5 {
			v.LoginFailed(t.Context(), user(t, fmt.Sprint("user", i)), identity.Secret{})
		}
		v.Close()
	}
	if _, err := g.Open("imaps", at("192.0.2.1")); reason(err) != event.LimitBanned {
		t.Errorf("who tries several users is not banned: %v", err)
	}
}

func TestABanHasTheFormOfItsClients(t *testing.T) {
	g := newGate(t, wide(), nil)
	net, err := ParseNet("::ffff:192.0.2.0/120")
	if err != nil || net != netip.MustParsePrefix("192.0.2.0/24") {
		t.Fatalf("%v, %v", net, err)
	}
	if err := g.Ban(t.Context(), net, time.Hour, ""); err != nil {
		t.Fatal(err)
	}
	if _, err := g.Open("imaps", at("192.0.2.7")); reason(err) != event.LimitBanned {
		t.Fatalf("the client gets %v", err)
	}
	for _, text := range []string{"0.0.0.0/0", "10.0.0.0/7", "::/0", "2000::/3"} {
		if err := g.Ban(context.Background(), netip.MustParsePrefix(text), time.Hour, ""); err == nil {
			t.Errorf("%s is banned", text)
		}
	}
}

func TestANoteIsOneLineThatReadsAsItIs(t *testing.T) {
	for note, want := range map[string]string{
		"ticket 4711": "ticket 4711", "a\nb\tc": "a b c", "a\u2028b\u2029c": "a b c",
		"a\u202eb\u2066c": "a b c", "a\u200bb\u061cc": "a b c", "schön\x80": "schön",
	} {
		if got := sanitize.Line(note, cluster.MaxNote); got != want {
			t.Errorf("%q became %q, want %q", note, got, want)
		}
	}
}
