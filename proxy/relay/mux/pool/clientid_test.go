package pool

import (
	"context"
	"slices"
	"strings"
	"testing"

	"imapgate/internal/event"
	"imapgate/proxy/relay/mux/lease"
)

const idCaps = stubCaps + " ID"

// sentIDs returns the arguments of the ID commands that a connection received after its login.
func sentIDs(p *stubConn) (ids []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	loggedIn := false
	for _, c := range p.commands {
		verb, args, _ := strings.Cut(c, " ")
		if verb == "ID" && loggedIn {
			ids = append(ids, args)
		}
		loggedIn = loggedIn || verb == "AUTHENTICATE"
	}
	return ids
}

// leaseWithID logs in as a client that has sent ID with the name, unless it is empty, and
// returns a lease.
func (tp *testPool) leaseWithID(name string) (*Account, *lease.Conn) {
	tp.t.Helper()
	req := newRequest(tp.t, "alice", "pw")
	if name != "" {
		req.Client.ID = [][2]string{{"name", name}}
	}
	a, err := tp.Login(context.Background(), req, VerifiedHere)
	if err != nil {
		tp.t.Fatal(err)
	}
	return a, acquireLease(tp.t, a)
}

// A reused connection is sent the ID of its next client, but only if it differs.
func TestReusedConnectionIsSentTheNewClientID(t *testing.T) {
	s := startStub(t, idCaps)
	tp := s.newPool(Config{})
	a, c := tp.leaseWithID("A")
	var want []string // the login sent A
	use := func(name string, ids ...string) {
		t.Helper()
		a.Release(c)
		a.Close()
		var again *lease.Conn
		if a, again = tp.leaseWithID(name); again != c {
			t.Fatal("not the same connection")
		}
		want = append(want, ids...)
		if got := sentIDs(s.findConn(c)); !slices.Equal(got, want) {
			t.Errorf("%q: received %q, want %q", name, got, want)
		}
	}
	use("A")
	use("B", `("name" "B")`)
	use("")
	use("B")
	use("A", `("name" "A")`)
	a.SetClientID("NIL") // after its login
	a.Release(c)
	if c = acquireLease(t, a); !slices.Equal(sentIDs(s.findConn(c)), append(want, "NIL")) {
		t.Errorf("received %q", sentIDs(s.findConn(c)))
	}
	a.Release(c)
	a.Close()
}

// The gateway's own connections are sent the client's ID too, and ENABLE comes after ID.
func TestEveryConnectionIsSentTheClientID(t *testing.T) {
	s := startStub(t, idCaps)
	tp := s.newPool(Config{})
	a := tp.mustLogIn("alice", "pw", VerifiedHere)
	a.SetClientID(`("name" "A")`)
	first := a.TakeLoginConn()
	if first == nil || a.TakeLoginConn() != nil {
		t.Fatal("the connection of the login was not returned exactly once")
	}
	a.ReturnLoginConn(first)
	if _, err := a.ProbeExtensions(context.Background(), []string{"CONDSTORE"}); err != nil {
		t.Fatal(err)
	}
	c := acquireLease(t, a, "CONDSTORE")
	aux, err := a.AcquireAux(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []*lease.Conn{c, aux} {
		if got := sentIDs(s.findConn(c)); !slices.Equal(got, []string{`("name" "A")`}) {
			t.Errorf("received %q", got)
		}
	}
	if commands := s.findConn(c).commands; c != first || slices.Index(commands, `ID ("name" "A")`) > slices.Index(commands, "ENABLE CONDSTORE") {
		t.Errorf("received %q", commands)
	}
	a.ReleaseAux(aux)
	a.Release(c)
	a.Close()
}

// The connection stays usable whatever the backend answers to ID, unless it closes it.
func TestErrorResponseToIDIsIgnored(t *testing.T) {
	s := startStub(t, idCaps)
	var answers []string
	s.onCommand = func(p *stubConn, tag, command string) bool {
		if verb, _, _ := strings.Cut(command, " "); verb != "ID" || len(sentIDs(p)) == 0 {
			return false
		}
		s.mu.Lock()
		answer := answers[0]
		answers = answers[1:]
		s.mu.Unlock()
		if answer == "" {
			_ = p.Close()
			return true
		}
		_ = p.Send(strings.ReplaceAll(answer, "{T}", tag))
		return true
	}
	tp := s.newPool(Config{})
	a := tp.mustLogIn("alice", "pw", VerifiedHere)
	answers = []string{"{T} BAD what", "{T} NO [UNAVAILABLE] no", "* ID (\"a\" {3}\r\n\r\nx)\r\n* OK [ALERT] read this\r\n* NO quota\r\n{T} OK done", ""}
	for _, id := range []string{`("name" "A")`, `("name" "B")`, `("name" "C")`} {
		a.SetClientID(id)
		c := acquireLease(t, a)
		if alerts := string(c.TakeAlerts()); (alerts != "") != (id == `("name" "C")`) {
			t.Errorf("alerts %q", alerts)
		}
		a.Release(c)
	}
	a.SetClientID(`("name" "D")`)
	if _, err := a.Acquire(context.Background(), ""); err == nil || tp.discardedFor(event.DiscardClosed) != 1 {
		t.Errorf("%v, %v", err, tp.discarded)
	}
	a.Close()
	if tp.slotCount() != 0 {
		t.Errorf("%d slots are in use", tp.slotCount())
	}
}

// A backend that does not list ID is not sent the command.
func TestBackendWithoutIDIsNotSentID(t *testing.T) {
	s := startStub(t, stubCaps)
	tp := s.newPool(Config{})
	a, c := tp.leaseWithID("A")
	if got := sentIDs(s.findConn(c)); len(got) > 0 {
		t.Errorf("received %q", got)
	}
	a.Release(c)
	a.Close()
}
