package limit

import (
	"fmt"
	"imapgate/internal/event"
	"testing"
	"testing/synctest"
	"time"
)

// An office changes its passwords after its backend has hung up on the old ones. The
// backend hangs up on the new ones too, which are right.
func TestAPasswordThatMayBeRightGivesWayToTheNextOne(t *testing.T) {
	for name, between := range map[string]func(testing.TB, *Limiter, int){
		"the users log in": func(t testing.TB, g *Limiter, i int) {
			if _, err := logIn(t, g, at("203.0.113.7"), user(t, fmt.Sprint("user", i))); err != nil {
				t.Fatal(err)
			}
		},
		"time passes": func(_ testing.TB, g *Limiter, i int) {
			if i == 0 {
				time.Sleep(g.cfg.Failures.BanWithin)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := newGate(t, wide(), nil)
				for _, password := range []string{"old", "new"} {
					for i := range 30 {
						if _, err := unclear(t, g, at("203.0.113.7"), user(t, fmt.Sprint("user", i)), secret("%s%d", password, i)); err != nil {
							t.Fatalf("user%d with the %s password: %v", i, password, err)
						}
					}
					for i := range 30 {
						between(t, g, i)
					}
				}
				if _, err := logIn(t, g, at("203.0.113.7"), user(t, "other")); err != nil {
					t.Errorf("the address: %v", err)
				}
			})
		})
	}
}

// A device that shows one password for as long as its backend is in trouble neither
// counts again nor gives its place away.
func TestAPasswordThatMayBeRightKeepsItsPlaceWhileItIsShown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(t, wide(), nil)
		u, nat := user(t, "someone"), at("203.0.113.7")
		for i := range 100 {
			if i > 0 {
				time.Sleep(g.cfg.Failures.BanWithin - time.Minute)
			}
			if _, err := unclear(t, g, nat, u, secret("own")); err != nil {
				t.Fatal(err)
			}
		}
		if n := g.history.Record(u, nat); n.User.Day > 1 {
			t.Errorf("one password counts %d times", n.User.Day)
		}
		for i := range g.cfg.Failures.BanAfter {
			if _, err := unclear(t, g, nat, u, secret("guess%d", i)); err != nil {
				t.Fatalf("guess %d: %v", i, err)
			}
		}
		if _, err := unclear(t, g, nat, u, secret("own")); reason(err) != event.LimitBanned {
			t.Errorf("guesses at a user whose device is there: %v", err)
		}
	})
}
