package mux

import (
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"imapgate/internal/audit"
)

// scene is a stage on which one client and its upstreams are played in Go.
type scene struct {
	*performance
	t testing.TB
}

func newScene(t *testing.T, s setup) *scene {
	t.Helper()
	leavesNothing(t)
	certs := newCertificates(t)
	p := &performance{way: "whole", tags: map[string]string{}, stage: newStage(t, s, certs)}
	p.actor = p.join()
	t.Cleanup(p.stub.close)
	return &scene{p, t}
}

// play does lines of a dialogue.
func (s *scene) play(lines ...string) {
	s.t.Helper()
	for _, line := range lines {
		if err := s.act(line); err != nil {
			s.t.Fatalf("%.80q: %v\n%s", line, err, s.logs)
		}
	}
}

// end is the end of a dialogue.
func (s *scene) end() {
	s.t.Helper()
	if err := s.finish(); err != nil {
		s.t.Error(err)
	}
	s.stage.close(s.actor)
	s.nothingElse()
}

// each runs a test where there is TLS and where there is none.
func each(t *testing.T, test func(t *testing.T, kind string)) {
	for _, kind := range []string{"plain", "tls"} {
		t.Run(kind, func(t *testing.T) { test(t, kind) })
	}
}

const many = 100_000

func TestAHundredThousandExpungesPassThrough(t *testing.T) {
	each(t, func(t *testing.T, kind string) {
		s := newScene(t, setup{kind: kind})
		s.play(fmt.Sprintf("OPEN %d %d 7", many, many+1), "C a1 NOOP", "U1 a1 NOOP")
		all := strings.Repeat("* 1 EXPUNGE\r\n", many)
		peer, err := s.stub.peer(1)
		must(t, err)
		peer.say(all + "a1 OK done\r\n")
		must(t, s.party.exactly(all+"a1 OK done\r\n"))
		s.play("C a2 NOOP", "U1 a2 NOOP", "B1 * 1 EXISTS", "B1 a2 OK done", "P * 1 EXISTS", "P a2 OK done")
		s.end()
	})
}

func TestAHundredThousandExpungesAreToldOnTheWayBack(t *testing.T) {
	each(t, func(t *testing.T, kind string) {
		s := newScene(t, setup{kind: kind, settings: Settings{Learn: Eager}})
		s.play(fmt.Sprintf("OPEN %d %d 7", many, many+1),
			fmt.Sprintf("U1 ~q UID SEARCH RETURN (ALL) 1:%d", many), fmt.Sprintf("B1 * ESEARCH (TAG \"~q\") UID ALL 1:%d", many), "B1 ~q OK done",
			"B1-END", "ARRIVED 1", "C a1 NOOP", fmt.Sprintf("REOPEN 2 1 %d 7", many+1), "U2 ~r UID SEARCH RETURN (ALL) 1:1",
			fmt.Sprintf("B2 * ESEARCH (TAG \"~r\") UID ALL %d", many), "B2 ~r OK done")
		var want strings.Builder
		for n := many - 1; n > 0; n-- {
			fmt.Fprintf(&want, "* %d EXPUNGE\r\n", n)
		}
		must(t, s.party.exactly(want.String()))
		s.play("U2 a1 NOOP", "B2 a1 OK done", "P a1 OK done")
		s.end()
	})
}

func TestALineLongerThanTheBufferPassesThrough(t *testing.T) {
	each(t, func(t *testing.T, kind string) {
		s := newScene(t, setup{kind: kind})
		s.play("OPEN 3 4 7", "C a1 SEARCH ALL", "U1 a1 SEARCH ALL")
		long := "* SEARCH" + strings.Repeat(" 1", 200<<10) + "\r\n* 1 FETCH (FLAGS ())\r\na1 OK done\r\n"
		peer, err := s.stub.peer(1)
		must(t, err)
		peer.say(long)
		must(t, s.party.exactly(long))
		s.end()
	})
}

func TestVanishedLongerThanTheBufferPassesThroughAndTheSessionIsSpliced(t *testing.T) {
	s := newScene(t, setup{})
	s.play(fmt.Sprintf("OPEN %d %d 7", many, many+1), "C a1 NOOP", "U1 a1 NOOP")
	long := "* VANISHED 1" + strings.Repeat(",22222", 20<<10) + "\r\na1 OK done\r\n"
	peer, err := s.stub.peer(1)
	must(t, err)
	peer.say(long)
	must(t, s.party.exactly(long))
	s.play("PINNED violation")
	s.end()
}

func TestALossInALongLineEndsTheSession(t *testing.T) {
	s := newScene(t, setup{})
	s.play("OPEN 3 4 7", "C a1 SEARCH ALL", "U1 a1 SEARCH ALL")
	long := "* SEARCH" + strings.Repeat(" 1", 200<<10)
	peer, err := s.stub.peer(1)
	must(t, err)
	peer.say(long)
	peer.hangUp()
	got, err := s.party.rest()
	if !strings.HasPrefix(long, got) || len(got) < 64<<10 {
		t.Errorf("heard %d bytes, %v", len(got), err)
	}
	s.over, s.reason = true, string(audit.UpstreamLost)
	s.end()
}

func TestALossInALargeAnswerToSelectEndsTheSession(t *testing.T) {
	s := newScene(t, setup{})
	s.play("C s SELECT INBOX (QRESYNC (100 1))", "U1 s SELECT INBOX (QRESYNC (100 1))")
	line := "* 1 FETCH (UID 1 FLAGS (\\Seen) MODSEQ (3))\r\n"
	peer, err := s.stub.peer(1)
	must(t, err)
	peer.say(strings.Repeat(line, maxShown/len(line)+2))
	must(t, s.party.exactly(strings.Repeat(line, maxShown/len(line)+1)))
	peer.hangUp()
	s.play("CUT", "ENDED upstream_lost")
	s.end()
}

func TestAClientsLineThatNeverEndsEndsTheSession(t *testing.T) {
	s := newScene(t, setup{})
	s.party.say("a1 CREATE " + strings.Repeat("x", maxPassed+200<<10))
	s.play("P a1 BAD [TOOBIG] Line is too long.", "P * BYE Too many or too long lines that are no commands.", "END", "ENDED client_protocol")
	s.end()
}

// manyUIDs is a line of a command with so many octets or a few more, as webmails send
// them.
func manyUIDs(tag string, octets int) string {
	return tag + " UID FETCH " + strings.Repeat("1000001,", octets/len("1000001,")) + "1 FLAGS\r\n"
}

func TestALineThatIsTooLongIsAnsweredAndNothingElse(t *testing.T) {
	const refused = " BAD [TOOBIG] Line is too long."
	s := newScene(t, setup{})
	s.play("OPEN 1 2 7")
	s.party.say(manyUIDs("a1", 64<<10) + "a2 CHECK\r\n")
	s.play("P a1"+refused, "U1 a2 CHECK", "B1 a2 OK done", "P a2 OK done")
	s.party.say("a3 CREATE {3+}\r\nabc" + strings.Repeat("x", 200<<10) + " {4+}\r\na NO\r\na4 CHECK\r\n")
	s.play("P a3"+refused, "U1 a4 CHECK", "B1 a4 OK done", "P a4 OK done")
	s.party.say("a5 XFROB " + strings.Repeat("x", 100<<10) + " {10+}\r\nb LOGOUT\r\n\r\na6 CHECK\r\n")
	s.play("P a5"+refused, "U1 a6 CHECK", "B1 a6 OK done", "P a6 OK done")
	s.party.say("a7 APPEND box {3+}\r\nabc (\\Seen" + strings.Repeat(" x", 50<<10) + ") {3+}\r\ndef\r\na8 CHECK\r\n")
	s.play(`U1! "a7 APPEND box {3+}\r\nabc (\r\n"`, "B1 a7 BAD no", "P a7 BAD no", "U1 a8 CHECK", "B1 a8 OK done", "P a8 OK done")
	s.play("C a9 IDLE", "P + idling", "U1 ~s UID SEARCH RETURN (ALL) 1:1", `B1 * ESEARCH (TAG "~s") UID ALL 1`, "B1 ~s OK done",
		"U1 ~i IDLE", "B1 + go")
	s.party.say(strings.Repeat("x", 100<<10) + "\r\n")
	s.play("U1 DONE", "B1 ~i OK done", "P a9 BAD Expected DONE.")
	s.end()
}

func TestALineAsLongAsIsAllowedGoesThrough(t *testing.T) {
	s := newScene(t, setup{line: 1 << 20})
	s.play("OPEN 1 2 7")
	for i, octets := range []int{60 << 10, 64 << 10, 100 << 10, 512 << 10, 1<<20 - 64} {
		line := manyUIDs(fmt.Sprint("a", i), octets)
		s.party.say(line)
		peer, err := s.stub.peer(1)
		must(t, err)
		must(t, peer.exactly(line))
		s.play(fmt.Sprintf("B1 a%d OK done", i), fmt.Sprintf("P a%d OK done", i))
	}
	s.party.say(manyUIDs("b", 1<<20))
	s.play("P b BAD [TOOBIG] Line is too long.", "C c CHECK", "U1 c CHECK", "B1 c OK done", "P c OK done")
	s.end()
}

func TestCommandsThatAreNoneEndTheSession(t *testing.T) {
	s := newScene(t, setup{})
	for range maxBad {
		s.play("C *", "P * BAD Invalid tag.")
	}
	s.play("C *", "P * BYE …", "END", "ENDED client_protocol")
	s.end()
}

func TestACollectedCommandThatIsTooLargeIsRefused(t *testing.T) {
	s := newScene(t, setup{})
	s.party.say(fmt.Sprintf("a1 CREATE {%d+}\r\n%s\r\na2 NOOP\r\n", maxCollected+1, strings.Repeat("x", maxCollected+1)))
	s.play("P a1 BAD [TOOBIG] Command is too large.", "P a2 OK NOOP completed.")
	s.end()
}

func TestAClientThatDoesNotReadIsCutOff(t *testing.T) {
	s := newScene(t, setup{write: time.Second})
	s.play("OPEN 1 2 7", "C a1 FETCH 1 BODY[]", "U1 a1 FETCH 1 BODY[]")
	peer, err := s.stub.peer(1)
	must(t, err)
	const size = 64 << 20             // more than the kernels hold
	mail := strings.Repeat("x", size) // made before the announcement, or the backend might stall first
	peer.say(fmt.Sprintf("* 1 FETCH (BODY[] {%d}\r\n", size))
	peer.say(mail)
	if r := s.leave(s.actor); r.Reason != audit.ClientStalled {
		t.Errorf("ended for %q (%v)", r.Reason, r.Err)
	}
	_, _ = peer.rest() // our side is closed, or what the stub still writes would keep it
	s.stage.close(s.actor)
}

func TestASlowClientGetsAllOfIt(t *testing.T) {
	s := newScene(t, setup{write: time.Second})
	s.play("OPEN 1 2 7", "C a1 FETCH 1 BODY[]", "U1 a1 FETCH 1 BODY[]")
	peer, err := s.stub.peer(1)
	must(t, err)
	const size = 16 << 20
	peer.say(fmt.Sprintf("* 1 FETCH (BODY[] {%d}\r\n%s)\r\na1 OK done\r\n", size, strings.Repeat("x", size)))
	s.play(fmt.Sprintf("P * 1 FETCH (BODY[] {%d}", size))
	pause := time.NewTicker(100 * time.Millisecond)
	defer pause.Stop()
	for left := size; left > 0; left -= size / 16 {
		_ = s.party.conn.SetReadDeadline(time.Now().Add(patience))
		if _, err := io.CopyN(io.Discard, s.party.r, size/16); err != nil {
			t.Fatal(err)
		}
		<-pause.C
	}
	s.play("P )", "P a1 OK done")
	s.end()
}

func TestTwoSessionsThatWakeAtTheLimitWaitForEachOther(t *testing.T) {
	s := newScene(t, setup{settings: Settings{MaxPerUser: 3, HoldMax: 5 * time.Second}})
	s.play("OPEN 1 2 7")
	other := s.join()
	other.say("s SELECT INBOX\r\n")
	s.play("U2 s SELECT INBOX", "B2 * OK [UIDVALIDITY 100] x", "B2 s OK [READ-WRITE] done", "B1-END", "ARRIVED 1")
	third := s.join() // takes the place
	third.say("l NAMESPACE\r\n")
	s.play("U3 l NAMESPACE", "B3 l OK done", "C a1 NOOP")
	for range 2 {
		_, err := other.line()
		must(t, err)
	}
	must(t, third.exactly("l OK done\r\n"))
	third.say("o LOGOUT\r\n") // gives it back
	s.play("REOPEN 4 1 2 7", "U4 a1 NOOP", "B4 a1 OK done", "P a1 OK done")
	other.hangUp()
	third.hangUp()
	s.leave(other)
	s.leave(third)
	other.close()
	third.close()
	s.end()
}
