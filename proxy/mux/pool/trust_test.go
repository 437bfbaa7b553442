package pool

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"imapgate/internal/metrics"
	"imapgate/proxy/mux/lease"
	"imapgate/proxy/upstream"
)

// several makes alice an account with several passwords, as far as the pool can
// see: each is taken again after the others were. Something waits for each.
func (y *tally) several(passwords ...string) {
	y.t.Helper()
	for range 2 {
		for _, pw := range passwords {
			y.login("alice", pw, Asked).Close()
		}
	}
	if y.number() != len(passwords) {
		y.t.Fatalf("%d wait for %d passwords", y.number(), len(passwords))
	}
}

// asks says whether the backend is asked about a login of alice that has to
// succeed.
func (y *tally) asks(s *stub, password string) bool {
	y.t.Helper()
	before := s.tried()
	y.login("alice", password, Asked).Close()
	return s.tried() != before
}

func TestAPasswordIsNotBelievedOnceAnotherWasTaken(t *testing.T) {
	for _, proof := range []Proof{Asked, Vouched} {
		s := startStub(t, stubCaps)
		y := s.pool(Config{CredCache: true})
		old := y.login("alice", "old", Asked)
		out, waits := leased(t, old), leased(t, old)
		old.Return(waits)
		y.login("bob", "old", Asked).Close()
		y.login("alice", "new", proof).Close()
		if y.number() != 2 || y.closedFor(metrics.DiscardCredentials) != 1 {
			t.Errorf("%d wait, closed %v", y.number(), y.discarded)
		}
		if !old.owner.verified.IsZero() || old.owner.vouched {
			t.Error("the old password is still held to be good")
		}
		old.Return(out)
		if y.number() != 2 || y.closedFor(metrics.DiscardCredentials) != 2 {
			t.Errorf("a connection of the old password waits: %v", y.discarded)
		}
		old.Close()
		s.deny("alice", "old", "[AUTHENTICATIONFAILED] changed")
		if _, err := y.Login(context.Background(), request(t, "alice", "old"), Asked); !errors.Is(err, upstream.ErrDenied) {
			t.Errorf("the old password: %v", err)
		}
		if y.asks(s, "new") || y.number() != 2 {
			t.Error("the new password has lost something by the old one")
		}
	}
}

func TestAPasswordThatIsChangedBackIsTheOnlyOneBelieved(t *testing.T) {
	s := startStub(t, stubCaps)
	y := s.pool(Config{CredCache: true})
	for _, pw := range []string{"first", "second", "first"} {
		if !y.asks(s, pw) {
			t.Errorf("%s is believed", pw)
		}
	}
	if y.number() != 1 {
		t.Errorf("%d wait", y.number())
	}
	s.deny("alice", "second", "no")
	if _, err := y.Login(context.Background(), request(t, "alice", "second"), Asked); !errors.Is(err, upstream.ErrDenied) {
		t.Error(err)
	}
}

func TestPasswordsOfSeveralDevicesDoNotHinderEachOther(t *testing.T) {
	s := startStub(t, stubCaps)
	y := s.pool(Config{CredCache: true})
	all := []string{"phone", "desk", "tablet"}
	y.several(all...)
	for range 3 {
		for _, pw := range all {
			if y.asks(s, pw) {
				t.Errorf("%s is asked again", pw)
			}
		}
	}
	if s.tried() != 6 || y.closedFor(metrics.DiscardCredentials) != 3 {
		t.Errorf("%d logins, closed %v", s.tried(), y.discarded)
	}
}

func TestOnceOneOfSeveralPasswordsIsRefusedTheOthersAreDoubtedAgain(t *testing.T) {
	s := startStub(t, stubCaps)
	y := s.pool(Config{CredCache: true})
	y.several("phone", "desk", "tablet")
	y.Pool.mu.Lock()
	for _, o := range y.users[request(t, "alice", "").User].owners[:2] { // all but tablet
		o.verified = o.verified.Add(-time.Hour)
	}
	y.Pool.mu.Unlock()
	s.deny("alice", "phone", "no")
	if _, err := y.Login(context.Background(), request(t, "alice", "phone"), Asked); !errors.Is(err, upstream.ErrDenied) {
		t.Fatal(err)
	}
	if y.asks(s, "tablet") || y.number() != 2 {
		t.Errorf("the refusal of one has ended another: %d wait", y.number())
	}
	if !y.asks(s, "desk") || !y.asks(s, "tablet") {
		t.Error("tablet is believed, which may have been changed to desk")
	}
}

func TestAGuessDoesNotMakeSeveralPasswordsAskedAgain(t *testing.T) {
	s := startStub(t, stubCaps)
	y := s.pool(Config{CredCache: true})
	y.several("phone", "desk")
	s.deny("alice", "guess", "no")
	if _, err := y.Login(context.Background(), request(t, "alice", "guess"), Asked); !errors.Is(err, upstream.ErrDenied) {
		t.Fatal(err)
	}
	if y.asks(s, "phone") || y.asks(s, "desk") || y.number() != 2 {
		t.Errorf("%d wait", y.number())
	}
}

func TestAYesToTheOldPasswordThatComesLateIsNotBelieved(t *testing.T) {
	s := startStub(t, stubCaps)
	asked, answer := make(chan struct{}), make(chan struct{})
	slow := true // the first of them
	s.react = func(p *peer, tag, command string) bool {
		if strings.HasPrefix(command, "AUTHENTICATE") && slow {
			slow = false
			close(asked)
			<-answer
		}
		return false
	}
	y := s.pool(Config{CredCache: true})
	came := make(chan *Account, 1)
	go func() {
		a, err := y.Login(context.Background(), request(t, "alice", "old"), Asked)
		if err != nil {
			t.Error(err)
		}
		came <- a
	}()
	<-asked
	y.login("alice", "new", Asked).Close()
	close(answer)
	if a := <-came; a != nil {
		a.Close()
	}
	if y.number() != 1 || y.asks(s, "new") || !y.asks(s, "old") {
		t.Errorf("%d wait, %d logins", y.number(), s.tried())
	}
}

func TestSoManyPasswordsAreRememberedAndNoMore(t *testing.T) {
	s := startStub(t, stubCaps)
	y := s.pool(Config{CredCache: true})
	for n := range 3 * maxFormer {
		y.login("alice", fmt.Sprint("pw", n), Asked).Close()
	}
	u := y.users[request(t, "alice", "").User]
	if len(u.former) > maxFormer || len(u.owners) != 1 || y.number() != 1 {
		t.Errorf("%d remembered, %d owners, %d wait", len(u.former), len(u.owners), y.number())
	}
}

func TestNothingWaitsForAUserWhoHasLeft(t *testing.T) {
	s := startStub(t, stubCaps)
	y := s.pool(Config{CredCache: true})
	a := y.login("alice", "pw", Vouched)
	out, waits, aux := leased(t, a), leased(t, a), auxiliary(t, a)
	a.Return(waits)
	a.ReturnAux(aux)
	y.login("bob", "pw", Vouched).Close()
	y.Leave(request(t, "carol", "").User, metrics.DiscardMoved)
	y.Leave(a.User(), metrics.DiscardMoved)
	if y.number() != 1 || y.closedFor(metrics.DiscardMoved) != 2 {
		t.Errorf("%d wait, closed %v", y.number(), y.discarded)
	}
	a.Return(out)
	a.Close()
	if y.number() != 1 || y.places() != 1 || len(y.users) != 1 {
		t.Errorf("%d wait, %d places, %d users", y.number(), y.places(), len(y.users))
	}
	if !y.asks(s, "pw") {
		t.Error("who comes back is believed")
	}
}

// auxiliary is a connection of the gateway's own.
func auxiliary(t testing.TB, a *Account) *lease.Conn {
	t.Helper()
	c, err := a.Aux(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return c
}
