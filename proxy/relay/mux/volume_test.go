package mux

import (
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"imapgate/internal/event"
	"imapgate/internal/testkit"
	"imapgate/proxy/relay/mux/pool"
)

// scriptedTest is a harness with one client and its upstreams, driven by Go code.
type scriptedTest struct {
	*dialogueRun
	t testing.TB
}

func newScriptedTest(t *testing.T, s setup) *scriptedTest {
	t.Helper()
	checkGoroutineLeaks(t)
	certs := newCertificates(t)
	p := &dialogueRun{splitMode: "whole", tags: map[string]string{}, harness: newHarness(t, s, certs)}
	p.testClient = p.logIn()
	t.Cleanup(p.stub.close)
	return &scriptedTest{p, t}
}

// run runs lines of a dialogue.
func (s *scriptedTest) run(lines ...string) {
	s.t.Helper()
	for _, line := range lines {
		if err := s.step(line); err != nil {
			s.t.Fatalf("%.80q: %v\n%s", line, err, s.logs)
		}
	}
}

// end ends the dialogue.
func (s *scriptedTest) end() {
	s.t.Helper()
	if err := s.finish(); err != nil {
		s.t.Error(err)
	}
	s.harness.close(s.testClient)
	s.checkNoMoreOutput()
}

// forEachTransport runs a test with TLS and without.
func forEachTransport(t *testing.T, test func(t *testing.T, transport string)) {
	for _, transport := range []string{"plain", "tls"} {
		t.Run(transport, func(t *testing.T) { test(t, transport) })
	}
}

const manyMessages = 100_000

func TestAHundredThousandExpungesPassThrough(t *testing.T) {
	forEachTransport(t, func(t *testing.T, transport string) {
		s := newScriptedTest(t, setup{transport: transport})
		s.run(fmt.Sprintf("OPEN %d %d 7", manyMessages, manyMessages+1), "C a1 NOOP", "U1 a1 NOOP")
		all := strings.Repeat("* 1 EXPUNGE\r\n", manyMessages)
		peer, err := s.stub.peer(1)
		testkit.NoError(t, err)
		peer.send(all + "a1 OK done\r\n")
		testkit.NoError(t, s.scriptedConn.expect(all+"a1 OK done\r\n"))
		s.run("C a2 NOOP", "U1 a2 NOOP", "B1 * 1 EXISTS", "B1 a2 OK done", "P * 1 EXISTS", "P a2 OK done")
		s.end()
	})
}

func TestAHundredThousandExpungesAreSentAfterAReattach(t *testing.T) {
	forEachTransport(t, func(t *testing.T, transport string) {
		s := newScriptedTest(t, setup{transport: transport, settings: Settings{UIDPrefetch: PrefetchEager}})
		s.run(fmt.Sprintf("OPEN %d %d 7", manyMessages, manyMessages+1),
			fmt.Sprintf("U1 ~q UID SEARCH RETURN (ALL) 1:%d", manyMessages), fmt.Sprintf("B1 * ESEARCH (TAG \"~q\") UID ALL 1:%d", manyMessages), "B1 ~q OK done",
			"B1-END", "ARRIVED 1", "C a1 NOOP", fmt.Sprintf("REOPEN 2 1 %d 7", manyMessages+1), "U2 ~r UID SEARCH RETURN (ALL) 1:1",
			fmt.Sprintf("B2 * ESEARCH (TAG \"~r\") UID ALL %d", manyMessages), "B2 ~r OK done")
		var want strings.Builder
		for n := manyMessages - 1; n > 0; n-- {
			fmt.Fprintf(&want, "* %d EXPUNGE\r\n", n)
		}
		testkit.NoError(t, s.scriptedConn.expect(want.String()))
		s.run("U2 a1 NOOP", "B2 a1 OK done", "P a1 OK done")
		s.end()
	})
}

func TestALineLongerThanTheBufferPassesThrough(t *testing.T) {
	forEachTransport(t, func(t *testing.T, transport string) {
		s := newScriptedTest(t, setup{transport: transport})
		s.run("OPEN 3 4 7", "C a1 SEARCH ALL", "U1 a1 SEARCH ALL")
		long := "* SEARCH" + strings.Repeat(" 1", 200<<10) + "\r\n* 1 FETCH (FLAGS ())\r\na1 OK done\r\n"
		peer, err := s.stub.peer(1)
		testkit.NoError(t, err)
		peer.send(long)
		testkit.NoError(t, s.scriptedConn.expect(long))
		s.end()
	})
}

func TestVanishedLongerThanTheBufferPassesThroughAndTheSessionIsSpliced(t *testing.T) {
	s := newScriptedTest(t, setup{})
	s.run(fmt.Sprintf("OPEN %d %d 7", manyMessages, manyMessages+1), "C a1 NOOP", "U1 a1 NOOP")
	long := "* VANISHED 1" + strings.Repeat(",22222", 20<<10) + "\r\na1 OK done\r\n"
	peer, err := s.stub.peer(1)
	testkit.NoError(t, err)
	peer.send(long)
	testkit.NoError(t, s.scriptedConn.expect(long))
	s.run("PINNED violation")
	s.end()
}

func TestALossInALongLineEndsTheSession(t *testing.T) {
	s := newScriptedTest(t, setup{})
	s.run("OPEN 3 4 7", "C a1 SEARCH ALL", "U1 a1 SEARCH ALL")
	long := "* SEARCH" + strings.Repeat(" 1", 200<<10)
	peer, err := s.stub.peer(1)
	testkit.NoError(t, err)
	peer.send(long)
	peer.queueClose()
	got, err := s.scriptedConn.readAll()
	if !strings.HasPrefix(long, got) || len(got) < 64<<10 {
		t.Errorf("received %d bytes, %v", len(got), err)
	}
	s.closed, s.reason = true, string(event.UpstreamLost)
	s.end()
}

func TestALossInALargeAnswerToSelectEndsTheSession(t *testing.T) {
	s := newScriptedTest(t, setup{})
	s.run("C s SELECT INBOX (QRESYNC (100 1))", "U1 s SELECT INBOX (QRESYNC (100 1))")
	line := "* 1 FETCH (UID 1 FLAGS (\\Seen) MODSEQ (3))\r\n"
	peer, err := s.stub.peer(1)
	testkit.NoError(t, err)
	peer.send(strings.Repeat(line, maxBufferedSelect/len(line)+2))
	testkit.NoError(t, s.scriptedConn.expect(strings.Repeat(line, maxBufferedSelect/len(line)+1)))
	peer.queueClose()
	s.run("CUT", "ENDED upstream_lost")
	s.end()
}

func TestAClientsLineThatNeverEndsEndsTheSession(t *testing.T) {
	s := newScriptedTest(t, setup{})
	s.scriptedConn.send("a1 CREATE " + strings.Repeat("x", maxSkipped+200<<10))
	s.run("P a1 BAD [TOOBIG] Line is too long.", "P * BYE Too many or too long lines that are no commands.", "END", "ENDED client_protocol")
	s.end()
}

// longUIDFetch returns a command line of about so many octets, as webmail clients send
// them.
func longUIDFetch(tag string, octets int) string {
	return tag + " UID FETCH " + strings.Repeat("1000001,", octets/len("1000001,")) + "1 FLAGS\r\n"
}

func TestALineThatIsTooLongIsRefusedAndSkipped(t *testing.T) {
	const refused = " BAD [TOOBIG] Line is too long."
	s := newScriptedTest(t, setup{})
	s.run("OPEN 1 2 7")
	s.scriptedConn.send(longUIDFetch("a1", 64<<10) + "a2 CHECK\r\n")
	s.run("P a1"+refused, "U1 a2 CHECK", "B1 a2 OK done", "P a2 OK done")
	s.scriptedConn.send("a3 CREATE {3+}\r\nabc" + strings.Repeat("x", 200<<10) + " {4+}\r\na NO\r\na4 CHECK\r\n")
	s.run("P a3"+refused, "U1 a4 CHECK", "B1 a4 OK done", "P a4 OK done")
	s.scriptedConn.send("a5 XFROB " + strings.Repeat("x", 100<<10) + " {10+}\r\nb LOGOUT\r\n\r\na6 CHECK\r\n")
	s.run("P a5"+refused, "U1 a6 CHECK", "B1 a6 OK done", "P a6 OK done")
	s.scriptedConn.send("a7 APPEND box {3+}\r\nabc (\\Seen" + strings.Repeat(" x", 50<<10) + ") {3+}\r\ndef\r\na8 CHECK\r\n")
	s.run(`U1! "a7 APPEND box {3+}\r\nabc (\r\n"`, "B1 a7 BAD no", "P a7 BAD no", "U1 a8 CHECK", "B1 a8 OK done", "P a8 OK done")
	s.run("C a9 IDLE", "P + idling", "U1 ~s UID SEARCH RETURN (ALL) 1:1", `B1 * ESEARCH (TAG "~s") UID ALL 1`, "B1 ~s OK done",
		"U1 ~i IDLE", "B1 + go")
	s.scriptedConn.send(strings.Repeat("x", 100<<10) + "\r\n")
	s.run("U1 DONE", "B1 ~i OK done", "P a9 BAD Expected DONE.")
	s.end()
}

func TestTheLongestAllowedLineIsRelayed(t *testing.T) {
	s := newScriptedTest(t, setup{maxLine: 1 << 20})
	s.run("OPEN 1 2 7")
	for i, octets := range []int{60 << 10, 64 << 10, 100 << 10, 512 << 10, 1<<20 - 64} {
		line := longUIDFetch(fmt.Sprint("a", i), octets)
		s.scriptedConn.send(line)
		peer, err := s.stub.peer(1)
		testkit.NoError(t, err)
		testkit.NoError(t, peer.expect(line))
		s.run(fmt.Sprintf("B1 a%d OK done", i), fmt.Sprintf("P a%d OK done", i))
	}
	s.scriptedConn.send(longUIDFetch("b", 1<<20))
	s.run("P b BAD [TOOBIG] Line is too long.", "C c CHECK", "U1 c CHECK", "B1 c OK done", "P c OK done")
	s.end()
}

func TestTooManyInvalidCommandsEndTheSession(t *testing.T) {
	s := newScriptedTest(t, setup{})
	for range maxBadCommands {
		s.run("C *", "P * BAD Invalid tag.")
	}
	s.run("C *", "P * BYE …", "END", "ENDED client_protocol")
	s.end()
}

func TestABufferedCommandThatIsTooLargeIsRefused(t *testing.T) {
	s := newScriptedTest(t, setup{})
	s.scriptedConn.send(fmt.Sprintf("a1 CREATE {%d+}\r\n%s\r\na2 NOOP\r\n", maxBufferedLiterals+1, strings.Repeat("x", maxBufferedLiterals+1)))
	s.run("P a1 BAD [TOOBIG] Command is too large.", "P a2 OK NOOP completed.")
	s.end()
}

func TestAClientThatDoesNotReadIsDisconnected(t *testing.T) {
	s := newScriptedTest(t, setup{stallTimeout: time.Second})
	s.run("OPEN 1 2 7", "C a1 FETCH 1 BODY[]", "U1 a1 FETCH 1 BODY[]")
	peer, err := s.stub.peer(1)
	testkit.NoError(t, err)
	const size = 64 << 20             // more than the kernels buffer
	mail := strings.Repeat("x", size) // before the announcement, or the backend might stall first
	peer.send(fmt.Sprintf("* 1 FETCH (BODY[] {%d}\r\n", size))
	peer.send(mail)
	if r := s.awaitEnd(s.testClient); r.Reason != event.ClientStalled {
		t.Errorf("ended for %q (%v)", r.Reason, r.Err)
	}
	_, _ = peer.readAll() // the gateway's side is closed, or the stub's pending output would keep it open
	s.harness.close(s.testClient)
}

func TestASlowClientReceivesTheWholeResponse(t *testing.T) {
	s := newScriptedTest(t, setup{stallTimeout: time.Second})
	s.run("OPEN 1 2 7", "C a1 FETCH 1 BODY[]", "U1 a1 FETCH 1 BODY[]")
	peer, err := s.stub.peer(1)
	testkit.NoError(t, err)
	const size = 16 << 20
	peer.send(fmt.Sprintf("* 1 FETCH (BODY[] {%d}\r\n%s)\r\na1 OK done\r\n", size, strings.Repeat("x", size)))
	s.run(fmt.Sprintf("P * 1 FETCH (BODY[] {%d}", size))
	pause := time.NewTicker(100 * time.Millisecond)
	defer pause.Stop()
	for left := size; left > 0; left -= size / 16 {
		_ = s.scriptedConn.conn.SetReadDeadline(time.Now().Add(testTimeout))
		if _, err := io.CopyN(io.Discard, s.scriptedConn.r, size/16); err != nil {
			t.Fatal(err)
		}
		<-pause.C
	}
	s.run("P )", "P a1 OK done")
	s.end()
}

func TestTwoSessionsThatWakeAtTheLimitWaitForEachOther(t *testing.T) {
	s := newScriptedTest(t, setup{settings: Settings{Settings: pool.Settings{MaxPerUser: 3}, CommandHoldTimeout: 5 * time.Second}})
	s.run("OPEN 1 2 7")
	other := s.logIn()
	other.send("s SELECT INBOX\r\n")
	s.run("U2 s SELECT INBOX", "B2 * OK [UIDVALIDITY 100] x", "B2 s OK [READ-WRITE] done", "B1-END", "ARRIVED 1")
	third := s.logIn() // takes the slot
	third.send("l NAMESPACE\r\n")
	s.run("U3 l NAMESPACE", "B3 l OK done", "C a1 NOOP")
	for range 2 {
		_, err := other.readLine()
		testkit.NoError(t, err)
	}
	testkit.NoError(t, third.expect("l OK done\r\n"))
	third.send("o LOGOUT\r\n") // releases it
	s.run("REOPEN 4 1 2 7", "U4 a1 NOOP", "B4 a1 OK done", "P a1 OK done")
	other.queueClose()
	third.queueClose()
	s.awaitEnd(other)
	s.awaitEnd(third)
	other.close()
	third.close()
	s.end()
}
