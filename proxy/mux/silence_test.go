package mux

import (
	"testing"
	"time"
)

// silent waits for as long as it takes to give a connection up, and some.
func (s *scene) silent() { <-time.After(4*s.setup.settings.SilenceMax + 2*time.Second) }

// wantLogins wants so many connections to have been made so far.
func (s *scene) wantLogins(n int) {
	s.t.Helper()
	s.stub.mu.Lock()
	defer s.stub.mu.Unlock()
	if len(s.stub.peers) != n {
		s.t.Errorf("%d connections were made, want %d", len(s.stub.peers), n)
	}
}

// A process that hangs may still do what it was told, when the client has long been
// told that nobody knows.
func TestAConnectionIsNotGivenUpOverACommandThatChangesSomething(t *testing.T) {
	s := newScene(t, setup{settings: Settings{SilenceMax: 2 * tick}})
	s.play("OPEN 3 4 7", `C! "a1 NOOP\r\na2 UID STORE 1 +FLAGS (\\Seen)\r\n"`, "U1 a1 NOOP", `U1 a2 UID STORE 1 +FLAGS (\Seen)`)
	s.silent()
	s.wantLogins(1)
	s.play("B1 a1 OK done", "B1 a2 OK done", "P a1 OK done", "P a2 OK done")
	s.play("C a3 COPY 1 box", "U1 a3 COPY 1 box")
	s.silent()
	s.wantLogins(1)
	s.play("B1 a3 OK done", "P a3 OK done")
	s.end()
}

// A command that is slow everywhere is begun a second time, and no third time.
func TestAConnectionIsGivenUpOnceOverACommand(t *testing.T) {
	s := newScene(t, setup{settings: Settings{SilenceMax: 2 * tick}})
	s.play("OPEN 3 4 7", "C a1 SEARCH TEXT x", "U1 a1 SEARCH TEXT x", "U2 ~q NOOP", "B2 ~q OK done",
		"REOPEN 3 3 4 7", "U3 a1 SEARCH TEXT x")
	s.silent()
	s.wantLogins(3)
	s.play("B3 * SEARCH 1", "B3 a1 OK done", "P * SEARCH 1", "P a1 OK done")
	s.end()
}

// So is SELECT, and a message that is not asked for, which are offered anew each time.
func TestAConnectionIsGivenUpOnceOverSELECTAndAPPEND(t *testing.T) {
	s := newScene(t, setup{settings: Settings{SilenceMax: 2 * tick, HoldMax: time.Minute}})
	s.play("C s SELECT INBOX", "U1 s SELECT INBOX", "U2 ~q NOOP", "B2 ~q OK done", "U3 s SELECT INBOX")
	s.silent()
	s.wantLogins(3)
	s.play("B3 * OK [UIDVALIDITY 100] x", "B3 s OK [READ-WRITE] done", "P * OK [UIDVALIDITY 100] x", "P s OK [READ-WRITE] done")
	s.play("C a APPEND box {3}", "U3 a APPEND box {3}", "U4 ~r NOOP", "B4 ~r OK done", "U5 a APPEND box {3}")
	s.silent()
	s.wantLogins(5)
	s.play("B5 + go", "P + OK", "C abc", "U5 abc", "B5 a OK done", "P a OK done")
	s.end()
}

// A backend that is silent on every connection is asked again, and waited for.
func TestABackendThatIsSlowIsAskedAgain(t *testing.T) {
	s := newScene(t, setup{settings: Settings{SilenceMax: 2 * tick}})
	s.play("OPEN 3 4 7", "C a1 NOOP", "U1 a1 NOOP", "U2 ~q NOOP", "B2-END", "U3 ~r NOOP", "B3-END", "U4 ~s NOOP", "B4 ~s OK done",
		"REOPEN 5 3 4 7", "U5 a1 NOOP", "B5 a1 OK done", "P a1 OK done")
	s.end()
}
