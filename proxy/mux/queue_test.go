package mux

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"imapgate/internal/audit"
)

// granted are the numbers of the turns that may attach.
func granted(turns []*turn) (numbers []int) {
	for i, t := range turns {
		if t.isGranted() {
			numbers = append(numbers, i)
		}
	}
	return numbers
}

func TestCommandsAttachBeforeSessionsInIdle(t *testing.T) {
	q := newQueue(4)
	woken := 0
	var idle, commands []*turn
	for range 6 {
		idle = append(idle, q.enter(func() { woken++ }))
	}
	for range 4 {
		commands = append(commands, q.enter(nil))
	}
	want := func(what string, wantIdle, wantCommands []int) {
		t.Helper()
		if i, c := granted(idle), granted(commands); !slices.Equal(i, wantIdle) || !slices.Equal(c, wantCommands) {
			t.Errorf("%s: turns of sessions in IDLE %v, of commands %v", what, i, c)
		}
	}
	want("half is for commands", []int{0, 1}, []int{0, 1})
	idle[0].leave()
	want("a turn of one in IDLE goes to a command", []int{0, 1}, []int{0, 1, 2})
	commands[0].done()
	want("a turn of a command goes to a command", []int{0, 1}, []int{0, 1, 2, 3})
	idle[2].leave() // without a turn
	idle[2].leave()
	commands[1].leave()
	want("without commands the next in IDLE attaches", []int{0, 1, 3}, []int{0, 1, 2, 3})
	for _, turn := range append(idle, commands...) {
		turn.leave()
		turn.leave()
	}
	want("everybody in the end", []int{0, 1, 3, 4, 5}, []int{0, 1, 2, 3})
	if q.taken != 0 || q.idlers != 0 || woken != 5 {
		t.Errorf("%d turns are taken, %d in IDLE, %d were woken", q.taken, q.idlers, woken)
	}
}

func TestTimeInAQueueThatMovesDoesNotCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const most = 10 * time.Second
		q := newQueue(1)
		first := q.enter(nil)
		second, third := q.enter(nil), q.enter(nil)
		now := time.Now()
		h := &hold{began: now, most: most, until: now.Add(time.Minute)}
		want := func(what string, turn *turn, left time.Duration) {
			t.Helper()
			if got := h.left(turn.moving()); got != left {
				t.Errorf("%s: %v are left, want %v", what, got, left)
			}
		}
		<-time.After(8 * time.Second)
		want("nothing has moved", third, 2*time.Second)
		first.done()
		want("an attach has worked", third, most)
		<-time.After(3 * time.Second)
		want("since then nothing has", third, 7*time.Second)
		second.leave() // which failed
		want("a failure moves nothing", third, 7*time.Second)
		q.enter(nil).done()
		want("what works later, in its turn, counts", third, 7*time.Second)
		h.until = now.Add(12 * time.Second)
		want("there is a bound", third, time.Second)
	})
}

// Half of the turns are stuck: sessions in IDLE are attaching at a backend that does
// not answer them. A command has one of the others at once.
func TestACommandIsNotStarvedBySessionsInIdle(t *testing.T) {
	leavesNothing(t)
	y := newStage(t, setup{settings: Settings{MaxAttaches: 2, HoldMax: time.Hour, LostMax: time.Hour}}, nil)
	defer y.stub.close()
	var idlers []*actor
	peers := 0
	opens := func() (*actor, *party) {
		a := y.join()
		peers++
		peer, err := y.stub.peer(peers)
		must(t, err)
		exchange(t, a.party, peer, "s SELECT INBOX", append(mailboxLines("0", "1", "7"), "s OK [READ-WRITE] done")...)
		return a, peer
	}
	var lost []*party
	for range 6 {
		a, peer := opens()
		a.party.say("i IDLE\r\n")
		must(t, a.party.exactly("+ idling\r\n"))
		_, err := peer.line()
		must(t, err)
		peer.say("+ go ahead\r\n")
		idlers, lost = append(idlers, a), append(lost, peer)
	}
	a, peer := opens()
	for _, l := range append(lost, peer) {
		l.hangUp()
	}
	stuck, err := y.stub.peer(peers + 1)
	must(t, err)
	_, err = stuck.line() // SELECT, which is not answered
	must(t, err)
	a.party.say("a1 NOOP\r\n")
	its, err := y.stub.peer(peers + 2)
	must(t, err)
	line, err := its.line()
	must(t, err)
	tag := line[:len(line)-len(" SELECT \"INBOX\"\r\n")]
	for _, l := range append(mailboxLines("0", "1", "7"), tag+" OK [READ-WRITE] done") {
		its.say(l + "\r\n")
	}
	must(t, its.exactly("a1 NOOP\r\n"))
	its.say("a1 OK done\r\n")
	must(t, a.party.exactly("a1 OK done\r\n"))
	all := append(idlers, a)
	y.hub.EndAll(audit.Kicked)
	for _, a := range all {
		y.leave(a)
	}
	y.close(all...)
	if n := y.hub.backends["stub"].queue.taken; n != 0 {
		t.Errorf("%d turns are taken in the end", n)
	}
}

// exchange plays a command that passes through.
func exchange(t *testing.T, client, backend *party, command string, answer ...string) {
	t.Helper()
	client.say(command + "\r\n")
	must(t, backend.exactly(command+"\r\n"))
	for _, line := range answer {
		backend.say(line + "\r\n")
	}
	for _, line := range answer {
		if got, err := client.line(); err != nil || got != line+"\r\n" {
			t.Fatal(fmt.Errorf("heard %q, %w", got, err))
		}
	}
}

// A client that is being told what has changed is not sent away in the middle of it,
// however long its command has waited.
func TestAFlushThatHasBegunIsNotAbandoned(t *testing.T) {
	const hold = 2 * time.Second
	s := newScene(t, setup{settings: Settings{HoldMax: hold}})
	s.play("OPEN 3 4 0", "B1-END", "ARRIVED 1", "C a1 NOOP", "REOPEN 2 3 4 0", "U2 ~f FETCH 1:3 (UID FLAGS)")
	<-time.After(hold + hold/4)
	s.play(`B2 * 1 FETCH (UID 1 FLAGS (\Seen))`, "B2 ~f OK done", "U2 a1 NOOP", "B2 a1 OK done",
		`P * 1 FETCH (UID 1 FLAGS (\Seen))`, "P a1 OK done")
	s.end()
}
