package pool

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"imapgate/internal/event"
	"imapgate/internal/identity"
	"imapgate/internal/imap"
	"imapgate/internal/testbed"
	"imapgate/proxy/relay/mux/lease"
	"imapgate/proxy/upstream"
)

func TestConnectionIsReusedByItsAccount(t *testing.T) {
	s := startStub(t, stubCaps)
	tp := s.newPool(Config{})
	a := tp.mustLogIn("alice", "pw", VerifiedHere)
	if ok := a.OK(); ok.Code != "" || ok.Text != "welcome alice" {
		t.Errorf("%+v", ok)
	}
	c := acquireLease(t, a)
	c.Selected = true
	a.Release(c)
	a.Close()

	b := tp.mustLogIn("alice", "pw", VerifiedHere)
	if ok := b.OK(); !ok.IsZero() || !b.Caps().Has("QRESYNC") {
		t.Errorf("a cached login has the OK %+v and capabilities %q", ok, b.Caps())
	}
	again := acquireLease(t, b)
	if again != c || again.Selected || s.loginAttempts() != 1 || tp.reused != 1 {
		t.Errorf("not the same connection, or not clean: %d logins, %d reused", s.loginAttempts(), tp.reused)
	}
	if s.findConn(c).countCommand("UNSELECT") != 1 {
		t.Error("the mailbox was not left")
	}
	b.Release(again)
	b.Close()
}

func TestUnusedLoginConnectionIsPooled(t *testing.T) {
	s := startStub(t, stubCaps)
	tp := s.newPool(Config{})
	tp.mustLogIn("alice", "pw", VerifiedHere).Close()
	if tp.idleCount() != 1 {
		t.Fatalf("%d idle", tp.idleCount())
	}
	tp.mustLogIn("alice", "pw", VerifiedHere).Close()
	if s.loginAttempts() != 1 {
		t.Errorf("%d logins", s.loginAttempts())
	}
}

func TestNothingIsSharedBetweenLoginsThatDiffer(t *testing.T) {
	s := startStub(t, stubCaps)
	tp := s.newPool(Config{})
	a := tp.mustLogIn("alice", "pw", VerifiedHere)
	c := acquireLease(t, a)
	a.Release(c)
	a.Close()
	other := newRequest(t, "alice", "pw")
	other.Login = "ALICE"
	idle := []int{1, 1, 0} // another password of the same login may be the new one
	for i, r := range []upstream.Request{newRequest(t, "alicf", "pw"), other, newRequest(t, "alice", "app-pw")} {
		b, err := tp.Login(context.Background(), r, VerifiedHere)
		if err != nil {
			t.Fatal(err)
		}
		if d := acquireLease(t, b); d == c {
			t.Errorf("%v has another login's connection", r.User)
		} else {
			b.Discard(d, event.DiscardPinned)
		}
		b.Close()
		if tp.idleCount() != idle[i] {
			t.Errorf("%d idle after login %d", tp.idleCount(), i)
		}
	}
	if s.loginAttempts() != 4 {
		t.Errorf("%d logins", s.loginAttempts())
	}
}

func TestTokenConnectionIsOnlyForThatToken(t *testing.T) {
	s := startStub(t, stubCaps+" AUTH=XOAUTH2")
	var tp *testPool
	bearer := func(token string) upstream.Request {
		req := newRequest(t, "alice", "")
		req.Password, req.Token = identity.Secret{}, identity.NewSecret(token)
		return req
	}
	for _, verification := range []Verification{VerifiedHere, BackendDecides} {
		logins := s.loginAttempts()
		tp = s.newPool(Config{Settings: Settings{CredentialCache: true}})
		var conns []*lease.Conn
		for _, req := range []upstream.Request{bearer("t1"), bearer("t2"), newRequest(t, "alice", "t1"), newRequest(t, "alice", "token t1")} {
			for again := range 2 {
				a, err := tp.Login(context.Background(), req, verification)
				if err != nil {
					t.Fatal(err)
				}
				c := acquireLease(t, a)
				cached := verification == VerifiedHere || req.Token.IsZero() // only the backend knows when a token expires
				if again == 0 && slices.Contains(conns, c) || again == 1 && cached != (c == conns[len(conns)-1]) {
					t.Errorf("verification %d, login %d: wrong connection", verification, again)
				}
				conns = append(conns, c)
				a.Release(c)
				a.Close()
			}
		}
		if verification == VerifiedHere && s.loginAttempts() != logins+4 || verification == BackendDecides && s.loginAttempts() != logins+6 {
			t.Errorf("verification %d: %d logins", verification, s.loginAttempts()-logins)
		}
	}
	a, err := tp.Login(context.Background(), bearer("t1"), VerifiedHere)
	if err != nil {
		t.Fatal(err)
	}
	first, second := acquireLease(t, a), acquireLease(t, a) // the second lease logs in with the token again
	a.Discard(second, event.DiscardPinned)
	s.deny("alice", "token t1", "[AUTHENTICATIONFAILED] expired")
	if _, err := a.Acquire(context.Background(), ""); !errors.Is(err, upstream.ErrDenied) {
		t.Errorf("expired token: %v", err)
	}
	a.Release(first)
	a.Close()
	if _, err := tp.Login(context.Background(), bearer("t1"), BackendDecides); !errors.Is(err, upstream.ErrDenied) {
		t.Errorf("a refused token was accepted: %v", err)
	}
}

func TestExpiredTokenIsNotSent(t *testing.T) {
	s := startStub(t, stubCaps+" AUTH=XOAUTH2")
	passthrough := s.newPool(Config{})
	master := Config{Settings: Settings{PoolIdleTimeout: time.Hour}}.newTestPool(t, upstream.New(testbed.WithDefaults(upstream.Config{
		Name: "m", Settings: upstream.Settings{Address: s.Addr(), TLS: event.NoTLS, Login: upstream.MasterLogin, Master: upstream.Master{User: "gateway", Password: identity.NewSecret("pw")}},
	}), upstream.Hooks{}, nopLog()))
	for tp, more := range map[*testPool]int{passthrough: 0, master: 2} { // logins after the token expired
		req := newRequest(t, "alice", "")
		req.Password, req.Token = identity.Secret{}, identity.NewSecret("t1")
		a, err := tp.Login(context.Background(), req, VerifiedHere)
		if err != nil {
			t.Fatal(err)
		}
		a.SetTokenEnd(time.Now().Add(time.Hour))
		first, second := acquireLease(t, a), acquireLease(t, a)
		a.SetTokenEnd(time.Now())
		logins := s.loginAttempts()
		_, clientErr := a.Acquire(context.Background(), "")
		_, auxErr := a.AcquireAux(context.Background())
		if n := s.loginAttempts() - logins; n != more || errors.Is(clientErr, ErrExpired) != (more == 0) || errors.Is(auxErr, ErrExpired) != (more == 0) {
			t.Errorf("%d logins, want %d; %v, %v", n, more, clientErr, auxErr)
		}
		if n := tp.slotCount(); n != 2+more {
			t.Errorf("%d slots are in use", n)
		}
		a.Release(first)
		if acquireLease(t, a) != first {
			t.Error("a connection opened with the token was not reused")
		}
		a.Discard(second, event.DiscardPinned)
		a.Discard(first, event.DiscardPinned)
		a.Close()
	}
}

// Sessions of a user share a credential at a backend with a master login. Each moves with its own.
func TestASessionMovesWithItsOwnCredential(t *testing.T) {
	s := startStub(t, stubCaps+" AUTH=XOAUTH2")
	target := s.newPool(Config{})
	master := Config{Settings: Settings{PoolIdleTimeout: time.Hour}}.newTestPool(t, upstream.New(testbed.WithDefaults(upstream.Config{
		Name: "m", Settings: upstream.Settings{Address: s.Addr(), TLS: event.NoTLS, Login: upstream.MasterLogin, Master: upstream.Master{User: "gateway", Password: identity.NewSecret("pw")}},
	}), upstream.Hooks{}, nopLog()))
	bearer := newRequest(t, "alice", "")
	bearer.Password, bearer.Token = identity.Secret{}, identity.NewSecret("t1")
	var accounts []*Account
	for _, req := range []upstream.Request{bearer, newRequest(t, "alice", "secret")} {
		a, err := master.Login(context.Background(), req, VerifiedHere)
		if err != nil {
			t.Fatal(err)
		}
		defer a.Close()
		moved, err := a.LoginAt(context.Background(), target.Pool, "alice")
		if err != nil {
			t.Fatal(err)
		}
		defer moved.Close()
		if got := moved.loginRequest(); got.Token != req.Token || got.Password != req.Password {
			t.Error("the credential is not the client's")
		}
		accounts = append(accounts, a)
	}
	accounts[0].SetTokenEnd(time.Now())
	logins := s.loginAttempts()
	if _, err := accounts[0].LoginAt(context.Background(), target.Pool, "alice"); !errors.Is(err, ErrExpired) || s.loginAttempts() != logins {
		t.Errorf("an expired token was sent, or %v", err)
	}
}

func TestLeaseHasExactlyItsSessionsExtensions(t *testing.T) {
	s := startStub(t, stubCaps)
	tp := s.newPool(Config{})
	a := tp.mustLogIn("alice", "pw", VerifiedHere)
	full := acquireLease(t, a, imap.Qresync)
	if full.Enabled != "CONDSTORE QRESYNC" {
		t.Errorf("enabled is %q", full.Enabled)
	}
	a.Release(full)
	plain := acquireLease(t, a)
	if plain == full || identifyConn(t, plain) != "alice pw ()" {
		t.Error("a plain lease has more enabled")
	}
	a.Release(plain)
	if c := acquireLease(t, a, imap.Condstore); c != plain || identifyConn(t, c) != "alice pw (CONDSTORE)" {
		t.Error("a plain connection was not upgraded")
	}
	if c := acquireLease(t, a, imap.Qresync); c != full {
		t.Error("the connection with exactly that set was not reused")
	}
}

func TestALeaseFailsWhereTheBackendDoesNotEnableAll(t *testing.T) {
	s := startStub(t, stubCaps)
	s.onCommand = func(p *stubConn, tag, command string) bool {
		if command == "ENABLE CONDSTORE QRESYNC" {
			_ = p.Send("* ENABLED CONDSTORE", tag+" OK")
			return true
		}
		return false
	}
	tp := s.newPool(Config{})
	a := tp.mustLogIn("alice", "pw", VerifiedHere)
	_, err := a.Acquire(context.Background(), "CONDSTORE QRESYNC")
	if !errors.Is(err, upstream.ErrUnavailable) || tp.slotCount() != 0 {
		t.Errorf("%v, %d connections", err, tp.slotCount())
	}
}

func TestEnableEffectIsProbedOnce(t *testing.T) {
	s := startStub(t, stubCaps+" X-NOT-ENABLED")
	s.onCommand = func(p *stubConn, tag, command string) bool {
		enabled, ok := map[string]string{"ENABLE CONDSTORE": " condstore", "ENABLE UTF8=ACCEPT": " UTF8=Accept", "ENABLE X-NOT-ENABLED": ""}[command]
		if ok { // one by one, because one may imply another
			_ = p.Send("* ENABLED"+enabled, tag+" OK")
		}
		return ok
	}
	tp := s.newPool(Config{})
	a := tp.mustLogIn("alice", "pw", VerifiedHere)
	names := []string{"CondStore", "X-NOT-ENABLED", "X-NOT-LISTED", "UTF8=ACCEPT"}
	for range 2 {
		got, err := a.ProbeExtensions(context.Background(), names)
		if err != nil || len(got) != 2 || got[0] != "condstore" || got[1] != "UTF8=Accept" {
			t.Fatalf("enabled are %q, %v", got, err)
		}
	}
	c := acquireLease(t, a, "CONDSTORE", "UTF8=ACCEPT")
	if s.loginAttempts() != 1 || s.findConn(c).countCommand("ENABLE CONDSTORE") != 1 || len(s.findConn(c).commands) != 4 {
		t.Errorf("%d logins, received %q", s.loginAttempts(), s.findConn(c).commands)
	}
}

func TestProbedConnectionDoesNotBlockItsSession(t *testing.T) {
	s := startStub(t, stubCaps)
	tp := s.newPool(Config{Settings: Settings{MaxPerUser: 2}}) // one, and one for the gateway
	a := tp.mustLogIn("alice", "pw", VerifiedHere)
	if _, err := a.ProbeExtensions(context.Background(), []string{"QRESYNC"}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*testbed.Timeout)
	defer cancel()
	c, err := a.Acquire(ctx, "")
	if err != nil || identifyConn(t, c) != "alice pw ()" {
		t.Errorf("%v", err)
	}
}

func TestBackendVerifiesEveryUnverifiedLogin(t *testing.T) {
	s := startStub(t, stubCaps)
	tp := s.newPool(Config{})
	a := tp.mustLogIn("alice", "pw", BackendDecides)
	a.Release(acquireLease(t, a))
	b := tp.mustLogIn("alice", "pw", BackendDecides)
	if s.loginAttempts() != 2 {
		t.Errorf("%d logins", s.loginAttempts())
	}
	a.Close()
	b.Close()
	if tp.idleCount() != 0 {
		t.Errorf("%d connections are idle", tp.idleCount())
	}
}

func TestCachedCredentialExpiresAfterItsTTL(t *testing.T) {
	s := startStub(t, stubCaps)
	tp := s.newPool(Config{Settings: Settings{CredentialCache: true, CredentialCacheTTL: time.Minute}})
	use := func() {
		a := tp.mustLogIn("alice", "pw", BackendDecides)
		a.Release(acquireLease(t, a))
		a.Close()
	}
	use()
	use()
	if s.loginAttempts() != 1 {
		t.Fatalf("%d logins", s.loginAttempts())
	}
	tp.Pool.mu.Lock()
	cred := tp.users[newRequest(t, "alice", "").User].credentials[0]
	cred.verifiedAt = cred.verifiedAt.Add(-time.Minute) // reuse does not extend it
	tp.Pool.mu.Unlock()
	use()
	use()
	if s.loginAttempts() != 2 {
		t.Errorf("%d logins", s.loginAttempts())
	}
}

func TestWrongPasswordDoesNotEvictTheRightOne(t *testing.T) {
	s := startStub(t, stubCaps)
	s.deny("alice", "wrong", "[AUTHENTICATIONFAILED] no")
	tp := s.newPool(Config{Settings: Settings{CredentialCache: true, MaxPerUser: 2, MaxTotal: 1}})
	tp.mustLogIn("alice", "pw", BackendDecides).Close()
	for range 3 {
		_, err := tp.Login(context.Background(), newRequest(t, "alice", "wrong"), BackendDecides)
		if !errors.Is(err, upstream.ErrDenied) {
			t.Fatal(err)
		}
	}
	if tp.idleCount() != 1 {
		t.Errorf("%d idle", tp.idleCount())
	}
	tp.mustLogIn("alice", "pw", BackendDecides).Close()
	if s.loginAttempts() != 4 || len(tp.users) != 1 || len(tp.users[newRequest(t, "alice", "").User].credentials) != 1 {
		t.Errorf("%d logins, %d users", s.loginAttempts(), len(tp.users))
	}
}

func TestRefusedCredentialDiscardsItsConnections(t *testing.T) {
	for _, no := range []string{"[AUTHENTICATIONFAILED] no", "[EXPIRED] change it", "no"} {
		s := startStub(t, stubCaps)
		tp := s.newPool(Config{Settings: Settings{CredentialCache: true}})
		tp.useSeveralPasswords("pw", "app-pw")
		before := tp.discardedFor(event.DiscardCredentials)
		a := tp.mustLogIn("alice", "pw", BackendDecides)
		leased, released, extra := acquireLease(t, a), acquireLease(t, a), acquireLease(t, a, imap.Condstore)
		a.Release(released)
		a.Release(extra)
		s.deny("alice", "pw", no)
		tp.Pool.mu.Lock()
		a.cred.verifiedAt = time.Time{}
		tp.Pool.mu.Unlock()
		if _, err := tp.Login(context.Background(), newRequest(t, "alice", "pw"), BackendDecides); err == nil {
			t.Fatal("the login was not refused")
		}
		if tp.idleCount() != 1 || tp.discardedFor(event.DiscardCredentials) != before+2 {
			t.Errorf("%q: %d idle, closed for %v", no, tp.idleCount(), tp.discarded)
		}
		s.deny("alice", "pw", "")
		a.Release(leased) // its generation is older
		if tp.idleCount() != 1 || tp.discardedFor(event.DiscardCredentials) != before+3 {
			t.Errorf("%q: a connection of a refused credential is idle: %v", no, tp.discarded)
		}
		a.Close()
	}
}

func TestRevokeCredentialDiscardsIdleConnections(t *testing.T) {
	s := startStub(t, stubCaps)
	tp := s.newPool(Config{})
	a := tp.mustLogIn("alice", "pw", VerifiedHere)
	c := acquireLease(t, a)
	a.Release(c)
	a.RevokeCredential()
	if tp.idleCount() != 0 || acquireLease(t, a) == c {
		t.Error("the connection is still idle")
	}
}

func TestDownBackendIsReportedAsUnavailable(t *testing.T) {
	s := startStub(t, stubCaps)
	tp := s.newPool(Config{Settings: Settings{MaxPerUser: 2}})
	a := tp.mustLogIn("alice", "pw", VerifiedHere)
	a.Discard(acquireLease(t, a), event.DiscardPinned)
	s.Refuse()
	for range 3 { // each must release its slot
		if _, err := a.Acquire(context.Background(), ""); !errors.Is(err, upstream.ErrUnavailable) || errors.Is(err, ErrBusy) {
			t.Fatal(err)
		}
	}
	if _, err := tp.Login(context.Background(), newRequest(t, "bob", "pw"), VerifiedHere); !errors.Is(err, upstream.ErrUnavailable) {
		t.Error(err)
	}
	a.Close()
	if len(tp.users) != 0 || tp.slotCount() != 0 {
		t.Errorf("not removed: %d users, %d slots", len(tp.users), tp.slotCount())
	}
}

func TestMasterLoginNeedsVerification(t *testing.T) {
	b := upstream.New(testbed.WithDefaults(upstream.Config{Name: "m", Settings: upstream.Settings{Address: "127.0.0.1:1", TLS: event.NoTLS, Login: upstream.MasterLogin}}), upstream.Hooks{}, nopLog())
	tp := Config{Settings: Settings{PoolIdleTimeout: time.Hour, CredentialCache: true}}.newTestPool(t, b)
	if _, err := tp.Login(context.Background(), newRequest(t, "alice", "any"), BackendDecides); !errors.Is(err, errUnverifiedMaster) {
		t.Error(err)
	}
}

func TestReleaseOfUnleasedConnectionPanics(t *testing.T) {
	s := startStub(t, stubCaps)
	tp := s.newPool(Config{})
	a := tp.mustLogIn("alice", "pw", VerifiedHere)
	c := acquireLease(t, a)
	a.Release(c)
	defer func() {
		if recover() == nil {
			t.Error("released twice without a panic")
		}
	}()
	a.Release(c)
}
