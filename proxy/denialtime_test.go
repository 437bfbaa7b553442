package proxy

import (
	"testing"
	"time"

	"imapgate/internal/event"
	"imapgate/internal/limit"
)

// withGuesses sets passwords that a backend refuses with unusual answers.
func withGuesses(s *harnessConfig) {
	s.limits = limit.Config{Settings: limit.Settings{Failures: failureLimits()}}
	s.routes.Static.Users["refuse"], s.routes.Static.Users["echo"], s.routes.Static.Users["slow"] = "east", "east", "east"
}

func TestConnectionHasMaximumFailedLogins(t *testing.T) {
	b := newHarness(t, openTestBackend(t).addr(), withLimits(limit.Config{Settings: limit.Settings{Failures: failureLimits()}}))
	c := b.dialGreetedFrom("203.0.113.7")
	start := time.Now()
	for range 6 {
		c.write("a LOGIN erin right\r\n")
		c.expectLine("a " + unavailableReply)
	}
	c.expectLine("* BYE [UNAVAILABLE] Too many failed logins.")
	c.expectEOF()
	if took := time.Since(start); took < 6*minDenialTime {
		t.Errorf("all of them took %v", took)
	}
	if r := b.lastRecord("connection_refused", c); r.field("reason") != string(event.LoginAttempts) {
		t.Errorf("%v", r)
	}
}

func TestDenialTimeDoesNotShowBackendUse(t *testing.T) {
	b := newHarness(t, openTestBackend(t).addr(), withGuesses)
	for _, user := range []string{"slow", "unknown", `"a|b"`, "frank"} { // also without a route, impossible, and in the passwd-file
		start := time.Now()
		if got := b.tryLogin("203.0.113.7", user, "wrong"); got != authFailedReply {
			t.Fatalf("%s: %s", user, got)
		}
		if took := time.Since(start); took < slowDenial {
			t.Errorf("%s was denied after %v", user, took)
		}
	}
	c := b.dialGreetedFrom("203.0.113.7")
	start := time.Now()
	c.write("a LOGIN slow {1+}\r\n\x01\r\n") // cannot be sent upstream
	c.expectLine("a " + authFailedReply)
	if took := time.Since(start); took < slowDenial {
		t.Errorf("a password that cannot be sent was denied after %v", took)
	}
	c.close()
}
