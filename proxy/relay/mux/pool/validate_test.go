package pool

import (
	"strings"
	"testing"
	"time"

	"imapgate/internal/event"
	"imapgate/internal/testkit"
	"imapgate/proxy/relay/mux/lease"
)

// idleConn returns an account with one idle connection.
func (tp *testPool) idleConn(s *stub) (*Account, *lease.Conn, *stubConn) {
	tp.t.Helper()
	a := tp.mustLogIn("alice", "pw", VerifiedHere)
	c := acquireLease(tp.t, a)
	p := s.findConn(c)
	c.Selected = true
	a.Release(c)
	if tp.idleCount() != 1 {
		tp.t.Fatalf("the connection is not idle: %v", tp.discarded)
	}
	return a, c, p
}

func TestUnsolicitedResponseClosesIdleConnection(t *testing.T) {
	for reply, reason := range map[string]event.DiscardReason{
		"* 5 EXISTS\r\n":                         event.DiscardUnread,
		"* 1 EXPUNGE\r\n":                        event.DiscardUnread,
		"* 1 FETCH (FLAGS ())\r\n":               event.DiscardUnread,
		"* SEARCH 1 2\r\n":                       event.DiscardUnread,
		"* LIST () NIL {5}\r\nINBOX\r\n":         event.DiscardUnread,
		"* ENABLED QRESYNC\r\n":                  event.DiscardUnread,
		"* OK still here\r\n* 5 EXISTS\r\n":      event.DiscardUnread,
		"* OK half a li":                         event.DiscardUnread,
		"A0005 OK ID completed\r\n":              event.DiscardOutstanding,
		"A7 NO [UNAVAILABLE] search\r\n":         event.DiscardOutstanding,
		"+ idling\r\n":                           event.DiscardOutstanding,
		"\r\n":                                   event.DiscardOutstanding,
		"* OK bare\n":                            event.DiscardOutstanding,
		"* BYE going down\r\n":                   event.DiscardClosed,
		"* bye\r\n":                              event.DiscardClosed,
		strings.Repeat("* OK again\r\n", 20):     event.DiscardUnread,
		"* OK fine\r\nA1 OK FETCH completed\r\n": event.DiscardOutstanding,
	} {
		s := startStub(t, stubCaps)
		tp := s.newPool(Config{})
		a, c, p := tp.idleConn(s)
		if _, err := p.Write([]byte(reply)); err != nil {
			t.Fatal(err)
		}
		testkit.Eventually(t, "the response to arrive", func() bool { return c.IsReadable() || tp.idleCount() == 0 })
		d := acquireLease(t, a)
		if d == c || tp.discardedFor(reason) != 1 || d.HasUnread() {
			t.Errorf("%q: closed for %v", reply, tp.discarded)
		}
		if got := identifyConn(t, d); got != "alice pw ()" {
			t.Errorf("%q: the next lease is %q", reply, got)
		}
		a.Release(d)
		a.Close()
	}
}

func TestUntaggedOKWithoutAlertIsDropped(t *testing.T) {
	s := startStub(t, stubCaps)
	tp := s.newPool(Config{})
	a, c, p := tp.idleConn(s)
	_ = p.Send("* OK Still here", "* OK [ALERT] down at noon", "* no [alert] nearly full")
	testkit.Eventually(t, "the response to arrive", func() bool { return c.IsReadable() || c.Buffered() == 0 })
	d := acquireLease(t, a)
	if d != c || d.HasUnread() || identifyConn(t, d) != "alice pw ()" {
		t.Errorf("closed for %v", tp.discarded)
	}
	if got := string(d.TakeAlerts()); got != "* OK [ALERT] down at noon\r\n* no [alert] nearly full\r\n" {
		t.Errorf("alerts %q", got)
	}
	if again := d.TakeAlerts(); len(again) > 0 {
		t.Errorf("alerts returned again: %q", again)
	}
}

// An ALERT of the first login is in Account.OK. An ALERT of a later connection is forwarded
// once by the session that leases it.
func TestLoginAlertIsForwardedOnce(t *testing.T) {
	s := startStub(t, stubCaps)
	s.alert = "down at noon"
	const alert = "* OK [ALERT] down at noon\r\n"
	for _, proof := range []Verification{BackendDecides, VerifiedHere} {
		tp := s.newPool(Config{})
		a := tp.mustLogIn("alice", "pw", proof)
		if got := string(a.OK().AppendUntagged(nil)); got != alert {
			t.Errorf("the login's response is %q", got)
		}
		c := acquireLease(t, a)
		if again := c.TakeAlerts(); len(again) > 0 || !a.OK().IsZero() {
			t.Errorf("the login's connection has the alert again: %q", again)
		}
		d := acquireLease(t, a)
		if got := string(d.TakeAlerts()); got != alert {
			t.Errorf("the second connection has %q", got)
		}
		aux, err := a.AcquireAux(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if got := string(aux.TakeAlerts()); got != alert {
			t.Errorf("the gateway's own connection has %q", got)
		}
		a.ReleaseAux(aux)
		a.Release(c)
		a.Release(d)
		a.Close()
	}
}

func TestClosedIdleConnectionIsRemoved(t *testing.T) {
	s := startStub(t, stubCaps)
	tp := s.newPool(Config{})
	_, _, p := tp.idleConn(s)
	_ = p.Close()
	testkit.Eventually(t, "the cleaner", func() bool { return tp.discardedFor(event.DiscardClosed) == 1 && tp.slotCount() == 0 })
}

func TestOutstandingAnswerReachesNoOtherSession(t *testing.T) {
	s := startStub(t, stubCaps)
	s.onCommand = func(p *stubConn, tag, command string) bool {
		if command == "UNSELECT" || command == "NOOP" { // the outstanding response comes first
			_ = p.Send("A9 OK SEARCH completed", tag+" OK done")
			return true
		}
		return false
	}
	tp := s.newPool(Config{})
	for _, selected := range []bool{true, false} {
		a := tp.mustLogIn("alice", "pw", VerifiedHere)
		c := acquireLease(t, a)
		if _, err := c.Write([]byte("A9 XHANG\r\n")); err != nil {
			t.Fatal(err)
		}
		c.Selected = selected
		a.Release(c)
		a.Close()
	}
	if tp.idleCount() != 0 || tp.discardedFor(event.DiscardOutstanding) != 2 {
		t.Errorf("%d idle, closed for %v", tp.idleCount(), tp.discarded)
	}
}

func TestUnreadBytesAtReleaseCloseTheConnection(t *testing.T) {
	for reply, reason := range map[string]event.DiscardReason{
		"A1 OK done\r\n* 3 EXISTS\r\n":                    event.DiscardUnread,
		"* 1 FETCH (BODY[] {100}\r\nthe beginning of it":  event.DiscardOutstanding,
		"* 1 FETCH (BODY[] {3}\r\nabc FLAGS (\\Seen)) \r": event.DiscardOutstanding,
	} {
		s := startStub(t, stubCaps)
		tp := s.newPool(Config{})
		a := tp.mustLogIn("alice", "pw", VerifiedHere)
		c := acquireLease(t, a)
		if _, err := s.findConn(c).Write([]byte(reply)); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Next(); err != nil { // the session reads a part of it
			t.Fatal(err)
		}
		a.Release(c)
		if tp.idleCount() != 0 || tp.discardedFor(reason) != 1 {
			t.Errorf("%q: closed for %v", reply, tp.discarded)
		}
		a.Close()
	}
}

func TestOnlyMailboxDataIsDrained(t *testing.T) {
	for reply, idle := range map[string]int{
		"* 3 EXISTS\r\n* 1 EXPUNGE\r\n* VANISHED 4\r\n* FLAGS ()\r\n* 0 RECENT\r\n* 2 FETCH (BODY[] {3}\r\nabc)\r\n* OK [CLOSED] x\r\n": 1,
		"* SEARCH 1\r\n":        0,
		"* LIST () NIL x\r\n":   0,
		"* ENABLED QRESYNC\r\n": 0,
		"* BYE\r\n":             0,
	} {
		s := startStub(t, stubCaps)
		s.onCommand = func(p *stubConn, tag, command string) bool {
			if command == "UNSELECT" {
				_, _ = p.Write([]byte(reply + tag + " OK done\r\n"))
			}
			return command == "UNSELECT"
		}
		tp := s.newPool(Config{})
		a := tp.mustLogIn("alice", "pw", VerifiedHere)
		c := acquireLease(t, a)
		c.Selected = true
		a.Release(c)
		if tp.idleCount() != idle {
			t.Errorf("%q: %d idle, closed for %v", reply, tp.idleCount(), tp.discarded)
		}
		a.Close()
	}
}

func TestConnectionThatCannotUnselectIsDiscarded(t *testing.T) {
	for answer, reason := range map[string]event.DiscardReason{"NO": event.DiscardOutstanding, "": event.DiscardUnanswered} {
		s := startStub(t, stubCaps)
		s.onCommand = func(p *stubConn, tag, command string) bool {
			if command == "UNSELECT" && answer != "" {
				_ = p.Send(tag + " " + answer + " x")
			}
			return command == "UNSELECT"
		}
		tp := s.newPool(Config{AnswerTimeout: 50 * time.Millisecond})
		a := tp.mustLogIn("alice", "pw", VerifiedHere)
		c := acquireLease(t, a)
		c.Selected = true
		a.Release(c)
		if tp.idleCount() != 0 || tp.discardedFor(reason) != 1 {
			t.Errorf("%q: closed for %v", answer, tp.discarded)
		}
		a.Close()
	}
}

// The selected mailbox is never closed, because CLOSE would expunge. INBOX is closed only after
// the backend has reported it read-only.
func TestUnselectFallsBackToExamineAndClose(t *testing.T) {
	const opened = "* 3 EXISTS\r\n* FLAGS ()\r\n* OK [UIDVALIDITY 1] x\r\n"
	for _, c := range []struct {
		examine, close string
		reason         event.DiscardReason // "": pooled
		closes         int
	}{
		{opened + "TAG OK [READ-ONLY] x\r\n", "TAG OK x\r\n", "", 1},
		{opened + "TAG OK [READ-WRITE] x\r\n", "", event.DiscardSelected, 0},
		{opened + "TAG OK x\r\n", "", event.DiscardSelected, 0},
		{"TAG NO x\r\n", "", event.DiscardSelected, 0},
		{"* SEARCH 1\r\nTAG OK [READ-ONLY] x\r\n", "", event.DiscardOutstanding, 0},
		{opened + "TAG OK [READ-ONLY] x\r\n", "* 1 EXPUNGE\r\nTAG OK x\r\n", event.DiscardUnread, 1},
		{opened + "TAG OK [READ-ONLY] x\r\n", "TAG NO x\r\n", event.DiscardOutstanding, 1},
	} {
		s := startStub(t, "IMAP4rev1 SASL-IR AUTH=PLAIN")
		s.onCommand = func(p *stubConn, tag, command string) bool {
			answer := map[string]string{"EXAMINE INBOX": c.examine, "CLOSE": c.close}[command]
			_, _ = p.Write([]byte(strings.ReplaceAll(answer, "TAG", tag)))
			return answer != ""
		}
		tp := s.newPool(Config{})
		a := tp.mustLogIn("alice", "pw", VerifiedHere)
		conn := acquireLease(t, a)
		conn.Selected = true
		p := s.findConn(conn)
		a.Release(conn)
		if pooled := tp.idleCount() == 1; pooled != (c.reason == "") || c.reason != "" && tp.discardedFor(c.reason) != 1 || p.countCommand("CLOSE") != c.closes {
			t.Errorf("%q, %q: closed for %v, received %q", c.examine, c.close, tp.discarded, p.commands)
		}
		a.Close()
	}
}

func TestLongIdleConnectionIsValidated(t *testing.T) {
	for answer, kept := range map[string]bool{"": true, "* OK hm\r\n": true, "* 3 EXISTS\r\n": false, "A1 OK late\r\n": false} {
		s := startStub(t, stubCaps)
		s.onCommand = func(p *stubConn, tag, command string) bool {
			if command == "NOOP" {
				_, _ = p.Write([]byte(answer + tag + " OK done\r\n"))
			}
			return command == "NOOP"
		}
		tp := s.newPool(Config{})
		a, c, p := tp.idleConn(s)
		tp.ageAnswer(c, time.Hour)
		d := acquireLease(t, a)
		if p.countCommand("NOOP") != 1 || (d == c) != kept || d.HasUnread() {
			t.Errorf("%q: %d NOOPs, closed for %v", answer, p.countCommand("NOOP"), tp.discarded)
		}
	}
}

func TestUnresponsiveConnectionIsReplacedInItsSlot(t *testing.T) {
	s := startStub(t, stubCaps)
	s.onCommand = func(_ *stubConn, _, command string) bool { return command == "NOOP" }
	tp := s.newPool(Config{AnswerTimeout: 20 * time.Millisecond, Settings: Settings{MaxPerUser: 2}})
	a, c, _ := tp.idleConn(s)
	tp.ageAnswer(c, time.Hour)
	if d := acquireLease(t, a); d == c || tp.discardedFor(event.DiscardUnanswered) != 1 || tp.slotCount() != 1 {
		t.Errorf("closed for %v, %d slots", tp.discarded, tp.slotCount())
	}
}

func TestIdleTimeoutAndMaxAgeAreEnforced(t *testing.T) {
	s := startStub(t, stubCaps)
	tp := s.newPool(Config{Settings: Settings{PoolIdleTimeout: 10 * time.Minute, MaxAge: time.Hour}})
	_, c, p := tp.idleConn(s)
	tp.sweep(time.Now().Add(9 * time.Minute))
	if tp.idleCount() != 1 {
		t.Fatalf("closed for %v", tp.discarded)
	}
	tp.sweep(time.Now().Add(11 * time.Minute))
	if tp.idleCount() != 0 || tp.discardedFor(event.DiscardTTL) != 1 || p.countCommand("UNSELECT") != 1 || c.Age() > time.Minute {
		t.Errorf("closed for %v", tp.discarded)
	}
	old := s.newPool(Config{Settings: Settings{MaxAge: time.Nanosecond}})
	a := old.mustLogIn("alice", "pw", VerifiedHere)
	a.Release(acquireLease(t, a))
	if old.discardedFor(event.DiscardAge) != 1 {
		t.Errorf("closed for %v", old.discarded)
	}
	none := Config{}.newTestPool(t, old.backend)
	a = none.mustLogIn("alice", "pw", VerifiedHere)
	a.Release(acquireLease(t, a))
	a.Close()
	if none.idleCount() != 0 || none.slotCount() != 0 {
		t.Error("a connection is idle without an IdleTimeout")
	}
}

func TestCleanerValidatesLongIdleConnections(t *testing.T) {
	s := startStub(t, stubCaps)
	tp := s.newPool(Config{ValidateAfter: time.Second, KeepAliveInterval: 2 * time.Hour})
	_, c, p := tp.idleConn(s)
	tp.ageAnswer(c, time.Hour)
	tp.sweep(time.Now())
	if p.countCommand("NOOP") != 0 {
		t.Error("validated too early")
	}
	tp.ageAnswer(c, time.Hour)
	tp.sweep(time.Now())
	if p.countCommand("NOOP") != 1 || tp.idleCount() != 1 {
		t.Errorf("validated %d times, closed for %v", p.countCommand("NOOP"), tp.discarded)
	}
}

func TestIdleConnectionHasNoBuffers(t *testing.T) {
	s := startStub(t, stubCaps)
	tp := s.newPool(Config{})
	_, c, _ := tp.idleConn(s)
	if c.BufferSize() != 0 {
		t.Errorf("the buffer has %d bytes", c.BufferSize())
	}
}
