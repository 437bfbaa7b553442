package limit

import (
	"fmt"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"imapgate/internal/event"
	"imapgate/internal/identity"
)

// The users of an address change their passwords after the backend closed the connection
// without a verdict on the old ones. It does the same on the new ones, which are right.
func TestAnUnclearPasswordIsReplacedByTheNextOne(t *testing.T) {
	for name, between := range map[string]func(testing.TB, *Limiter, int){
		"the users log in": func(t testing.TB, l *Limiter, i int) {
			if _, err := logIn(t, l, ip("203.0.113.7"), user(t, fmt.Sprint("user", i))); err != nil {
				t.Fatal(err)
			}
		},
		"time passes": func(_ testing.TB, l *Limiter, i int) {
			if i == 0 {
				time.Sleep(l.cfg.Failures.BanWithin)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLimiter(t, noConnLimits(), nil)
				for _, password := range []string{"old", "new"} {
					for i := range 30 {
						if _, err := loginUnclear(t, l, ip("203.0.113.7"), user(t, fmt.Sprint("user", i)), secret("%s%d", password, i)); err != nil {
							t.Fatalf("user%d with the %s password: %v", i, password, err)
						}
					}
					for i := range 30 {
						between(t, l, i)
					}
				}
				if _, err := logIn(t, l, ip("203.0.113.7"), user(t, "other")); err != nil {
					t.Errorf("another user at the address: %v", err)
				}
			})
		})
	}
}

// A device repeats one password while its backend returns no verdict. The password counts
// once, and no other password replaces it.
func TestAnUnclearPasswordIsKeptWhileItIsRepeated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(t, noConnLimits(), nil)
		u, nat := user(t, "alice"), ip("203.0.113.7")
		for i := range 100 {
			if i > 0 {
				time.Sleep(l.cfg.Failures.BanWithin - time.Minute)
			}
			if _, err := loginUnclear(t, l, nat, u, secret("own")); err != nil {
				t.Fatal(err)
			}
		}
		if n := l.history.Record(u, nat); n.User.Day > 1 {
			t.Errorf("a repeated password counts %d times", n.User.Day)
		}
		for i := range l.cfg.Failures.BanAfter {
			if _, err := loginUnclear(t, l, nat, u, secret("guess%d", i)); err != nil {
				t.Fatalf("guess %d: %v", i, err)
			}
		}
		if _, err := loginUnclear(t, l, nat, u, secret("own")); reason(err) != event.LimitBanned {
			t.Errorf("a repeated password after too many guesses: %v", err)
		}
	})
}

// loginUnclear makes a login attempt with an unclear verdict, and returns the least time of its
// denial.
func loginUnclear(t testing.TB, l *Limiter, addr netip.Addr, u identity.User, password identity.Secret) (least time.Duration, err error) {
	t.Helper()
	_, err = attempt(t, l, addr, u, func(conn *Conn) error {
		least = conn.LoginUnclear(t.Context(), u, password)
		return nil
	})
	return least, err
}

func TestOneUnclearPasswordOfAUserIsNoFailureOfTheAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(t, noConnLimits(), nil)
		nat := ip("203.0.113.7")
		for range 3 {
			for i := range 30 { // the users of an office, whose backend returns no verdict
				least, err := loginUnclear(t, l, nat, user(t, fmt.Sprint("user", i)), secret("own%d", i))
				if err != nil || least < l.cfg.Failures.Delay*4/5 {
					t.Fatalf("user%d: %v, %v", i, least, err)
				}
			}
		}
		u := user(t, "user0")
		for i := range 10 { // at most one password of a user can be right, and it was own0
			if _, err := loginUnclear(t, l, nat, u, secret("other%d", i)); err != nil {
				t.Fatalf("guess %d: %v", i, err)
			}
		}
		if _, err := loginUnclear(t, l, nat, u, secret("own0")); reason(err) != event.LimitBanned {
			t.Errorf("ten guesses without a verdict: %v", err)
		}
	})
}

// Guesses at one user, each from another address, are bounded by the limit of the user.
func TestUnclearPasswordsFromManyAddressesCountForTheUser(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(t, noConnLimits(), nil)
		u, verified := user(t, "victim"), 0
		if _, err := logIn(t, l, ip("198.51.100.7"), u); err != nil { // so that the user has a known network
			t.Fatal(err)
		}
		for i := range 300 {
			if _, err := loginUnclear(t, l, ip(fmt.Sprintf("203.%d.113.7", i%250)), u, secret("guess%d", i)); err == nil {
				verified++
			}
		}
		if most := l.cfg.Failures.PerUserDay; verified > most {
			t.Errorf("%d guesses were verified, the limit is %d", verified, most)
		}
	})
}

func TestAPasswordThatWasWrongIsNotUnclearLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(t, noConnLimits(), nil)
		u, addr := user(t, "alice"), ip("203.0.113.7")
		if _, err := guess(t, l, addr, u, secret("old")); err != nil {
			t.Fatal(err)
		}
		for range 30 { // a phone repeats it while the backend is slow
			if _, err := loginUnclear(t, l, addr, u, secret("old")); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := loginUnclear(t, l, addr, u, secret("new")); err != nil {
			t.Errorf("the new password: %v", err)
		}
	})
}
