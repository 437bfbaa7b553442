package mux

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"imapgate/internal/event"
	"imapgate/internal/testkit"
)

// grantedSlots returns the indices of the granted slots.
func grantedSlots(slots []*attachSlot) (numbers []int) {
	for i, t := range slots {
		if t.isGranted() {
			numbers = append(numbers, i)
		}
	}
	return numbers
}

func TestCommandsAttachBeforeSessionsInIdle(t *testing.T) {
	q := newAttachQueue(4)
	granted := 0
	var idle, commands []*attachSlot
	for range 6 {
		idle = append(idle, q.enqueue(func() { granted++ }))
	}
	for range 4 {
		commands = append(commands, q.enqueue(nil))
	}
	want := func(what string, wantIdle, wantCommands []int) {
		t.Helper()
		if i, c := grantedSlots(idle), grantedSlots(commands); !slices.Equal(i, wantIdle) || !slices.Equal(c, wantCommands) {
			t.Errorf("%s: slots of sessions in IDLE %v, of commands %v", what, i, c)
		}
	}
	want("half is for commands", []int{0, 1}, []int{0, 1})
	idle[0].release()
	want("a slot of a session in IDLE goes to a command", []int{0, 1}, []int{0, 1, 2})
	commands[0].releaseAttached()
	want("a slot of a command goes to a command", []int{0, 1}, []int{0, 1, 2, 3})
	idle[2].release() // not granted
	idle[2].release()
	commands[1].release()
	want("without commands the next in IDLE attaches", []int{0, 1, 3}, []int{0, 1, 2, 3})
	for _, slot := range append(idle, commands...) {
		slot.release()
		slot.release()
	}
	want("all sessions in the end", []int{0, 1, 3, 4, 5}, []int{0, 1, 2, 3})
	if q.slotsInUse != 0 || q.idleSlotsInUse != 0 || granted != 5 {
		t.Errorf("%d slots are in use, %d in IDLE, %d were granted", q.slotsInUse, q.idleSlotsInUse, granted)
	}
}

func TestTimeInAMovingQueueDoesNotCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const timeout = 10 * time.Second
		q := newAttachQueue(1)
		first := q.enqueue(nil)
		second, third := q.enqueue(nil), q.enqueue(nil)
		now := time.Now()
		h := &holdTimer{startedAt: now, timeout: timeout, deadline: now.Add(time.Minute)}
		want := func(what string, slot *attachSlot, remaining time.Duration) {
			t.Helper()
			if got := h.remaining(slot.waitedWhileMoving()); got != remaining {
				t.Errorf("%s: %v are left, want %v", what, got, remaining)
			}
		}
		<-time.After(8 * time.Second)
		want("nothing has moved", third, 2*time.Second)
		first.releaseAttached()
		want("an attach has worked", third, timeout)
		<-time.After(3 * time.Second)
		want("since then nothing has", third, 7*time.Second)
		second.release() // a failed attach
		want("a failure moves nothing", third, 7*time.Second)
		q.enqueue(nil).releaseAttached()
		want("a later success does not count for a granted slot", third, 7*time.Second)
		h.deadline = now.Add(12 * time.Second)
		want("there is a bound", third, time.Second)
	})
}

// TestACommandIsNotStarvedBySessionsInIdle blocks half of the slots with sessions in
// IDLE, whose backend does not answer. A command gets another slot at once.
func TestACommandIsNotStarvedBySessionsInIdle(t *testing.T) {
	checkGoroutineLeaks(t)
	h := newHarness(t, setup{settings: Settings{MaxConcurrentReattaches: 2, CommandHoldTimeout: time.Hour, IdleReattachTimeout: time.Hour}}, nil)
	defer h.stub.close()
	var idlers []*testClient
	peers := 0
	opens := func() (*testClient, *scriptedConn) {
		a := h.logIn()
		peers++
		peer, err := h.stub.peer(peers)
		testkit.NoError(t, err)
		relayCommand(t, a.scriptedConn, peer, "s SELECT INBOX", append(selectLines("0", "1", "7"), "s OK [READ-WRITE] done")...)
		return a, peer
	}
	var lost []*scriptedConn
	for range 6 {
		a, peer := opens()
		a.scriptedConn.send("i IDLE\r\n")
		testkit.NoError(t, a.scriptedConn.expect("+ idling\r\n"))
		_, err := peer.readLine()
		testkit.NoError(t, err)
		peer.send("+ go ahead\r\n")
		idlers, lost = append(idlers, a), append(lost, peer)
	}
	a, peer := opens()
	for _, l := range append(lost, peer) {
		l.queueClose()
	}
	stuck, err := h.stub.peer(peers + 1)
	testkit.NoError(t, err)
	_, err = stuck.readLine() // SELECT, without an answer
	testkit.NoError(t, err)
	a.scriptedConn.send("a1 NOOP\r\n")
	upstream, err := h.stub.peer(peers + 2)
	testkit.NoError(t, err)
	line, err := upstream.readLine()
	testkit.NoError(t, err)
	tag := line[:len(line)-len(" SELECT \"INBOX\"\r\n")]
	for _, l := range append(selectLines("0", "1", "7"), tag+" OK [READ-WRITE] done") {
		upstream.send(l + "\r\n")
	}
	testkit.NoError(t, upstream.expect("a1 NOOP\r\n"))
	upstream.send("a1 OK done\r\n")
	testkit.NoError(t, a.scriptedConn.expect("a1 OK done\r\n"))
	all := append(idlers, a)
	h.deps.Sessions.AbortAll(event.Drained)
	for _, a := range all {
		h.awaitEnd(a)
	}
	h.close(all...)
	if n := h.hub.backends["stub"].attachQueue.slotsInUse; n != 0 {
		t.Errorf("%d slots are in use in the end", n)
	}
}

// relayCommand runs a command that is relayed.
func relayCommand(t *testing.T, client, backend *scriptedConn, command string, answer ...string) {
	t.Helper()
	client.send(command + "\r\n")
	testkit.NoError(t, backend.expect(command+"\r\n"))
	for _, line := range answer {
		backend.send(line + "\r\n")
	}
	for _, line := range answer {
		if got, err := client.readLine(); err != nil || got != line+"\r\n" {
			t.Fatal(fmt.Errorf("received %q, %w", got, err))
		}
	}
}

// TestAResyncThatHasBegunIsCompleted shows that a client is not disconnected during a
// resync, however long its command has waited.
func TestAResyncThatHasBegunIsCompleted(t *testing.T) {
	const hold = 2 * time.Second
	s := newScriptedTest(t, setup{settings: Settings{CommandHoldTimeout: hold}})
	s.run("OPEN 3 4 0", "B1-END", "ARRIVED 1", "C a1 NOOP", "REOPEN 2 3 4 0", "U2 ~f FETCH 1:3 (UID FLAGS)")
	<-time.After(hold + hold/4)
	s.run(`B2 * 1 FETCH (UID 1 FLAGS (\Seen))`, "B2 ~f OK done", "U2 a1 NOOP", "B2 a1 OK done",
		`P * 1 FETCH (UID 1 FLAGS (\Seen))`, "P a1 OK done")
	s.end()
}

// TestASlotIsReleasedBeforeAlertsAreSent shows that the alerts of an attach, for which the
// client may be too slow, do not keep the slot from other sessions.
func TestASlotIsReleasedBeforeAlertsAreSent(t *testing.T) {
	s := newScriptedTest(t, setup{})
	s.run("OPEN 0 1 7", "B1-END", "ARRIVED 1", "C a1 NOOP", `U2 ~s SELECT "INBOX"`, "B2 * OK [ALERT] first")
	_ = s.scriptedConn.conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	if b, err := s.scriptedConn.r.Peek(1); err == nil {
		t.Errorf("the client received %q during an attach", b)
	}
	for _, line := range selectLines("0", "1", "7") {
		s.run("B2 " + line)
	}
	s.run("B2 ~s OK [READ-WRITE] done", "P * OK [ALERT] first")
	if used := slotsInUse(s.harness, "stub"); used != 0 {
		t.Errorf("%d slots are in use after the alert", used)
	}
	s.run("U2 a1 NOOP", "B2 a1 OK done", "P a1 OK done",
		"B2-END", "ARRIVED 2", "C a2 NOOP", `U3 ~t SELECT "INBOX"`, "B3 * OK [ALERT] last", "B3 ~t NO gone", // a failed attach
		"P * OK [ALERT] last", "P * BYE Mailbox has been deleted.", "END", "ENDED mailbox_gone")
	s.end()
}

// slotsInUse returns the number of slots in use at a backend.
func slotsInUse(h *harness, backend string) int {
	q := h.hub.backends[backend].attachQueue
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.slotsInUse
}

// awaitIdleWaiter waits until a session in IDLE waits for a slot.
func awaitIdleWaiter(t *testing.T, q *attachQueue) {
	t.Helper()
	testkit.Eventually(t, "a session in IDLE to wait for a slot", func() bool {
		q.mu.Lock()
		defer q.mu.Unlock()
		return q.waitingIdle.Len() == 1
	})
}

// startIdleSession starts a session in IDLE at a backend with one slot.
func startIdleSession(t *testing.T) *scriptedTest {
	t.Helper()
	s := newScriptedTest(t, setup{settings: Settings{MaxConcurrentReattaches: 1}})
	s.run("OPEN 0 1 7", "C a1 IDLE", "P + idling", "U1 ~i IDLE", "B1 + idling")
	return s
}

// TestAMoveThatFailsReleasesItsSlot moves a session in IDLE to another backend. The route
// changes again while the session waits for a slot there, so it never uses it.
func TestAMoveThatFailsReleasesItsSlot(t *testing.T) {
	s := startIdleSession(t)
	west := s.hub.backends["west"].attachQueue
	other := west.enqueue(nil)
	s.run("MOVED west", "MOVE", "U1 DONE", "B1 ~i OK done", "U1-END")
	awaitIdleWaiter(t, west)
	s.run("MOVED elsewhere")
	other.release()
	s.run("P * BYE [UNAVAILABLE] Mailbox has been moved, please reconnect.", "END", "ENDED moved")
	s.end()
	if used := slotsInUse(s.harness, "west"); used != 0 {
		t.Errorf("%d slots are in use in the end", used)
	}
}

// TestASessionThatMovesLeavesTheQueue moves a session in IDLE that waits for a slot at the
// backend it has lost.
func TestASessionThatMovesLeavesTheQueue(t *testing.T) {
	s := startIdleSession(t)
	q := s.hub.backends["stub"].attachQueue
	other := q.enqueue(nil)
	s.run("B1-END")
	awaitIdleWaiter(t, q)
	s.run("MOVED west", "MOVE", "REOPEN 2 0 1 7", "U2 ~j IDLE", "B2 + idling", "AT west")
	other.release()
	if used := slotsInUse(s.harness, "stub"); used != 0 {
		t.Errorf("%d slots are in use at the backend that the session has left", used)
	}
	s.run("C DONE", "U2 DONE", "B2 ~j OK done", "P a1 OK Idle completed.")
	s.end()
}
