package proxy

import (
	"testing"
	"time"

	"imapgate/internal/audit"
	"imapgate/internal/limit"
)

// guessed are passwords that a backend refuses in other words than usual.
func guessed(s *setup) {
	s.limits = limit.Config{Failures: guesses()}
	s.routes.Static.Users["refuse"], s.routes.Static.Users["echo"], s.routes.Static.Users["slow"] = "east", "east", "east"
}

func TestAConnectionHasSoManyLoginsWhateverTheyFailOf(t *testing.T) {
	b := newBed(t, openMailbox(t).addr(), limited(limit.Config{Failures: guesses()}))
	c := b.in("203.0.113.7")
	began := time.Now()
	for range 6 {
		c.say("a LOGIN erin right\r\n")
		c.hear("a " + unavailableReply)
	}
	c.hear("* BYE [UNAVAILABLE] Too many failed logins.")
	c.end()
	if took := time.Since(began); took < 6*denialFloor {
		t.Errorf("all of them took %v", took)
	}
	if r := b.lastRecord("connection_refused", c); r.field("reason") != string(audit.LoginAttempts) {
		t.Errorf("%v", r)
	}
}

func TestADenialTakesAsLongWhetherABackendWasAskedOrNot(t *testing.T) {
	b := newBed(t, openMailbox(t).addr(), guessed)
	for _, user := range []string{"slow", "nobody", `"a|b"`, "frank"} { // and nowhere, impossible, in the passwd-file
		began := time.Now()
		if got := b.guess("203.0.113.7", user, "wrong"); got != deniedReply {
			t.Fatalf("%s: %s", user, got)
		}
		if took := time.Since(began); took < slowDenial {
			t.Errorf("%s was denied after %v", user, took)
		}
	}
	c := b.in("203.0.113.7")
	began := time.Now()
	c.say("a LOGIN slow {1+}\r\n\x01\r\n") // cannot be sent
	c.hear("a " + deniedReply)
	if took := time.Since(began); took < slowDenial {
		t.Errorf("what cannot be sent was denied after %v", took)
	}
	c.close()
}

func TestDenialsThatAreRememberedHaveABound(t *testing.T) {
	var d denials
	if d.any() != 0 {
		t.Error("a time of nobody's denial")
	}
	for i := range 3 * len(d.took) {
		d.note(time.Duration(i+1) * time.Second)
	}
	for range 1000 {
		if took := d.any(); took <= time.Duration(2*len(d.took))*time.Second {
			t.Fatalf("%v was long ago", took)
		}
	}
}
