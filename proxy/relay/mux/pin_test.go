package mux

import (
	"runtime"
	"testing"
	"weak"

	"imapgate/internal/testkit"
)

// TestAPinnedSessionIsForgotten shows that a pinned session, which may last for hours, does
// not keep the state that only this package needs.
func TestAPinnedSessionIsForgotten(t *testing.T) {
	s := newScriptedTest(t, setup{})
	s.run("OPEN 1 2 7", "C a1 XFOO", "U1 a1 XFOO", "B1 a1 OK done", "P a1 OK done", "PINNED unknown_command")
	session := weak.Make(s.session)
	s.session = nil
	testkit.Eventually(t, "the session to be collected", func() bool { runtime.GC(); return session.Value() == nil })
	s.run("C a2 NOOP", "U1 a2 NOOP", "B1 a2 OK done", "P a2 OK done")
	s.end()
}
