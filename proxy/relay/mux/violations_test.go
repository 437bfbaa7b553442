package mux

import (
	"fmt"
	"testing"
	"time"

	"imapgate/internal/identity"
	"imapgate/internal/testkit"
)

// nthUser is the n-th of many users.
func nthUser(t *testing.T, n int) identity.User {
	t.Helper()
	u, err := identity.Canonicalize(fmt.Sprintf("u%d", n), "")
	testkit.NoError(t, err)
	return u
}

var testStart = time.Date(2026, 1, 1, 8, 0, 0, 0, time.UTC)

func TestAUserIsSplicedAfterTwoViolationsInAnHour(t *testing.T) {
	var p violationTracker
	one, other := nthUser(t, 1), nthUser(t, 2)
	now := testStart
	for i, want := range []bool{false, true, true} {
		if p.record(one, 1, now) {
			t.Fatalf("one user has all users spliced with session %d", i+1)
		}
		if got := p.shouldSplice(one, now); got != want {
			t.Errorf("after session %d, the user is spliced: %v", i+1, got)
		}
		now = now.Add(violationWindow - time.Second)
	}
	if p.shouldSplice(other, now) {
		t.Error("another user is spliced")
	}
	if now = now.Add(time.Second); p.shouldSplice(one, now) {
		t.Error("the user is spliced for ever")
	}
	p.record(one, 1, now)
	if p.shouldSplice(one, now) {
		t.Error("a violation an hour ago counts")
	}
}

func TestOneUserNeverHasAllUsersSpliced(t *testing.T) {
	var p violationTracker
	for i := range 1000 {
		if now := testStart.Add(time.Duration(i) * time.Second); p.record(nthUser(t, i%(minAffectedUsers-1)), 1, now) {
			t.Fatalf("%d sessions of %d users were enough", i+1, minAffectedUsers-1)
		}
	}
}

func TestAllUsersAreSplicedAfterViolationsToFiveUsersAndOneInAHundredSessions(t *testing.T) {
	for sessions, users := range map[int64]int{1: minAffectedUsers, 500: minAffectedUsers, 5000: 50} {
		var p violationTracker
		for i := range users {
			if got, want := p.record(nthUser(t, i), sessions, testStart), i == users-1; got != want {
				t.Errorf("with %d sessions, user %d has all users spliced: %v", sessions, i+1, got)
			}
		}
		if !p.shouldSplice(nthUser(t, users), testStart) {
			t.Errorf("with %d sessions, a user is not spliced", sessions)
		}
	}
}

// recordFiveUsers records violations that have all users spliced.
func (v *violationTracker) recordFiveUsers(t *testing.T, at time.Time) {
	t.Helper()
	for i := range minAffectedUsers {
		if v.record(nthUser(t, i), 1, at) != (i == minAffectedUsers-1) {
			t.Fatalf("user %d at %v", i+1, at)
		}
	}
}

func TestTheSpliceDurationDoublesEachTime(t *testing.T) {
	var p violationTracker
	now := testStart
	for _, want := range []time.Duration{1, 2, 4, 8, 16, 24, 24} {
		p.recordFiveUsers(t, now)
		until := now.Add(want * time.Hour)
		if status, _ := p.prune(until.Add(-1)); !status.Spliced || !status.SplicedUntil.Equal(until) {
			t.Fatalf("spliced: %v, until %v, want %v", status.Spliced, status.SplicedUntil, until)
		}
		if now = until; p.shouldSplice(nthUser(t, 99), now) {
			t.Fatalf("it is spliced for more than %d h", want)
		}
		status, ended := p.prune(now)
		if _, again := p.prune(now); !ended || again || status != (ViolationStatus{}) {
			t.Fatalf("after %d h: %+v; ended %v, and again %v", want, status, ended, again)
		}
	}
	now = now.Add(maxSpliceDuration + 1)
	p.recordFiveUsers(t, now)
	if status, _ := p.prune(now); !status.SplicedUntil.Equal(now.Add(minSpliceDuration)) {
		t.Errorf("after a day without splicing it is spliced for %v", status.SplicedUntil.Sub(now))
	}
}

func TestTrackedUsersAreBounded(t *testing.T) {
	var p violationTracker
	for i := range maxTrackedUsers + 10 {
		p.record(nthUser(t, i), 1<<40, testStart)
	}
	if status, _ := p.prune(testStart); status.AffectedUsers != maxTrackedUsers {
		t.Errorf("%d users are tracked", status.AffectedUsers)
	}
	if status, _ := p.prune(testStart.Add(violationWindow)); status != (ViolationStatus{}) || len(p.users) != 0 {
		t.Errorf("an hour later: %+v", status)
	}
}

func TestASessionCountsAsOneViolation(t *testing.T) {
	s := newScriptedTest(t, setup{})
	b := s.hub.backends["stub"]
	for n := 1; n <= 4; n++ {
		s.run("C a1 NAMESPACE", fmt.Sprintf("U%d a1 NAMESPACE", n), fmt.Sprintf("B%d what OK", n))
		s.run(fmt.Sprintf("U%d a1 NAMESPACE", n+1), fmt.Sprintf("B%d a1 OK done", n+1), "P a1 OK done")
	}
	if status := b.violationStatus(); status.AffectedUsers != 1 || status.SplicedUsers != 0 {
		t.Errorf("the session counts several times: %+v", status)
	}
	s.end()
}
