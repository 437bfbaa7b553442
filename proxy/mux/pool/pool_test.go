package pool

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"imapgate/internal/identity"
	"imapgate/internal/metrics"
	"imapgate/internal/testbed"
	"imapgate/proxy/mux/lease"
	"imapgate/proxy/upstream"
)

func TestAConnectionComesBackToItsAccount(t *testing.T) {
	s := startStub(t, stubCaps)
	y := s.pool(Config{})
	a := y.login("alice", "pw", Vouched)
	if ok := a.OK(); ok.Code != "" || ok.Text != "welcome alice" {
		t.Errorf("%+v", ok)
	}
	c := leased(t, a)
	c.Selected = true
	a.Return(c)
	a.Close()

	b := y.login("alice", "pw", Vouched)
	if ok := b.OK(); !ok.IsZero() || !b.Caps().Has("QRESYNC") {
		t.Errorf("a login that asked nobody has the OK %+v and capabilities %q", ok, b.Caps())
	}
	again := leased(t, b)
	if again != c || again.Selected || s.tried() != 1 || y.reused != 1 {
		t.Errorf("not the same connection, clean: %d logins, %d reused", s.tried(), y.reused)
	}
	if s.of(c).count("UNSELECT") != 1 {
		t.Error("the mailbox was not left")
	}
	b.Return(again)
	b.Close()
}

func TestTheConnectionOfALoginThatNeededNoneWaits(t *testing.T) {
	s := startStub(t, stubCaps)
	y := s.pool(Config{})
	y.login("alice", "pw", Vouched).Close()
	if y.number() != 1 {
		t.Fatalf("%d wait", y.number())
	}
	y.login("alice", "pw", Vouched).Close()
	if s.tried() != 1 {
		t.Errorf("%d logins", s.tried())
	}
}

func TestNothingIsSharedBetweenLoginsThatDiffer(t *testing.T) {
	s := startStub(t, stubCaps)
	y := s.pool(Config{})
	a := y.login("alice", "pw", Vouched)
	c := leased(t, a)
	a.Return(c)
	a.Close()
	other := request(t, "alice", "pw")
	other.Login = "ALICE"
	waits := []int{1, 1, 0} // another password of the same login may be what it was changed to
	for i, r := range []upstream.Request{request(t, "alicf", "pw"), other, request(t, "alice", "app-pw")} {
		b, err := y.Login(context.Background(), r, Vouched)
		if err != nil {
			t.Fatal(err)
		}
		if d := leased(t, b); d == c {
			t.Errorf("%v has another login's connection", r.User)
		} else {
			b.Destroy(d, metrics.DiscardPinned)
		}
		b.Close()
		if y.number() != waits[i] {
			t.Errorf("%d wait behind login %d", y.number(), i)
		}
	}
	if s.tried() != 4 {
		t.Errorf("%d logins", s.tried())
	}
}

func TestATokensConnectionIsOnlyForThatToken(t *testing.T) {
	s := startStub(t, stubCaps+" AUTH=XOAUTH2")
	var y *tally
	bearer := func(token string) upstream.Request {
		who := request(t, "alice", "")
		who.Password, who.Token = identity.Secret{}, identity.NewSecret(token)
		return who
	}
	for _, proof := range []Proof{Vouched, Asked} {
		logins := s.tried()
		y = s.pool(Config{CredCache: true})
		var conns []*lease.Conn
		for _, who := range []upstream.Request{bearer("t1"), bearer("t2"), request(t, "alice", "t1"), request(t, "alice", "token t1")} {
			for again := range 2 {
				a, err := y.Login(context.Background(), who, proof)
				if err != nil {
					t.Fatal(err)
				}
				c := leased(t, a)
				kept := proof == Vouched || who.Token.IsZero() // only the backend knows when a token has ended
				if again == 0 && slices.Contains(conns, c) || again == 1 && kept != (c == conns[len(conns)-1]) {
					t.Errorf("proof %d, time %d: whose connection is this?", proof, again)
				}
				conns = append(conns, c)
				a.Return(c)
				a.Close()
			}
		}
		if proof == Vouched && s.tried() != logins+4 || proof == Asked && s.tried() != logins+6 {
			t.Errorf("proof %d: %d logins", proof, s.tried()-logins)
		}
	}
	a, err := y.Login(context.Background(), bearer("t1"), Vouched)
	if err != nil {
		t.Fatal(err)
	}
	first, second := leased(t, a), leased(t, a) // a session logs in again as it came
	a.Destroy(second, metrics.DiscardPinned)
	s.deny("alice", "token t1", "[AUTHENTICATIONFAILED] expired")
	if _, err := a.Lease(context.Background(), ""); !errors.Is(err, upstream.ErrDenied) {
		t.Errorf("a token past its time: %v", err)
	}
	a.Return(first)
	a.Close()
	if _, err := y.Login(context.Background(), bearer("t1"), Asked); !errors.Is(err, upstream.ErrDenied) {
		t.Errorf("a refused token is believed: %v", err)
	}
}

func TestATokenThatHasEndedIsShownToNobody(t *testing.T) {
	s := startStub(t, stubCaps+" AUTH=XOAUTH2")
	shown := s.pool(Config{})
	mastered := Config{ReuseTTL: time.Hour}.pool(t, upstream.New(upstream.Config{
		Name: "m", Address: s.l.Addr().String(), TLSMode: upstream.NoTLS, Login: upstream.MasterLogin,
		Master: upstream.Master{User: "gateway", Password: identity.NewSecret("pw")},
	}, upstream.Hooks{}, nopLog()))
	for y, more := range map[*tally]int{shown: 0, mastered: 2} { // logins behind its end
		who := request(t, "alice", "")
		who.Password, who.Token = identity.Secret{}, identity.NewSecret("t1")
		a, err := y.Login(context.Background(), who, Vouched)
		if err != nil {
			t.Fatal(err)
		}
		a.TokenEnds(time.Now().Add(time.Hour))
		first, second := leased(t, a), leased(t, a)
		a.TokenEnds(time.Now())
		logins := s.tried()
		_, client := a.Lease(context.Background(), "")
		_, aux := a.Aux(context.Background())
		if n := s.tried() - logins; n != more || errors.Is(client, ErrExpired) != (more == 0) || errors.Is(aux, ErrExpired) != (more == 0) {
			t.Errorf("%d logins, want %d; %v, %v", n, more, client, aux)
		}
		if n := y.places(); n != 2+more {
			t.Errorf("%d places are taken", n)
		}
		a.Return(first)
		if leased(t, a) != first {
			t.Error("a connection that was made with it is of no more use")
		}
		a.Destroy(second, metrics.DiscardPinned)
		a.Destroy(first, metrics.DiscardPinned)
		a.Close()
	}
}

func TestALeaseHasExactlyTheExtensionsOfItsSession(t *testing.T) {
	s := startStub(t, stubCaps)
	y := s.pool(Config{})
	a := y.login("alice", "pw", Vouched)
	full := leased(t, a, lease.Qresync)
	if full.Enabled != "CONDSTORE QRESYNC" {
		t.Errorf("enabled is %q", full.Enabled)
	}
	a.Return(full)
	plain := leased(t, a)
	if plain == full || who(t, plain) != "alice pw ()" {
		t.Error("a plain lease has more enabled")
	}
	a.Return(plain)
	if c := leased(t, a, lease.Condstore); c != plain || who(t, c) != "alice pw (CONDSTORE)" {
		t.Error("a plain connection was not upgraded")
	}
	if c := leased(t, a, lease.Qresync); c != full {
		t.Error("the connection with that very set was not taken")
	}
}

func TestALeaseFailsWhereTheBackendDoesNotEnableAll(t *testing.T) {
	s := startStub(t, stubCaps)
	s.react = func(p *peer, tag, command string) bool {
		if command == "ENABLE CONDSTORE QRESYNC" {
			p.say("* ENABLED CONDSTORE", tag+" OK")
			return true
		}
		return false
	}
	y := s.pool(Config{})
	a := y.login("alice", "pw", Vouched)
	_, err := a.Lease(context.Background(), "CONDSTORE QRESYNC")
	if !errors.Is(err, upstream.ErrUnavailable) || y.places() != 0 {
		t.Errorf("%v, %d connections", err, y.places())
	}
}

func TestEnableIsTriedOnceAndThenKnown(t *testing.T) {
	s := startStub(t, stubCaps+" X-NOT-ENABLED")
	s.react = func(p *peer, tag, command string) bool {
		enabled, ok := map[string]string{"ENABLE CONDSTORE": " condstore", "ENABLE UTF8=ACCEPT": " UTF8=Accept", "ENABLE X-NOT-ENABLED": ""}[command]
		if ok { // one by one, because one may bring another along
			p.say("* ENABLED"+enabled, tag+" OK")
		}
		return ok
	}
	y := s.pool(Config{})
	a := y.login("alice", "pw", Vouched)
	names := []string{"CondStore", "X-NOT-ENABLED", "X-NOT-LISTED", "UTF8=ACCEPT"}
	for range 2 {
		got, err := a.Enable(context.Background(), names)
		if err != nil || len(got) != 2 || got[0] != "condstore" || got[1] != "UTF8=Accept" {
			t.Fatalf("enabled are %q, %v", got, err)
		}
	}
	c := leased(t, a, "CONDSTORE", "UTF8=ACCEPT")
	if s.tried() != 1 || s.of(c).count("ENABLE CONDSTORE") != 1 || len(s.of(c).heard) != 4 {
		t.Errorf("%d logins, heard %q", s.tried(), s.of(c).heard)
	}
}

func TestAConnectionWithExtensionsNobodyUsedDoesNotBlockItsSession(t *testing.T) {
	s := startStub(t, stubCaps)
	y := s.pool(Config{MaxPerUser: 2}) // one, and one for the gateway
	a := y.login("alice", "pw", Vouched)
	if _, err := a.Enable(context.Background(), []string{"QRESYNC"}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*testbed.Patience)
	defer cancel()
	c, err := a.Lease(ctx, "")
	if err != nil || who(t, c) != "alice pw ()" {
		t.Errorf("%v", err)
	}
}

func TestTheBackendIsAskedForEveryLoginNobodyVouchesFor(t *testing.T) {
	s := startStub(t, stubCaps)
	y := s.pool(Config{})
	a := y.login("alice", "pw", Asked)
	a.Return(leased(t, a))
	b := y.login("alice", "pw", Asked)
	if s.tried() != 2 {
		t.Errorf("%d logins", s.tried())
	}
	a.Close()
	b.Close()
	if y.number() != 0 {
		t.Errorf("%d connections wait for nobody", y.number())
	}
}

func TestARememberedPasswordIsBelievedForATimeFromTheRealLogin(t *testing.T) {
	s := startStub(t, stubCaps)
	y := s.pool(Config{CredCache: true, CredTTL: time.Minute})
	use := func() {
		a := y.login("alice", "pw", Asked)
		a.Return(leased(t, a))
		a.Close()
	}
	use()
	use()
	if s.tried() != 1 {
		t.Fatalf("%d logins", s.tried())
	}
	y.Pool.mu.Lock()
	o := y.users[request(t, "alice", "").User].owners[0]
	o.verified = o.verified.Add(-time.Minute) // use does not lengthen it
	y.Pool.mu.Unlock()
	use()
	use()
	if s.tried() != 2 {
		t.Errorf("%d logins", s.tried())
	}
}

func TestAWrongPasswordTakesNothingFromTheRightOne(t *testing.T) {
	s := startStub(t, stubCaps)
	s.deny("alice", "wrong", "[AUTHENTICATIONFAILED] no")
	y := s.pool(Config{CredCache: true, MaxPerUser: 2, MaxTotal: 1})
	y.login("alice", "pw", Asked).Close()
	for range 3 {
		_, err := y.Login(context.Background(), request(t, "alice", "wrong"), Asked)
		if !errors.Is(err, upstream.ErrDenied) {
			t.Fatal(err)
		}
	}
	if y.number() != 1 {
		t.Errorf("%d wait", y.number())
	}
	y.login("alice", "pw", Asked).Close()
	if s.tried() != 4 || len(y.users) != 1 || len(y.users[request(t, "alice", "").User].owners) != 1 {
		t.Errorf("%d logins, %d users", s.tried(), len(y.users))
	}
}

func TestARefusedCredentialEndsWhatItWasGoodFor(t *testing.T) {
	for _, no := range []string{"[AUTHENTICATIONFAILED] no", "[EXPIRED] change it", "no"} {
		s := startStub(t, stubCaps)
		y := s.pool(Config{CredCache: true})
		y.several("pw", "app-pw")
		before := y.closedFor(metrics.DiscardCredentials)
		a := y.login("alice", "pw", Asked)
		out, back, extra := leased(t, a), leased(t, a), leased(t, a, lease.Condstore)
		a.Return(back)
		a.Return(extra)
		s.deny("alice", "pw", no)
		y.Pool.mu.Lock()
		a.owner.verified = time.Time{}
		y.Pool.mu.Unlock()
		if _, err := y.Login(context.Background(), request(t, "alice", "pw"), Asked); err == nil {
			t.Fatal("the login was not refused")
		}
		if y.number() != 1 || y.closedFor(metrics.DiscardCredentials) != before+2 {
			t.Errorf("%q: %d wait, closed %v", no, y.number(), y.discarded)
		}
		s.deny("alice", "pw", "")
		a.Return(out) // it is of the time before
		if y.number() != 1 || y.closedFor(metrics.DiscardCredentials) != before+3 {
			t.Errorf("%q: a connection of a refused credential waits: %v", no, y.discarded)
		}
		a.Close()
	}
}

func TestForgetEndsWhatWaits(t *testing.T) {
	s := startStub(t, stubCaps)
	y := s.pool(Config{})
	a := y.login("alice", "pw", Vouched)
	c := leased(t, a)
	a.Return(c)
	a.Forget()
	if y.number() != 0 || leased(t, a) == c {
		t.Error("it still waits")
	}
}

func TestABackendThatIsAwayIsSaidToBe(t *testing.T) {
	s := startStub(t, stubCaps)
	y := s.pool(Config{MaxPerUser: 2})
	a := y.login("alice", "pw", Vouched)
	a.Destroy(leased(t, a), metrics.DiscardPinned)
	_ = s.l.Close()
	for range 3 { // each gives its place back
		if _, err := a.Lease(context.Background(), ""); !errors.Is(err, upstream.ErrUnavailable) || errors.Is(err, ErrBusy) {
			t.Fatal(err)
		}
	}
	if _, err := y.Login(context.Background(), request(t, "bob", "pw"), Vouched); !errors.Is(err, upstream.ErrUnavailable) {
		t.Error(err)
	}
	a.Close()
	if len(y.users) != 0 || y.places() != 0 {
		t.Errorf("left behind: %d users, %d places", len(y.users), y.places())
	}
}

func TestNobodyVouchesForAMasterLoginByAsking(t *testing.T) {
	b := upstream.New(upstream.Config{Name: "m", Address: "127.0.0.1:1", TLSMode: upstream.NoTLS, Login: upstream.MasterLogin}, upstream.Hooks{}, nopLog())
	y := Config{ReuseTTL: time.Hour, CredCache: true}.pool(t, b)
	if _, err := y.Login(context.Background(), request(t, "alice", "any"), Asked); !errors.Is(err, errNobody) {
		t.Error(err)
	}
}

func TestAConnectionThatIsNotOutIsNotTakenBack(t *testing.T) {
	s := startStub(t, stubCaps)
	y := s.pool(Config{})
	a := y.login("alice", "pw", Vouched)
	c := leased(t, a)
	a.Return(c)
	defer func() {
		if recover() == nil {
			t.Error("given back twice without a panic")
		}
	}()
	a.Return(c)
}
