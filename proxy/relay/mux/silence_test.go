package mux

import (
	"imapgate/proxy/relay"
	"testing"
	"time"
)

// awaitSilenceCheck waits longer than a session takes to drop a silent connection.
func (s *scriptedTest) awaitSilenceCheck() {
	<-time.After(4*s.setup.settings.SilenceTimeout + 2*time.Second)
}

// wantLogins requires n connections to have been made so far.
func (s *scriptedTest) wantLogins(n int) {
	s.t.Helper()
	s.stub.mu.Lock()
	defer s.stub.mu.Unlock()
	if len(s.stub.peers) != n {
		s.t.Errorf("%d connections were made, want %d", len(s.stub.peers), n)
	}
}

// A hanging process may still execute a command after the client has been told that the
// outcome is unknown.
func TestAConnectionIsKeptDuringAWriteCommand(t *testing.T) {
	s := newScriptedTest(t, setup{settings: Settings{SilenceTimeout: 2 * relay.Tick}})
	s.run("OPEN 3 4 7", `C! "a1 NOOP\r\na2 UID STORE 1 +FLAGS (\\Seen)\r\n"`, "U1 a1 NOOP", `U1 a2 UID STORE 1 +FLAGS (\Seen)`)
	s.awaitSilenceCheck()
	s.wantLogins(1)
	s.run("B1 a1 OK done", "B1 a2 OK done", "P a1 OK done", "P a2 OK done")
	s.run("C a3 COPY 1 box", "U1 a3 COPY 1 box")
	s.awaitSilenceCheck()
	s.wantLogins(1)
	s.run("B1 a3 OK done", "P a3 OK done")
	s.end()
}

// A command that is slow everywhere is sent a second time, but not a third time.
func TestAConnectionIsDroppedOncePerCommand(t *testing.T) {
	s := newScriptedTest(t, setup{settings: Settings{SilenceTimeout: 2 * relay.Tick}})
	s.run("OPEN 3 4 7", "C a1 SEARCH TEXT x", "U1 a1 SEARCH TEXT x", "U2 ~q NOOP", "B2 ~q OK done",
		"REOPEN 3 3 4 7", "U3 a1 SEARCH TEXT x")
	s.awaitSilenceCheck()
	s.wantLogins(3)
	s.run("B3 * SEARCH 1", "B3 a1 OK done", "P * SEARCH 1", "P a1 OK done")
	s.end()
}

// SELECT and a message that is not requested are resent only once, too.
func TestAConnectionIsDroppedOncePerSELECTAndAPPEND(t *testing.T) {
	s := newScriptedTest(t, setup{settings: Settings{SilenceTimeout: 2 * relay.Tick, CommandHoldTimeout: time.Minute}})
	s.run("C s SELECT INBOX", "U1 s SELECT INBOX", "U2 ~q NOOP", "B2 ~q OK done", "U3 s SELECT INBOX")
	s.awaitSilenceCheck()
	s.wantLogins(3)
	s.run("B3 * OK [UIDVALIDITY 100] x", "B3 s OK [READ-WRITE] done", "P * OK [UIDVALIDITY 100] x", "P s OK [READ-WRITE] done")
	s.run("C a APPEND box {3}", "U3 a APPEND box {3}", "U4 ~r NOOP", "B4 ~r OK done", "U5 a APPEND box {3}")
	s.awaitSilenceCheck()
	s.wantLogins(5)
	s.run("B5 + go", "P + OK", "C abc", "U5 abc", "B5 a OK done", "P a OK done")
	s.end()
}

// A backend that is silent on every connection is checked repeatedly, and the session
// waits.
func TestASlowBackendIsCheckedAgain(t *testing.T) {
	s := newScriptedTest(t, setup{settings: Settings{SilenceTimeout: 2 * relay.Tick}})
	s.run("OPEN 3 4 7", "C a1 NOOP", "U1 a1 NOOP", "U2 ~q NOOP", "B2-END", "U3 ~r NOOP", "B3-END", "U4 ~s NOOP", "B4 ~s OK done",
		"REOPEN 5 3 4 7", "U5 a1 NOOP", "B5 a1 OK done", "P a1 OK done")
	s.end()
}
