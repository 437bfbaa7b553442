package proxy

import (
	"encoding/base64"
	"fmt"
	"io"
	"runtime"
	"strings"
	"testing"
	"time"

	"imapgate/internal/audit"
)

// The rows of the catalogue "resource exhaustion and parser abuse before the
// login".

func TestC1ALineWithoutAnEndIsCut(t *testing.T) {
	b := newBed(t, openMailbox(t).addr())
	c := b.greeted("none")
	c.say("a " + strings.Repeat("x", 8192-len("a \r\n")) + "\r\n") // as long as a line may be
	c.hear("a BAD …")
	c.say("b " + strings.Repeat("x", 8192-2)) // as much as is read of one
	c.hear("* BYE Line too long.")
	c.end()
	if why := b.lastRecord("connection_refused", c).field("reason"); why != string(audit.LineTooLong) {
		t.Error(why)
	}
	for _, listener := range []string{"none", "starttls", "implicit"} {
		c := b.greeted(listener)
		_, _ = io.WriteString(c.nc, "a LOGIN alice "+strings.Repeat("x", 1<<20)) // we are gone before its end
		c.hopeless("a ")
		if why := b.lastRecord("connection_refused", c).field("reason"); why != string(audit.LineTooLong) {
			t.Errorf("%s: %s", listener, why)
		}
	}
}

func TestC2OctetsOfARefusedLiteralNeverBecomeCommands(t *testing.T) {
	b := newBed(t, openMailbox(t).addr())
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
		c := b.greeted("none")
		c.say("a LOGIN " + literal + "\r\n")
		c.hear(want)
		if want == lost {
			c.end()
		} else {
			c.say("b NOOP\r\n")
			c.hear("b OK Nothing done.")
		}
		c.close()
	}
}

func TestC3LiteralsOfACommandAreCountedAndSummed(t *testing.T) {
	b := newBed(t, openMailbox(t).addr())
	for _, try := range []struct{ say, hear string }{
		{"a X {1+}\r\nx {1+}\r\nx {1+}\r\nx {1+}\r\nx\r\n", "a BAD Unexpected argument…"},
		{"a X {1+}\r\nx {1+}\r\nx {1+}\r\nx {1+}\r\nx {1+}\r\n", "* BYE Literal refused."},
		{"a X {1+}\r\nx {1+}\r\nx {1+}\r\nx {1+}\r\nx {1}\r\n", "a NO [TOOBIG] …"},
		{"a X {4096+}\r\n" + strings.Repeat("x", 4096) + " {4096+}\r\n" + strings.Repeat("x", 4096) + "\r\n", "a BAD Unexpected argument…"},
		{"a X {4096+}\r\n" + strings.Repeat("x", 4096) + " {4097+}\r\n", "* BYE Literal refused."},
	} {
		c := b.greeted("none")
		c.say(try.say)
		c.hear(try.hear)
		c.close()
	}
}

func TestC4NestingCostsNothing(t *testing.T) {
	b := newBed(t, openMailbox(t).addr())
	c := b.greeted("none")
	c.say("a NOOP ((((((\r\n")
	c.hear("a BAD Too many parentheses.")
	before := heap()
	const clients = 200
	for range clients {
		c := b.greeted("none")
		c.say("a ID " + strings.Repeat("(", 8000)) // and no LF
	}
	if grown := int64(heap()) - int64(before); grown > clients*(32<<10) {
		t.Errorf("%d bytes a connection", grown/clients)
	}
}

func heap() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func TestC5AFloodOfCommandsThatReadsNoAnswerEndsAtTheDeadline(t *testing.T) {
	b := newBed(t, openMailbox(t).addr(), func(s *setup) { s.cfg.Preauth = 700 * time.Millisecond })
	for _, listener := range []string{"none", "implicit"} {
		c := b.greeted(listener)
		before := heap()
		flood := []byte(strings.Repeat("a NOOP\r\n", 1<<12))
		for range 1 << 12 {
			if _, err := c.nc.Write(flood); err != nil {
				break
			}
		}
		if grown := int64(heap()) - int64(before); grown > 4<<20 {
			t.Errorf("%s: the heap has grown by %d", listener, grown)
		}
		if why := b.lastRecord("connection_refused", c).field("reason"); why != string(audit.PreauthTimeout) {
			t.Errorf("%s: %s", listener, why)
		}
		c.close()
	}
}

func TestC5ATagHasABound(t *testing.T) {
	b := newBed(t, openMailbox(t).addr())
	c := b.greeted("none")
	tag := strings.Repeat("t", 126)
	c.say(tag + " NOOP\r\n")
	c.hear(tag + " OK Nothing done.")
	c.say(tag + "t NOOP\r\n")
	c.hear("* BAD Invalid tag.")
}

func TestC6IDHasBounds(t *testing.T) {
	b := newBed(t, openMailbox(t).addr())
	id := func(pairs, key, value int) string {
		one := fmt.Sprintf("%q %q ", strings.Repeat("k", key), strings.Repeat("v", value))
		return "a ID (" + strings.TrimSpace(strings.Repeat(one, pairs)) + ")\r\n"
	}
	for command, ok := range map[string]bool{
		id(30, 2, 2): true, id(31, 2, 2): false, id(1, 30, 2): true, id(1, 31, 2): false, id(1, 2, 1024): true, id(1, 2, 1025): false,
		id(1, 2, 2048): false, id(7, 30, 1024): true,
	} {
		c := b.greeted("none")
		c.say(command)
		if ok {
			c.hear("* ID …")
			c.hear("a OK …")
		} else {
			c.hear("a BAD …")
		}
		c.close()
	}
}

func TestC7AFailedExchangeHurtsNobodyAndLeavesNothing(t *testing.T) {
	b := newBed(t, openMailbox(t).addr(), func(s *setup) { s.cfg.AuthAttempts, s.cfg.BadCommands = 1000, 1000 })
	b64 := base64.StdEncoding.EncodeToString
	c := b.greeted("none")
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
				c.hear("+ …")
			}
			c.say(line + "\r\n")
		}
		if answer, err := c.r.ReadString('\n'); err != nil || !matches("a NO [AUTHENTICATIONFAILED] …", answer) && !matches("a BAD …", answer) {
			t.Fatalf("%q: heard %q, %v", lines, answer, err)
		}
		c.say("b NOOP\r\n")
		c.hear("b OK Nothing done.")
	}
	c.say("c AUTHENTICATE PLAIN AGFsaWNlAHJpZ2h0\r\n") // out of an empty state
	c.hear("c OK …")
}

func TestC7ExchangesThatAreCutOffLeaveNothing(t *testing.T) {
	b := newBed(t, openMailbox(t).addr())
	before, n := living(), cutsWanted(400)
	all := [][]string{
		{"a AUTHENTICATE PLAIN\r\n"}, {"a AUTHENTICATE LOGIN\r\n", "YWxpY2U=\r\n"},
		{"a AUTHENTICATE LOGIN YWxp"}, {"a AUTHENTICATE PLAIN\r\nAGFsaW"},
	}
	for i := range n {
		if !b.cut(all[i%len(all)], nil) {
			t.Fatal("nobody greets")
		}
	}
	within(t, "everything to be given back", func() bool { return b.server.open.Load() == 0 })
	keepsNothing(t, n, before)
}

func TestC7AnOverlongResponseEndsTheConnection(t *testing.T) {
	b := newBed(t, openMailbox(t).addr())
	c := b.greeted("none")
	c.say("a AUTHENTICATE PLAIN\r\n")
	c.hear("+ ")
	c.say(strings.Repeat("A", 8192))
	c.hear("* BYE Line too long.")
	c.end()
	if why := b.lastRecord("login_refused", c).field("reason"); why != string(audit.BadExchange) {
		t.Error(why)
	}
}

func TestC8SlowClientsEndAtOneDeadlineAndHinderNobody(t *testing.T) {
	b := newBed(t, openMailbox(t).addr(), func(s *setup) { s.cfg.Preauth = 4 * time.Second })
	began := time.Now()
	var slow []*client
	for range 100 {
		slow = append(slow, b.greeted("none"))
	}
	for _, text := range []string{"a", " ", "L", "O", "G"} { // no byte moves the deadline
		for _, c := range slow {
			c.say(text)
		}
		c := b.greeted("implicit")
		c.say("a LOGIN alice right\r\n")
		c.hear("a OK …")
		c.close()
	}
	for _, c := range slow {
		c.hear("* BYE Login took too long.")
		c.end()
	}
	if took := time.Since(began); took < 4*time.Second {
		t.Errorf("it took %v", took)
	}
	// None of them has hung up: a goodbye waits for that, but not for long.
	within(t, "the goodbyes to end", func() bool { return b.metrics()["imapgate_preauth_connections"] == 0 })
}

func TestC8TheDeadlineIsSaidUnderTLSToo(t *testing.T) {
	b := newBed(t, openMailbox(t).addr(), func(s *setup) { s.cfg.Preauth = 300 * time.Millisecond })
	for _, listener := range []string{"implicit", "starttls"} {
		c := b.greeted(listener)
		c.hear("* BYE Login took too long.")
		c.end()
	}
}

func TestC9AClientThatReadsNothingIsEnded(t *testing.T) {
	m := openMailbox(t)
	b := newBed(t, m.addr(), func(s *setup) {
		s.cfg.Write = time.Second
		s.routes.Static.Users["flood"] = "east"
	})
	var stuck []*client
	for _, listener := range []string{"none", "implicit"} {
		c := b.greeted(listener)
		c.say("a LOGIN flood right\r\n")
		c.hear("a OK …")
		stuck = append(stuck, c)
	}
	other := b.greeted("none")
	other.say("a LOGIN alice right\r\n")
	other.hear("a OK …")
	for _, c := range stuck {
		if why := b.lastRecord("session_ended", c).field("reason"); why != string(audit.ClientStalled) {
			t.Error(why)
		}
	}
	other.say("b NOOP\r\n")
	other.hear("b OK Done.")
}

func TestC11MoreConnectionsThanAllowedAreTurnedAwayWithAWord(t *testing.T) {
	b := newBed(t, openMailbox(t).addr(), func(s *setup) { s.cfg.MaxConnections = 3 })
	kept := []*client{b.greeted("none"), b.greeted("implicit"), b.greeted("starttls")}
	for listener, want := range map[string]string{"none": "* BYE [UNAVAILABLE] Too many connections.\r\n", "starttls": "* BYE [UNAVAILABLE] Too many connections.\r\n", "implicit": ""} {
		c := b.dial(listener)
		if rest := c.rest(); rest != want {
			t.Errorf("%s: heard %q", listener, rest)
		}
		if why := b.lastRecord("connection_refused", c).field("reason"); why != string(audit.TooMany) {
			t.Error(why)
		}
	}
	kept[0].say("a LOGOUT\r\n")
	kept[0].rest()
	within(t, "a place to be free", func() bool { return b.server.open.Load() == 2 })
	c := b.greeted("none")
	c.say("a LOGIN alice right\r\n") // a session keeps its place
	c.hear("a OK …")
	if rest := b.dial("none").rest(); rest != "* BYE [UNAVAILABLE] Too many connections.\r\n" {
		t.Errorf("heard %q", rest)
	}
}

// A hash of this cost takes tens of milliseconds: 40 guesses at once are more than
// one verifier and two places to wait can take.
func TestC13AFloodOfGuessesIsTurnedAwayAndHindersNoOther(t *testing.T) {
	b := newBed(t, openMailbox(t).addr(), func(s *setup) {
		s.auth.Verifiers, s.auth.Queue = 1, 2
		s.users += "slow@example.org:{BLF-CRYPT}$2a$10$I0Lua5QogXQkVPvcQ4iEy.z.wRPP.Ai/RAyLh7p6LbtS04FULDwmy\n"
	})
	var guesses []*client
	for range 40 {
		guesses = append(guesses, b.greeted("none"))
	}
	for _, c := range guesses {
		c.say("a LOGIN slow wrong\r\n")
	}
	idle := b.greeted("none")
	idle.say("a NOOP\r\n")
	idle.hear("a OK …")
	answers := map[string]int{}
	for _, c := range guesses {
		line, err := c.r.ReadString('\n')
		must(t, err)
		answers[line]++
	}
	if answers["a "+unavailableReply+"\r\n"] < 10 || answers["a "+deniedReply+"\r\n"] == 0 || len(answers) != 2 {
		t.Error(answers)
	}
}

func TestAByeIsHeardOverWhatTheClientStillSends(t *testing.T) {
	b := newBed(t, openMailbox(t).addr())
	for _, listener := range []string{"none", "implicit"} {
		for range 20 {
			c := b.greeted(listener)
			c.say("a LOGIN {9000+}\r\n" + strings.Repeat("x", 9000) + "\r\nb NOOP\r\n" + strings.Repeat("y", 100_000))
			c.hear("* BYE Literal refused.")
			c.end()
			c.close()
		}
	}
}

func TestC8StrangersLeaveRoomForSessions(t *testing.T) {
	const slots = 40
	b := newBed(t, openMailbox(t).addr(), func(s *setup) { s.cfg.MaxConnections = slots })
	for range slots / 2 { // these log in, and no longer count among the strangers
		c := b.greeted("none")
		c.say("a LOGIN alice right\r\n")
		c.hear("a OK …")
	}
	var last *client
	for range slots / 2 {
		last = b.greeted("none")
	}
	if rest := b.dial("none").rest(); rest != "* BYE [UNAVAILABLE] Too many connections.\r\n" {
		t.Errorf("heard %q", rest)
	}
	last.say("a LOGIN alice right\r\n")
	last.hear("a OK …")

	strangers := newBed(t, openMailbox(t).addr(), func(s *setup) { s.cfg.MaxConnections = slots })
	for range slots / 2 {
		last = strangers.greeted("none")
	}
	if rest := strangers.dial("none").rest(); rest != "* BYE [UNAVAILABLE] Too many connections.\r\n" {
		t.Errorf("heard %q", rest)
	}
	last.say("a LOGIN alice right\r\n") // makes room for one more
	last.hear("a OK …")
	strangers.greeted("none")
}
