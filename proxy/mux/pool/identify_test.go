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

// ids are the arguments of ID that a connection was told after its login.
func ids(p *peer) (all []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	in := false
	for _, c := range p.heard {
		verb, args, _ := strings.Cut(c, " ")
		if verb == "ID" && in {
			all = append(all, args)
		}
		in = in || verb == "AUTHENTICATE"
	}
	return all
}

// identified logs in, says before the login what the name says, unless it is empty, and
// returns a lease.
func (y *tally) identified(name string) (*Account, *lease.Conn) {
	y.t.Helper()
	who := request(y.t, "alice", "pw")
	if name != "" {
		who.Client.ID = [][2]string{{"name", name}}
	}
	a, err := y.Login(context.Background(), who, Vouched)
	if err != nil {
		y.t.Fatal(err)
	}
	return a, leased(y.t, a)
}

// A connection that a client has introduced itself on is told of the next one, and of
// nobody twice.
func TestAConnectionThatIsUsedAgainIsToldWhoUsesIt(t *testing.T) {
	s := startStub(t, idCaps)
	y := s.pool(Config{})
	a, c := y.identified("A")
	var want []string // the login has said A
	use := func(name string, told ...string) {
		t.Helper()
		a.Return(c)
		a.Close()
		var again *lease.Conn
		if a, again = y.identified(name); again != c {
			t.Fatal("not the same connection")
		}
		want = append(want, told...)
		if got := ids(s.of(c)); !slices.Equal(got, want) {
			t.Errorf("%q: was told %q, want %q", name, got, want)
		}
	}
	use("A")
	use("B", `("name" "B")`)
	use("")
	use("B")
	use("A", `("name" "A")`)
	a.Identify("NIL") // after its login
	a.Return(c)
	if c = leased(t, a); !slices.Equal(ids(s.of(c)), append(want, "NIL")) {
		t.Errorf("was told %q", ids(s.of(c)))
	}
	a.Return(c)
	a.Close()
}

// The gateway's own questions are asked in the client's name, and ENABLE comes behind ID.
func TestEveryKindOfConnectionIsToldOfTheClient(t *testing.T) {
	s := startStub(t, idCaps)
	y := s.pool(Config{})
	a := y.login("alice", "pw", Vouched)
	a.Identify(`("name" "A")`)
	first := a.First()
	if first == nil || a.First() != nil {
		t.Fatal("the connection of the login is not there once")
	}
	a.Keep(first)
	if _, err := a.Enable(context.Background(), []string{"CONDSTORE"}); err != nil {
		t.Fatal(err)
	}
	c := leased(t, a, "CONDSTORE")
	aux, err := a.Aux(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []*lease.Conn{c, aux} {
		if got := ids(s.of(c)); !slices.Equal(got, []string{`("name" "A")`}) {
			t.Errorf("was told %q", got)
		}
	}
	if heard := s.of(c).heard; c != first || slices.Index(heard, `ID ("name" "A")`) > slices.Index(heard, "ENABLE CONDSTORE") {
		t.Errorf("heard %q", heard)
	}
	a.ReturnAux(aux)
	a.Return(c)
	a.Close()
}

// Whatever the backend answers to ID, the connection is of use; one that is lost is not.
func TestAnAnswerToIDFailsNobody(t *testing.T) {
	s := startStub(t, idCaps)
	var answers []string
	s.react = func(p *peer, tag, command string) bool {
		if verb, _, _ := strings.Cut(command, " "); verb != "ID" || len(ids(p)) == 0 {
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
		p.say(strings.ReplaceAll(answer, "{T}", tag))
		return true
	}
	y := s.pool(Config{})
	a := y.login("alice", "pw", Vouched)
	answers = []string{"{T} BAD what", "{T} NO [UNAVAILABLE] no", "* ID (\"a\" {3}\r\n\r\nx)\r\n* OK [ALERT] hear\r\n* NO quota\r\n{T} OK done", ""}
	for _, id := range []string{`("name" "A")`, `("name" "B")`, `("name" "C")`} {
		a.Identify(id)
		c := leased(t, a)
		if heard := string(c.Alerts()); (heard != "") != (id == `("name" "C")`) {
			t.Errorf("alerts %q", heard)
		}
		a.Return(c)
	}
	a.Identify(`("name" "D")`)
	if _, err := a.Lease(context.Background(), ""); err == nil || y.closedFor(metrics.DiscardClosed) != 1 {
		t.Errorf("%v, %v", err, y.discarded)
	}
	a.Close()
	if y.places() != 0 {
		t.Errorf("%d places are taken", y.places())
	}
}

// A backend that does not list ID is not asked.
func TestABackendWithoutIDIsToldNothing(t *testing.T) {
	s := startStub(t, stubCaps)
	y := s.pool(Config{})
	a, c := y.identified("A")
	if got := ids(s.of(c)); len(got) > 0 {
		t.Errorf("was told %q", got)
	}
	a.Return(c)
	a.Close()
}
