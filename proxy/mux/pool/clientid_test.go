package pool

import (
	"context"
	"slices"
	"strings"
	"testing"

	"imapgate/internal/metrics"
	"imapgate/proxy/mux/lease"
)

const idCaps = stubCaps + " ID"

// sentIDs are the arguments of ID that a connection was told after its login.
func sentIDs(p *stubConn) (all []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	in := false
	for _, c := range p.commands {
		verb, args, _ := strings.Cut(c, " ")
		if verb == "ID" && in {
			all = append(all, args)
		}
		in = in || verb == "AUTHENTICATE"
	}
	return all
}

// leaseWithID logs in, says before the login what the name says, unless it is empty, and
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

// A connection that a client has introduced itself on is told of the next one, and of
// nobody twice.
func TestReusedConnectionIsSentTheNewClientID(t *testing.T) {
	s := startStub(t, idCaps)
	tp := s.newPool(Config{})
	a, c := tp.leaseWithID("A")
	var want []string // the login has said A
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
			t.Errorf("%q: was told %q, want %q", name, got, want)
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
		t.Errorf("was told %q", sentIDs(s.findConn(c)))
	}
	a.Release(c)
	a.Close()
}

// The gateway's own questions are asked in the client's name, and ENABLE comes behind ID.
func TestEveryConnectionIsSentTheClientID(t *testing.T) {
	s := startStub(t, idCaps)
	tp := s.newPool(Config{})
	a := tp.mustLogIn("alice", "pw", VerifiedHere)
	a.SetClientID(`("name" "A")`)
	first := a.TakeLoginConn()
	if first == nil || a.TakeLoginConn() != nil {
		t.Fatal("the connection of the login is not there once")
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
			t.Errorf("was told %q", got)
		}
	}
	if heard := s.findConn(c).commands; c != first || slices.Index(heard, `ID ("name" "A")`) > slices.Index(heard, "ENABLE CONDSTORE") {
		t.Errorf("heard %q", heard)
	}
	a.ReleaseAux(aux)
	a.Release(c)
	a.Close()
}

// Whatever the backend answers to ID, the connection is of use; one that is lost is not.
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
			_ = p.nc.Close()
			return true
		}
		p.send(strings.ReplaceAll(answer, "{T}", tag))
		return true
	}
	tp := s.newPool(Config{})
	a := tp.mustLogIn("alice", "pw", VerifiedHere)
	answers = []string{"{T} BAD what", "{T} NO [UNAVAILABLE] no", "* ID (\"a\" {3}\r\n\r\nx)\r\n* OK [ALERT] hear\r\n* NO quota\r\n{T} OK done", ""}
	for _, id := range []string{`("name" "A")`, `("name" "B")`, `("name" "C")`} {
		a.SetClientID(id)
		c := acquireLease(t, a)
		if heard := string(c.TakeAlerts()); (heard != "") != (id == `("name" "C")`) {
			t.Errorf("alerts %q", heard)
		}
		a.Release(c)
	}
	a.SetClientID(`("name" "D")`)
	if _, err := a.Acquire(context.Background(), ""); err == nil || tp.discardedFor(metrics.DiscardClosed) != 1 {
		t.Errorf("%v, %v", err, tp.discarded)
	}
	a.Close()
	if tp.slotCount() != 0 {
		t.Errorf("%d places are taken", tp.slotCount())
	}
}

// A backend that does not list ID is not asked.
func TestBackendWithoutIDIsNotSentID(t *testing.T) {
	s := startStub(t, stubCaps)
	tp := s.newPool(Config{})
	a, c := tp.leaseWithID("A")
	if got := sentIDs(s.findConn(c)); len(got) > 0 {
		t.Errorf("was told %q", got)
	}
	a.Release(c)
	a.Close()
}
