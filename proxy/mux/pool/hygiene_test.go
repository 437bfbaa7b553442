package pool

import (
	"strings"
	"testing"
	"time"

	"imapgate/internal/metrics"
	"imapgate/internal/mutant"
	"imapgate/proxy/mux/lease"
)

// proven leaves the test to builds in which the check is there.
func proven(t *testing.T) {
	t.Helper()
	if mutant.Is(mutant.BufferCheck) || mutant.Is(mutant.DeferredEnable) {
		t.Log("the check is left out: this has to fail")
	}
}

// aWaiting is an account, and a connection of it that waits.
func (y *tally) aWaiting(s *stub) (*Account, *lease.Conn, *peer) {
	y.t.Helper()
	a := y.login("alice", "pw", Vouched)
	c := leased(y.t, a)
	p := s.of(c)
	c.Selected = true
	a.Return(c)
	if y.number() != 1 {
		y.t.Fatalf("it does not wait: %v", y.discarded)
	}
	return a, c, p
}

func TestWhatIsSaidToNobodyClosesTheConnection(t *testing.T) {
	proven(t)
	for said, reason := range map[string]string{
		"* 5 EXISTS\r\n":                         metrics.DiscardUnread,
		"* 1 EXPUNGE\r\n":                        metrics.DiscardUnread,
		"* 1 FETCH (FLAGS ())\r\n":               metrics.DiscardUnread,
		"* SEARCH 1 2\r\n":                       metrics.DiscardUnread,
		"* LIST () NIL {5}\r\nINBOX\r\n":         metrics.DiscardUnread,
		"* ENABLED QRESYNC\r\n":                  metrics.DiscardUnread,
		"* OK still here\r\n* 5 EXISTS\r\n":      metrics.DiscardUnread,
		"* OK half a li":                         metrics.DiscardUnread,
		"A0005 OK ID completed\r\n":              metrics.DiscardOutstanding,
		"A7 NO [UNAVAILABLE] search\r\n":         metrics.DiscardOutstanding,
		"+ idling\r\n":                           metrics.DiscardOutstanding,
		"\r\n":                                   metrics.DiscardOutstanding,
		"* OK bare\n":                            metrics.DiscardOutstanding,
		"* BYE going down\r\n":                   metrics.DiscardClosed,
		"* bye\r\n":                              metrics.DiscardClosed,
		strings.Repeat("* OK again\r\n", 20):     metrics.DiscardUnread,
		"* OK fine\r\nA1 OK FETCH completed\r\n": metrics.DiscardOutstanding,
	} {
		s := startStub(t, stubCaps)
		y := s.pool(Config{})
		a, c, p := y.aWaiting(s)
		if _, err := p.nc.Write([]byte(said)); err != nil {
			t.Fatal(err)
		}
		settled(t, "it to arrive", func() bool { return c.Stirs() || y.number() == 0 })
		d := leased(t, a)
		if d == c || y.closedFor(reason) != 1 || d.Pending() {
			t.Errorf("%q: closed for %v", said, y.discarded)
		}
		if got := who(t, d); got != "alice pw ()" {
			t.Errorf("%q: the next lease is %q", said, got)
		}
		a.Return(d)
		a.Close()
	}
}

func TestGreetingsAreHeardAndForgottenWithoutAnAlert(t *testing.T) {
	s := startStub(t, stubCaps)
	y := s.pool(Config{})
	a, c, p := y.aWaiting(s)
	p.say("* OK Still here", "* OK [ALERT] down at noon", "* no [alert] nearly full")
	settled(t, "it to arrive", func() bool { return c.Stirs() || c.Buffered() == 0 })
	d := leased(t, a)
	if d != c || d.Pending() || who(t, d) != "alice pw ()" {
		t.Errorf("closed for %v", y.discarded)
	}
	if got := string(d.Alerts()); got != "* OK [ALERT] down at noon\r\n* no [alert] nearly full\r\n" {
		t.Errorf("what people are to be shown is %q", got)
	}
	if again := d.Alerts(); len(again) > 0 {
		t.Errorf("it is shown again: %q", again)
	}
}

// An ALERT at a login is told by whoever welcomes the client; on a connection that is
// made later by the session that has it, once.
func TestAnAlertAtALoginIsToldOnce(t *testing.T) {
	s := startStub(t, stubCaps)
	s.alert = "down at noon"
	const alert = "* OK [ALERT] down at noon\r\n"
	for _, proof := range []Proof{Asked, Vouched} {
		y := s.pool(Config{})
		a := y.login("alice", "pw", proof)
		if got := string(a.OK().AppendUntagged(nil)); got != alert {
			t.Errorf("the login has %q", got)
		}
		c := leased(t, a)
		if again := c.Alerts(); len(again) > 0 || !a.OK().IsZero() {
			t.Errorf("the login's connection says it again: %q", again)
		}
		d := leased(t, a)
		if got := string(d.Alerts()); got != alert {
			t.Errorf("the second connection says %q", got)
		}
		aux, err := a.Aux(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if got := string(aux.Alerts()); got != alert {
			t.Errorf("the gateway's own connection says %q", got)
		}
		a.ReturnAux(aux)
		a.Return(c)
		a.Return(d)
		a.Close()
	}
}

func TestAConnectionThatEndsWhileItWaitsIsMissed(t *testing.T) {
	proven(t)
	s := startStub(t, stubCaps)
	y := s.pool(Config{})
	_, _, p := y.aWaiting(s)
	_ = p.nc.Close()
	settled(t, "the janitor", func() bool { return y.closedFor(metrics.DiscardClosed) == 1 && y.places() == 0 })
}

func TestAnAnswerUnderWayAtTheEndOfASessionReachesNobody(t *testing.T) {
	s := startStub(t, stubCaps)
	s.react = func(p *peer, tag, command string) bool {
		if command == "UNSELECT" || command == "NOOP" { // what was outstanding comes first
			p.say("A9 OK SEARCH completed", tag+" OK done")
			return true
		}
		return false
	}
	y := s.pool(Config{})
	for _, selected := range []bool{true, false} {
		a := y.login("alice", "pw", Vouched)
		c := leased(t, a)
		if _, err := c.Write([]byte("A9 XHANG\r\n")); err != nil {
			t.Fatal(err)
		}
		c.Selected = selected
		a.Return(c)
		a.Close()
	}
	if y.number() != 0 || y.closedFor(metrics.DiscardOutstanding) != 2 {
		t.Errorf("%d wait, closed for %v", y.number(), y.discarded)
	}
}

func TestWhatASessionLeavesUnreadClosesItsConnection(t *testing.T) {
	for said, reason := range map[string]string{
		"A1 OK done\r\n* 3 EXISTS\r\n":                    metrics.DiscardUnread,
		"* 1 FETCH (BODY[] {100}\r\nthe beginning of it":  metrics.DiscardOutstanding,
		"* 1 FETCH (BODY[] {3}\r\nabc FLAGS (\\Seen)) \r": metrics.DiscardOutstanding,
	} {
		s := startStub(t, stubCaps)
		y := s.pool(Config{})
		a := y.login("alice", "pw", Vouched)
		c := leased(t, a)
		if _, err := s.of(c).nc.Write([]byte(said)); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Next(); err != nil { // the session reads a part of it
			t.Fatal(err)
		}
		a.Return(c)
		if y.number() != 0 || y.closedFor(reason) != 1 {
			t.Errorf("%q: closed for %v", said, y.discarded)
		}
		a.Close()
	}
}

func TestOnlyWhatBelongsToTheMailboxIsDrained(t *testing.T) {
	for said, waits := range map[string]int{
		"* 3 EXISTS\r\n* 1 EXPUNGE\r\n* VANISHED 4\r\n* FLAGS ()\r\n* 0 RECENT\r\n* 2 FETCH (BODY[] {3}\r\nabc)\r\n* OK [CLOSED] x\r\n": 1,
		"* SEARCH 1\r\n":        0,
		"* LIST () NIL x\r\n":   0,
		"* ENABLED QRESYNC\r\n": 0,
		"* BYE\r\n":             0,
	} {
		s := startStub(t, stubCaps)
		s.react = func(p *peer, tag, command string) bool {
			if command == "UNSELECT" {
				_, _ = p.nc.Write([]byte(said + tag + " OK done\r\n"))
			}
			return command == "UNSELECT"
		}
		y := s.pool(Config{})
		a := y.login("alice", "pw", Vouched)
		c := leased(t, a)
		c.Selected = true
		a.Return(c)
		if y.number() != waits {
			t.Errorf("%q: %d wait, closed for %v", said, y.number(), y.discarded)
		}
		a.Close()
	}
}

func TestABackendThatDoesNotLetGoOfAMailboxLosesTheConnection(t *testing.T) {
	for answer, reason := range map[string]string{"NO": metrics.DiscardOutstanding, "": metrics.DiscardUnanswered} {
		s := startStub(t, stubCaps)
		s.react = func(p *peer, tag, command string) bool {
			if command == "UNSELECT" && answer != "" {
				p.say(tag + " " + answer + " x")
			}
			return command == "UNSELECT"
		}
		y := s.pool(Config{Answer: 50 * time.Millisecond})
		a := y.login("alice", "pw", Vouched)
		c := leased(t, a)
		c.Selected = true
		a.Return(c)
		if y.number() != 0 || y.closedFor(reason) != 1 {
			t.Errorf("%q: closed for %v", answer, y.discarded)
		}
		a.Close()
	}
}

// What is selected is never closed: CLOSE would expunge. INBOX is, when the backend has
// said that it is read-only.
func TestWithoutUNSELECTAMailboxIsLeftByINBOXReadOnly(t *testing.T) {
	const opened = "* 3 EXISTS\r\n* FLAGS ()\r\n* OK [UIDVALIDITY 1] x\r\n"
	for _, c := range []struct {
		examine, close string
		reason         string // "": it waits
		closes         int
	}{
		{opened + "TAG OK [READ-ONLY] x\r\n", "TAG OK x\r\n", "", 1},
		{opened + "TAG OK [READ-WRITE] x\r\n", "", metrics.DiscardSelected, 0},
		{opened + "TAG OK x\r\n", "", metrics.DiscardSelected, 0},
		{"TAG NO x\r\n", "", metrics.DiscardSelected, 0},
		{"* SEARCH 1\r\nTAG OK [READ-ONLY] x\r\n", "", metrics.DiscardOutstanding, 0},
		{opened + "TAG OK [READ-ONLY] x\r\n", "* 1 EXPUNGE\r\nTAG OK x\r\n", metrics.DiscardUnread, 1},
		{opened + "TAG OK [READ-ONLY] x\r\n", "TAG NO x\r\n", metrics.DiscardOutstanding, 1},
	} {
		s := startStub(t, "IMAP4rev1 SASL-IR AUTH=PLAIN")
		s.react = func(p *peer, tag, command string) bool {
			answer := map[string]string{"EXAMINE INBOX": c.examine, "CLOSE": c.close}[command]
			_, _ = p.nc.Write([]byte(strings.ReplaceAll(answer, "TAG", tag)))
			return answer != ""
		}
		y := s.pool(Config{})
		a := y.login("alice", "pw", Vouched)
		conn := leased(t, a)
		conn.Selected = true
		p := s.of(conn)
		a.Return(conn)
		if waits := y.number() == 1; waits != (c.reason == "") || c.reason != "" && y.closedFor(c.reason) != 1 || p.count("CLOSE") != c.closes {
			t.Errorf("%q, %q: closed for %v, heard %q", c.examine, c.close, y.discarded, p.heard)
		}
		a.Close()
	}
}

func TestWhoHasWaitedForLongIsAskedFirst(t *testing.T) {
	for answer, kept := range map[string]bool{"": true, "* OK hm\r\n": true, "* 3 EXISTS\r\n": false, "A1 OK late\r\n": false} {
		s := startStub(t, stubCaps)
		s.react = func(p *peer, tag, command string) bool {
			if command == "NOOP" {
				_, _ = p.nc.Write([]byte(answer + tag + " OK done\r\n"))
			}
			return command == "NOOP"
		}
		y := s.pool(Config{})
		a, c, p := y.aWaiting(s)
		y.silent(c, time.Hour)
		d := leased(t, a)
		if p.count("NOOP") != 1 || (d == c) != kept || d.Pending() {
			t.Errorf("%q: %d questions, closed for %v", answer, p.count("NOOP"), y.discarded)
		}
	}
}

func TestWhoDoesNotAnswerIsReplacedInItsPlace(t *testing.T) {
	s := startStub(t, stubCaps)
	s.react = func(_ *peer, _, command string) bool { return command == "NOOP" }
	y := s.pool(Config{Answer: 20 * time.Millisecond, MaxPerUser: 2})
	a, c, _ := y.aWaiting(s)
	y.silent(c, time.Hour)
	if d := leased(t, a); d == c || y.closedFor(metrics.DiscardUnanswered) != 1 || y.places() != 1 {
		t.Errorf("closed for %v, %d places", y.discarded, y.places())
	}
}

func TestNobodyWaitsTooLongOrGrowsTooOld(t *testing.T) {
	s := startStub(t, stubCaps)
	y := s.pool(Config{ReuseTTL: 10 * time.Minute, MaxAge: time.Hour})
	_, c, p := y.aWaiting(s)
	y.sweep(time.Now().Add(9 * time.Minute))
	if y.number() != 1 {
		t.Fatalf("closed for %v", y.discarded)
	}
	y.sweep(time.Now().Add(11 * time.Minute))
	if y.number() != 0 || y.closedFor(metrics.DiscardTTL) != 1 || p.count("UNSELECT") != 1 || c.Age() > time.Minute {
		t.Errorf("closed for %v", y.discarded)
	}
	old := s.pool(Config{MaxAge: time.Nanosecond})
	a := old.login("alice", "pw", Vouched)
	a.Return(leased(t, a))
	if old.closedFor(metrics.DiscardAge) != 1 {
		t.Errorf("closed for %v", old.discarded)
	}
	none := Config{}.pool(t, old.backend)
	a = none.login("alice", "pw", Vouched)
	a.Return(leased(t, a))
	a.Close()
	if none.number() != 0 || none.places() != 0 {
		t.Error("it waits though nothing may")
	}
}

func TestTheJanitorAsksThoseWhoWaitForLong(t *testing.T) {
	s := startStub(t, stubCaps)
	y := s.pool(Config{NoopAfter: time.Second, KeepAlive: 2 * time.Hour})
	_, c, p := y.aWaiting(s)
	y.silent(c, time.Hour)
	y.sweep(time.Now())
	if p.count("NOOP") != 0 {
		t.Error("asked too soon")
	}
	y.silent(c, time.Hour)
	y.sweep(time.Now())
	if p.count("NOOP") != 1 || y.number() != 1 {
		t.Errorf("asked %d times, closed for %v", p.count("NOOP"), y.discarded)
	}
}

func TestWhoWaitsHasNoBuffers(t *testing.T) {
	s := startStub(t, stubCaps)
	y := s.pool(Config{})
	_, c, _ := y.aWaiting(s)
	if c.Size() != 0 {
		t.Errorf("it has %d bytes", c.Size())
	}
}
