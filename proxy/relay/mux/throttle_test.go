package mux

import (
	"context"
	"sync/atomic"
	"testing"
	"time"
)

// fakeQuota is a quota with room for uploads of up to size bytes, and with fixed delays.
type fakeQuota struct {
	size          int64
	command, read time.Duration

	commands, in, out, overdrawn atomic.Int64
}

func (q *fakeQuota) Command() time.Duration {
	q.commands.Add(1)
	return q.command
}

func (q *fakeQuota) Read(n int) time.Duration {
	q.in.Add(int64(n))
	if n == 0 {
		return 0
	}
	return q.read
}

func (q *fakeQuota) Written(n int) time.Duration {
	q.out.Add(int64(n))
	return 0
}

func (q *fakeQuota) Upload(_ context.Context, n int64) bool { return n <= q.size }

func (q *fakeQuota) ForceUpload(n int64) { q.overdrawn.Add(n) }

func TestAnUploadBeyondTheQuotaIsRefusedAndTheSessionContinues(t *testing.T) {
	quota := &fakeQuota{size: 10}
	s := newScriptedTest(t, setup{quota: quota})
	s.run(
		`C! "a1 APPEND box {11}\r\n"`, "P a1 NO [OVERQUOTA] Upload limit of the day is reached.",
		`C! "a2 APPEND box {11+}\r\na3 LOGOUT\r\n\r\n"`, "P a2 NO [OVERQUOTA] Upload limit of the day is reached.",
		"OPEN 1 2 0",
		`C! "a4 APPEND box {3}\r\n"`, "U1 a4 APPEND box {3}", "B1 + go", "P + OK",
		`C! "abc {20}\r\n"`, "U1 abc {20}", "B1 + go", "P + OK", // a second message cannot be refused any more
		`C! "aaaaabbbbbcccccddddd\r\n"`, "U1 aaaaabbbbbcccccddddd",
		"B1 a4 OK done", "P a4 OK done",
	)
	if n := quota.overdrawn.Load(); n != 20 {
		t.Errorf("%d bytes of the second message were counted", n)
	}
	s.end()
	s.expectRecords([]string{"APPEND in:box {11} no OVERQUOTA", "APPEND in:box {11} no OVERQUOTA", "SELECT in:INBOX ok READ-WRITE",
		"APPEND in:box {3 20} ok", "LOGOUT ok"})
}

func TestASessionBeyondItsQuotaIsThrottledAndNotClosed(t *testing.T) {
	quota := &fakeQuota{read: 150 * time.Millisecond, command: 150 * time.Millisecond}
	s := newScriptedTest(t, setup{quota: quota, stallTimeout: 50 * time.Millisecond})
	s.run("OPEN 1 2 0")
	began := time.Now()
	for range 3 {
		s.run("C a1 CHECK", "U1 a1 CHECK", "B1 a1 OK done", "P a1 OK done")
	}
	if took := time.Since(began); took < 6*150*time.Millisecond {
		t.Errorf("three commands took %v, with two delays of 150 ms each", took)
	}
	s.end()
	if in, n := quota.in.Load(), quota.commands.Load(); in < int64(3*len("a1 CHECK\r\n")) || n < 3 {
		t.Errorf("the quota counted %d bytes and %d commands", in, n)
	}
}

func TestAThrottledSessionEndsOnRequest(t *testing.T) {
	s := newScriptedTest(t, setup{quota: &fakeQuota{read: time.Hour}})
	s.run("C a1 NOOP", "P a1 OK NOOP completed.")
	s.run("ORDER drained", "P * BYE [UNAVAILABLE] Server is going down.", "END", "ENDED drained")
	s.end()
}

func TestAResultCountsTheSessionsCommands(t *testing.T) {
	s := newScriptedTest(t, setup{})
	s.run("C a1 NOOP", "P a1 OK NOOP completed.", `C! "a2 NOOP\r\na3 APPEND box {2}\r\n"`, "P a2 OK NOOP completed.",
		"U1 a3 APPEND box {2}", "B1 + go", "P + OK", `C! "a9\r\n"`, "U1 a9", "B1 a3 OK done", "P a3 OK done")
	s.end() // sends LOGOUT
	if n := s.result.Commands; n != 4 {
		t.Errorf("the session had %d commands", n)
	}
	s = newScriptedTest(t, setup{})
	s.run("C a1 NOOP", "P a1 OK NOOP completed.", "C a2 XUNKNOWN", "U1 a2 XUNKNOWN", "B1 a2 OK done", "P a2 OK done",
		"PINNED unknown_command", "C a3 NOOP", "U1 a3 NOOP")
	s.end()
	if n := s.result.Commands; n != 2 {
		t.Errorf("%d commands were read of a session handed over after two", n)
	}
}
