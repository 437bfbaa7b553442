package mux

import (
	"fmt"
	"testing"
	"time"

	"imapgate/internal/identity"
)

// named is the n-th of many users.
func named(t *testing.T, n int) identity.User {
	t.Helper()
	u, err := identity.Canon(fmt.Sprintf("u%d", n), "")
	must(t, err)
	return u
}

var morning = time.Date(2026, 1, 1, 8, 0, 0, 0, time.UTC)

func TestAUserIsSplicedForTwoBrokenSessionsInAnHour(t *testing.T) {
	var p promises
	one, other := named(t, 1), named(t, 2)
	now := morning
	for i, want := range []bool{false, true, true} {
		if p.broken(one, 1, now) {
			t.Fatalf("one user has everybody spliced with session %d", i+1)
		}
		if got := p.spliced(one, now); got != want {
			t.Errorf("behind session %d, the user is spliced: %v", i+1, got)
		}
		now = now.Add(lapseWindow - time.Second)
	}
	if p.spliced(other, now) {
		t.Error("another user is spliced")
	}
	if now = now.Add(time.Second); p.spliced(one, now) {
		t.Error("the user is spliced for ever")
	}
	p.broken(one, 1, now)
	if p.spliced(one, now) {
		t.Error("what was broken an hour ago counts")
	}
}

func TestOneUserNeverHasEverybodySpliced(t *testing.T) {
	var p promises
	for i := range 1000 {
		if now := morning.Add(time.Duration(i) * time.Second); p.broken(named(t, i%(fewestUsers-1)), 1, now) {
			t.Fatalf("%d sessions of %d users were enough", i+1, fewestUsers-1)
		}
	}
}

func TestEverybodyIsSplicedForFiveUsersAndOneOfAHundredSessions(t *testing.T) {
	for sessions, users := range map[int64]int{1: fewestUsers, 500: fewestUsers, 5000: 50} {
		var p promises
		for i := range users {
			if got, want := p.broken(named(t, i), sessions, morning), i == users-1; got != want {
				t.Errorf("with %d sessions, the %d. user has everybody spliced: %v", sessions, i+1, got)
			}
		}
		if !p.spliced(named(t, users), morning) {
			t.Errorf("with %d sessions, a user is not spliced", sessions)
		}
	}
}

// breaks has everybody spliced.
func (p *promises) breaks(t *testing.T, at time.Time) {
	t.Helper()
	for i := range fewestUsers {
		if p.broken(named(t, i), 1, at) != (i == fewestUsers-1) {
			t.Fatalf("the %d. user at %v", i+1, at)
		}
	}
}

func TestABackendIsBelievedAgainAndLaterEachTime(t *testing.T) {
	var p promises
	now := morning
	for _, want := range []time.Duration{1, 2, 4, 8, 16, 24, 24} {
		p.breaks(t, now)
		until := now.Add(want * time.Hour)
		if trust, _ := p.sweep(until.Add(-1)); !trust.Spliced || !trust.Until.Equal(until) {
			t.Fatalf("spliced: %v, until %v, want %v", trust.Spliced, trust.Until, until)
		}
		if now = until; p.spliced(named(t, 99), now) {
			t.Fatalf("it is spliced for more than %d h", want)
		}
		trust, closed := p.sweep(now)
		if _, again := p.sweep(now); !closed || again || trust != (Trust{}) {
			t.Fatalf("behind %d h: %+v; closed %v, and again %v", want, trust, closed, again)
		}
	}
	now = now.Add(lastSplice + 1)
	p.breaks(t, now)
	if trust, _ := p.sweep(now); !trust.Until.Equal(now.Add(firstSplice)) {
		t.Errorf("behind a good day it is spliced for %v", trust.Until.Sub(now))
	}
}

func TestAsManyUsersAreRememberedAsSaid(t *testing.T) {
	var p promises
	for i := range maxLapsed + 10 {
		p.broken(named(t, i), 1<<40, morning)
	}
	if trust, _ := p.sweep(morning); trust.Users != maxLapsed {
		t.Errorf("%d users are remembered", trust.Users)
	}
	if trust, _ := p.sweep(morning.Add(lapseWindow)); trust != (Trust{}) || len(p.users) != 0 {
		t.Errorf("an hour later: %+v", trust)
	}
}

func TestASessionCountsOnceForWhatIsBrokenToIt(t *testing.T) {
	s := newScene(t, setup{})
	b := s.hub.backends["stub"]
	for n := 1; n <= 4; n++ {
		s.play("C a1 NAMESPACE", fmt.Sprintf("U%d a1 NAMESPACE", n), fmt.Sprintf("B%d what OK", n))
		s.play(fmt.Sprintf("U%d a1 NAMESPACE", n+1), fmt.Sprintf("B%d a1 OK done", n+1), "P a1 OK done")
	}
	if trust := b.trust(); trust.Users != 1 || trust.SplicedUsers != 0 {
		t.Errorf("it counts as several sessions: %+v", trust)
	}
	s.end()
}
