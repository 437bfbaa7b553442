package proxy

import (
	"encoding/base64"
	"fmt"
	"io"
	"runtime"
	"strings"
	"testing"
	"time"

	"imapgate/internal/event"
	"imapgate/internal/testkit"
)

// The "resource exhaustion and parser abuse before the login" rows of the attack catalogue.

func TestEndlessLineIsRefused(t *testing.T) {
	b := newHarness(t, openTestBackend(t).addr())
	c := b.dialGreeted("none")
	c.write("a " + strings.Repeat("x", 8192-len("a \r\n")) + "\r\n") // as long as a line may be
	c.expectLine("a BAD …")
	c.write("b " + strings.Repeat("x", 8192-2)) // the maximum that is read of one
	c.expectLine("* BYE Line too long.")
	c.expectEOF()
	if why := b.lastRecord("connection_refused", c).field("reason"); why != string(event.LineTooLong) {
		t.Error(why)
	}
	for _, listener := range []string{"none", "starttls", "implicit"} {
		c := b.dialGreeted(listener)
		_, _ = io.WriteString(c.nc, "a LOGIN alice "+strings.Repeat("x", 1<<20)) // the gateway closes before its end
		c.expectNone("a ")
		if why := b.lastRecord("connection_refused", c).field("reason"); why != string(event.LineTooLong) {
			t.Errorf("%s: %s", listener, why)
		}
	}
}

func TestRefusedLiteralNeverBecomesCommands(t *testing.T) {
	b := newHarness(t, openTestBackend(t).addr())
	const tooBig, bad, lost = "a NO [TOOBIG] Literal too large.", "a BAD …", "* BYE Literal refused."
	for literal, want := range map[string]string{
		"{4294967295}": tooBig, "{8193}": tooBig, "~{8193}": tooBig, "{9223372036854775807}": tooBig,
		"{18446744073709551616}": bad, "{-1}": bad, "{}": bad, "{5 }": bad, "{ 5}": bad, "{0x5}": bad, "{05}": bad,
		"{5+}x": bad, "{5+} ": bad, "{5}{5}": bad, "{5": bad, "5}": bad, "{5-}": bad, "\"{5}": bad, "({5}": bad, "{{5}": bad, "x{5}": bad,
		"{+}": lost, "{4294967295+}": lost, "{8193+}": lost, "~{8193+}": lost, "{05+}": lost, "{-1+}": lost, "\"{5+}": lost,
		"{18446744073709551616+}": lost, "{5}{5+}": lost, "x{5+}": lost,
	} {
		if want == bad && (literal == "5}" || literal == "({5}") {
			continue // an atom, and a good literal in a list
		}
		c := b.dialGreeted("none")
		c.write("a LOGIN " + literal + "\r\n")
		c.expectLine(want)
		if want == lost {
			c.expectEOF()
		} else {
			c.write("b NOOP\r\n")
			c.expectLine("b OK Nothing done.")
		}
		c.close()
	}
}

func TestCommandLiteralsAreBounded(t *testing.T) {
	b := newHarness(t, openTestBackend(t).addr())
	for _, try := range []struct{ command, reply string }{
		{"a X {1+}\r\nx {1+}\r\nx {1+}\r\nx {1+}\r\nx\r\n", "a BAD Unexpected argument…"},
		{"a X {1+}\r\nx {1+}\r\nx {1+}\r\nx {1+}\r\nx {1+}\r\n", "* BYE Literal refused."},
		{"a X {1+}\r\nx {1+}\r\nx {1+}\r\nx {1+}\r\nx {1}\r\n", "a NO [TOOBIG] …"},
		{"a X {4096+}\r\n" + strings.Repeat("x", 4096) + " {4096+}\r\n" + strings.Repeat("x", 4096) + "\r\n", "a BAD Unexpected argument…"},
		{"a X {4096+}\r\n" + strings.Repeat("x", 4096) + " {4097+}\r\n", "* BYE Literal refused."},
	} {
		c := b.dialGreeted("none")
		c.write(try.command)
		c.expectLine(try.reply)
		c.close()
	}
}

func TestNestingUsesNoMemory(t *testing.T) {
	b := newHarness(t, openTestBackend(t).addr())
	c := b.dialGreeted("none")
	c.write("a NOOP ((((((\r\n")
	c.expectLine("a BAD Too many parentheses.")
	before := heapSize()
	const clients = 200
	for range clients {
		c := b.dialGreeted("none")
		c.write("a ID " + strings.Repeat("(", 8000)) // and no LF
	}
	if grown := int64(heapSize()) - int64(before); grown > clients*(32<<10) {
		t.Errorf("%d bytes a connection", grown/clients)
	}
}

func heapSize() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func TestUnreadCommandFloodEndsAtDeadline(t *testing.T) {
	b := newHarness(t, openTestBackend(t).addr(), func(s *harnessConfig) { s.cfg.PreauthTimeout = 700 * time.Millisecond })
	for _, listener := range []string{"none", "implicit"} {
		c := b.dialGreeted(listener)
		before := heapSize()
		flood := []byte(strings.Repeat("a NOOP\r\n", 1<<12))
		for range 1 << 12 {
			if _, err := c.nc.Write(flood); err != nil {
				break
			}
		}
		if grown := int64(heapSize()) - int64(before); grown > 4<<20 {
			t.Errorf("%s: the heap has grown by %d", listener, grown)
		}
		if why := b.lastRecord("connection_refused", c).field("reason"); why != string(event.PreauthTimeout) {
			t.Errorf("%s: %s", listener, why)
		}
		c.close()
	}
}

func TestTagLengthIsBounded(t *testing.T) {
	b := newHarness(t, openTestBackend(t).addr())
	c := b.dialGreeted("none")
	tag := strings.Repeat("t", 126)
	c.write(tag + " NOOP\r\n")
	c.expectLine(tag + " OK Nothing done.")
	c.write(tag + "t NOOP\r\n")
	c.expectLine("* BAD Invalid tag.")
}

func TestIDIsBounded(t *testing.T) {
	b := newHarness(t, openTestBackend(t).addr())
	id := func(pairs, key, value int) string {
		one := fmt.Sprintf("%q %q ", strings.Repeat("k", key), strings.Repeat("v", value))
		return "a ID (" + strings.TrimSpace(strings.Repeat(one, pairs)) + ")\r\n"
	}
	for command, ok := range map[string]bool{
		id(30, 2, 2): true, id(31, 2, 2): false, id(1, 30, 2): true, id(1, 31, 2): false, id(1, 2, 1024): true, id(1, 2, 1025): false,
		id(1, 2, 2048): false, id(7, 30, 1024): true,
	} {
		c := b.dialGreeted("none")
		c.write(command)
		if ok {
			c.expectLine("* ID …")
			c.expectLine("a OK …")
		} else {
			c.expectLine("a BAD …")
		}
		c.close()
	}
}

func TestFailedExchangeLeavesNoState(t *testing.T) {
	b := newHarness(t, openTestBackend(t).addr(), func(s *harnessConfig) { s.cfg.MaxAuthAttempts, s.cfg.MaxBadCommands = 1000, 1000 })
	b64 := base64.StdEncoding.EncodeToString
	c := b.dialGreeted("none")
	for _, lines := range [][]string{
		{"PLAIN !"}, {"PLAIN", "!"}, {"PLAIN", "*"}, {"PLAIN", "="}, {"PLAIN", ""}, {"PLAIN ="}, {"PLAIN " + b64([]byte("alice"))},
		{"PLAIN " + b64([]byte("alice\x00right"))}, {"PLAIN " + b64([]byte("\x00alice\x00right\x00more"))},
		{"PLAIN " + b64([]byte("\x00\x00\x00\x00"))}, {"PLAIN " + b64([]byte("\x00alice\x00\xff\xfe"))}, {"PLAIN " + b64([]byte("\x00\xff\x00right"))},
		{"PLAIN AGFsaWNlAHJpZ2h0AA"}, {"PLAIN AGFsaWNlAHJpZ2h0=="}, {"PLAIN AGFsaWNl AHJpZ2h0"},
		{"PLAIN", strings.Repeat("A", 8000)}, {"PLAIN " + strings.Repeat("A", 8000)},
		{"LOGIN", "*"}, {"LOGIN", "YWxpY2U=", "*"}, {"LOGIN", "!"}, {"LOGIN", "YWxpY2U=", "!"}, {"LOGIN", "", ""}, {"LOGIN =", ""},
		{"LOGIN", "/w==", "cmlnaHQ="}, {"LOGIN", "YWxpY2U=", "/w=="}, {"LOGIN", "YWxpY2UAeA==", "cmlnaHQ="},
	} {
		for i, line := range lines {
			if i == 0 {
				line = "a AUTHENTICATE " + line
			} else {
				c.expectLine("+ …")
			}
			c.write(line + "\r\n")
		}
		if answer, err := c.r.ReadString('\n'); err != nil || !matchesPattern("a NO [AUTHENTICATIONFAILED] …", answer) && !matchesPattern("a BAD …", answer) {
			t.Fatalf("%q: received %q, %v", lines, answer, err)
		}
		c.write("b NOOP\r\n")
		c.expectLine("b OK Nothing done.")
	}
	c.write("c AUTHENTICATE PLAIN AGFsaWNlAHJpZ2h0\r\n") // with an empty state
	c.expectLine("c OK …")
}

func TestAbortedExchangesLeaveNoState(t *testing.T) {
	b := newHarness(t, openTestBackend(t).addr())
	before, n := countHeapObjects(), abortCount(400)
	all := [][]string{
		{"a AUTHENTICATE PLAIN\r\n"}, {"a AUTHENTICATE LOGIN\r\n", "YWxpY2U=\r\n"},
		{"a AUTHENTICATE LOGIN YWxp"}, {"a AUTHENTICATE PLAIN\r\nAGFsaW"},
	}
	for i := range n {
		if !b.abortExchange(all[i%len(all)], nil) {
			t.Fatal("no greeting")
		}
	}
	testkit.Eventually(t, "everything to be released", func() bool { return b.server.openConns.Load() == 0 })
	checkHeapGrowth(t, n, before)
}

func TestOverlongResponseEndsConnection(t *testing.T) {
	b := newHarness(t, openTestBackend(t).addr())
	c := b.dialGreeted("none")
	c.write("a AUTHENTICATE PLAIN\r\n")
	c.expectLine("+ ")
	c.write(strings.Repeat("A", 8192))
	c.expectLine("* BYE Line too long.")
	c.expectEOF()
	if why := b.lastRecord("login_refused", c).field("reason"); why != string(event.BadExchange) {
		t.Error(why)
	}
}

func TestSlowClientsEndAtDeadline(t *testing.T) {
	b := newHarness(t, openTestBackend(t).addr(), func(s *harnessConfig) { s.cfg.PreauthTimeout = 4 * time.Second })
	start := time.Now()
	var slow []*client
	for range 100 {
		slow = append(slow, b.dialGreeted("none"))
	}
	for _, text := range []string{"a", " ", "L", "O", "G"} { // further bytes do not move the deadline
		for _, c := range slow {
			c.write(text)
		}
		c := b.dialGreeted("implicit")
		c.write("a LOGIN alice right\r\n")
		c.expectLine("a OK …")
		c.close()
	}
	for _, c := range slow {
		c.expectLine("* BYE Login took too long.")
		c.expectEOF()
	}
	if took := time.Since(start); took < 4*time.Second {
		t.Errorf("it took %v", took)
	}
	// None of them has closed. The gateway waits for that after a BYE, but not for long.
	testkit.Eventually(t, "the connections to end after their BYE", func() bool { return b.metrics()["imapgate_preauth_connections"] == 0 })
}

func TestDeadlineSendsByeUnderTLS(t *testing.T) {
	b := newHarness(t, openTestBackend(t).addr(), func(s *harnessConfig) { s.cfg.PreauthTimeout = 300 * time.Millisecond })
	for _, listener := range []string{"implicit", "starttls"} {
		c := b.dialGreeted(listener)
		c.expectLine("* BYE Login took too long.")
		c.expectEOF()
	}
}

func TestNonReadingClientIsEnded(t *testing.T) {
	m := openTestBackend(t)
	b := newHarness(t, m.addr(), func(s *harnessConfig) {
		s.cfg.WriteTimeout = time.Second
		s.routes.Static.Users["flood"] = "east"
	})
	var stuck []*client
	for _, listener := range []string{"none", "implicit"} {
		c := b.dialGreeted(listener)
		c.write("a LOGIN flood right\r\n")
		c.expectLine("a OK …")
		stuck = append(stuck, c)
	}
	other := b.dialGreeted("none")
	other.write("a LOGIN alice right\r\n")
	other.expectLine("a OK …")
	for _, c := range stuck {
		if why := b.lastRecord("session_ended", c).field("reason"); why != string(event.ClientStalled) {
			t.Error(why)
		}
	}
	other.write("b NOOP\r\n")
	other.expectLine("b OK Done.")
}

func TestExcessConnectionsGetBye(t *testing.T) {
	b := newHarness(t, openTestBackend(t).addr(), func(s *harnessConfig) { s.cfg.MaxConnections = 3 })
	kept := []*client{b.dialGreeted("none"), b.dialGreeted("implicit"), b.dialGreeted("starttls")}
	for listener, want := range map[string]string{"none": "* BYE [UNAVAILABLE] Too many connections.\r\n", "starttls": "* BYE [UNAVAILABLE] Too many connections.\r\n", "implicit": ""} {
		c := b.dial(listener)
		if rest := c.readAll(); rest != want {
			t.Errorf("%s: received %q", listener, rest)
		}
		if why := b.lastRecord("connection_refused", c).field("reason"); why != string(event.TooManyConnections) {
			t.Error(why)
		}
	}
	kept[0].write("a LOGOUT\r\n")
	kept[0].readAll()
	testkit.Eventually(t, "a slot to be free", func() bool { return b.server.openConns.Load() == 2 })
	c := b.dialGreeted("none")
	c.write("a LOGIN alice right\r\n") // a session keeps its slot
	c.expectLine("a OK …")
	if rest := b.dial("none").readAll(); rest != "* BYE [UNAVAILABLE] Too many connections.\r\n" {
		t.Errorf("received %q", rest)
	}
}

// A hash of this cost takes many milliseconds: 90 concurrent guesses exceed one hashing slot
// and the 64 places of the queue.
func TestGuessFloodDoesNotBlockOthers(t *testing.T) {
	b := newHarness(t, openTestBackend(t).addr(), func(s *harnessConfig) {
		s.auth.MaxPasswordHashes = 1
		s.users += "slow@example.org:{BLF-CRYPT}$2a$10$I0Lua5QogXQkVPvcQ4iEy.z.wRPP.Ai/RAyLh7p6LbtS04FULDwmy\n"
	})
	var guesses []*client
	for range 90 {
		guesses = append(guesses, b.dialGreeted("none"))
	}
	for _, c := range guesses {
		c.write("a LOGIN slow wrong\r\n")
	}
	idle := b.dialGreeted("none")
	idle.write("a NOOP\r\n")
	idle.expectLine("a OK …")
	answers := map[string]int{}
	for _, c := range guesses {
		line, err := c.r.ReadString('\n')
		testkit.NoError(t, err)
		answers[line]++
	}
	if answers["a "+unavailableReply+"\r\n"] < 10 || answers["a "+authFailedReply+"\r\n"] == 0 || len(answers) != 2 {
		t.Error(answers)
	}
}

func TestByeArrivesDespiteUnreadInput(t *testing.T) {
	b := newHarness(t, openTestBackend(t).addr())
	for _, listener := range []string{"none", "implicit"} {
		for range 20 {
			c := b.dialGreeted(listener)
			c.write("a LOGIN {9000+}\r\n" + strings.Repeat("x", 9000) + "\r\nb NOOP\r\n" + strings.Repeat("y", 100_000))
			c.expectLine("* BYE Literal refused.")
			c.expectEOF()
			c.close()
		}
	}
}

func TestPreauthConnectionsLeaveRoomForSessions(t *testing.T) {
	const slots = 40
	b := newHarness(t, openTestBackend(t).addr(), func(s *harnessConfig) { s.cfg.MaxConnections = slots })
	for range slots / 2 { // these log in and no longer count as preauth
		c := b.dialGreeted("none")
		c.write("a LOGIN alice right\r\n")
		c.expectLine("a OK …")
	}
	var last *client
	for range slots / 2 {
		last = b.dialGreeted("none")
	}
	if rest := b.dial("none").readAll(); rest != "* BYE [UNAVAILABLE] Too many connections.\r\n" {
		t.Errorf("received %q", rest)
	}
	last.write("a LOGIN alice right\r\n")
	last.expectLine("a OK …")

	preauthOnly := newHarness(t, openTestBackend(t).addr(), func(s *harnessConfig) { s.cfg.MaxConnections = slots })
	for range slots / 2 {
		last = preauthOnly.dialGreeted("none")
	}
	if rest := preauthOnly.dial("none").readAll(); rest != "* BYE [UNAVAILABLE] Too many connections.\r\n" {
		t.Errorf("received %q", rest)
	}
	last.write("a LOGIN alice right\r\n") // frees a slot
	last.expectLine("a OK …")
	preauthOnly.dialGreeted("none")
}
