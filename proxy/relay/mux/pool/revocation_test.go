package pool

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"imapgate/internal/event"
	"imapgate/proxy/relay/mux/lease"
	"imapgate/proxy/upstream"
)

// useSeveralPasswords gives alice's account several passwords: each is accepted again after the
// others. Afterwards one connection is idle for each.
func (tp *testPool) useSeveralPasswords(passwords ...string) {
	tp.t.Helper()
	for range 2 {
		for _, pw := range passwords {
			tp.mustLogIn("alice", pw, BackendDecides).Close()
		}
	}
	if tp.idleCount() != len(passwords) {
		tp.t.Fatalf("%d idle for %d passwords", tp.idleCount(), len(passwords))
	}
}

// asksBackend reports whether a login of alice, which must succeed, is sent to the backend.
func (tp *testPool) asksBackend(s *stub, password string) bool {
	tp.t.Helper()
	before := s.loginAttempts()
	tp.mustLogIn("alice", password, BackendDecides).Close()
	return s.loginAttempts() != before
}

func TestNewPasswordInvalidatesTheOldOne(t *testing.T) {
	for _, verification := range []Verification{BackendDecides, VerifiedHere} {
		s := startStub(t, stubCaps)
		tp := s.newPool(Config{Settings: Settings{CredentialCache: true}})
		old := tp.mustLogIn("alice", "old", BackendDecides)
		out, released := acquireLease(t, old), acquireLease(t, old)
		old.Release(released)
		tp.mustLogIn("bob", "old", BackendDecides).Close()
		tp.mustLogIn("alice", "new", verification).Close()
		if tp.idleCount() != 2 || tp.discardedFor(event.DiscardCredentials) != 1 {
			t.Errorf("%d idle, closed for %v", tp.idleCount(), tp.discarded)
		}
		if !old.cred.verifiedAt.IsZero() || old.cred.verifiedHere {
			t.Error("the old password is still cached")
		}
		old.Release(out)
		if tp.idleCount() != 2 || tp.discardedFor(event.DiscardCredentials) != 2 {
			t.Errorf("a connection of the old password is idle: %v", tp.discarded)
		}
		old.Close()
		s.deny("alice", "old", "[AUTHENTICATIONFAILED] changed")
		if _, err := tp.Login(context.Background(), newRequest(t, "alice", "old"), BackendDecides); !errors.Is(err, upstream.ErrDenied) {
			t.Errorf("the old password: %v", err)
		}
		if tp.asksBackend(s, "new") || tp.idleCount() != 2 {
			t.Error("the old password invalidated the new one")
		}
	}
}

func TestPasswordChangedBackIsTheOnlyOneCached(t *testing.T) {
	s := startStub(t, stubCaps)
	tp := s.newPool(Config{Settings: Settings{CredentialCache: true}})
	for _, pw := range []string{"first", "second", "first"} {
		if !tp.asksBackend(s, pw) {
			t.Errorf("%s is cached", pw)
		}
	}
	if tp.idleCount() != 1 {
		t.Errorf("%d idle", tp.idleCount())
	}
	s.deny("alice", "second", "no")
	if _, err := tp.Login(context.Background(), newRequest(t, "alice", "second"), BackendDecides); !errors.Is(err, upstream.ErrDenied) {
		t.Error(err)
	}
}

func TestSeveralPasswordsStayCached(t *testing.T) {
	s := startStub(t, stubCaps)
	tp := s.newPool(Config{Settings: Settings{CredentialCache: true}})
	all := []string{"phone", "desk", "tablet"}
	tp.useSeveralPasswords(all...)
	for range 3 {
		for _, pw := range all {
			if tp.asksBackend(s, pw) {
				t.Errorf("%s is sent to the backend again", pw)
			}
		}
	}
	if s.loginAttempts() != 6 || tp.discardedFor(event.DiscardCredentials) != 3 {
		t.Errorf("%d logins, closed %v", s.loginAttempts(), tp.discarded)
	}
}

func TestRefusedPasswordMakesOthersInvalidateAgain(t *testing.T) {
	s := startStub(t, stubCaps)
	tp := s.newPool(Config{Settings: Settings{CredentialCache: true}})
	tp.useSeveralPasswords("phone", "desk", "tablet")
	tp.Pool.mu.Lock()
	for _, cred := range tp.users[newRequest(t, "alice", "").User].credentials[:2] { // all but tablet
		cred.verifiedAt = cred.verifiedAt.Add(-time.Hour)
	}
	tp.Pool.mu.Unlock()
	s.deny("alice", "phone", "no")
	if _, err := tp.Login(context.Background(), newRequest(t, "alice", "phone"), BackendDecides); !errors.Is(err, upstream.ErrDenied) {
		t.Fatal(err)
	}
	if tp.asksBackend(s, "tablet") || tp.idleCount() != 2 {
		t.Errorf("the refusal of one password invalidated another: %d idle", tp.idleCount())
	}
	if !tp.asksBackend(s, "desk") || !tp.asksBackend(s, "tablet") {
		t.Error("tablet is cached, although it may have been changed to desk")
	}
}

func TestWrongGuessKeepsCachedPasswords(t *testing.T) {
	s := startStub(t, stubCaps)
	tp := s.newPool(Config{Settings: Settings{CredentialCache: true}})
	tp.useSeveralPasswords("phone", "desk")
	s.deny("alice", "guess", "no")
	if _, err := tp.Login(context.Background(), newRequest(t, "alice", "guess"), BackendDecides); !errors.Is(err, upstream.ErrDenied) {
		t.Fatal(err)
	}
	if tp.asksBackend(s, "phone") || tp.asksBackend(s, "desk") || tp.idleCount() != 2 {
		t.Errorf("%d idle", tp.idleCount())
	}
}

func TestLateSuccessOfOldPasswordIsIgnored(t *testing.T) {
	s := startStub(t, stubCaps)
	received, answer := make(chan struct{}), make(chan struct{})
	slow := true // the first login
	s.onCommand = func(p *stubConn, tag, command string) bool {
		if strings.HasPrefix(command, "AUTHENTICATE") && slow {
			slow = false
			close(received)
			<-answer
		}
		return false
	}
	tp := s.newPool(Config{Settings: Settings{CredentialCache: true}})
	logins := make(chan *Account, 1)
	go func() {
		a, err := tp.Login(context.Background(), newRequest(t, "alice", "old"), BackendDecides)
		if err != nil {
			t.Error(err)
		}
		logins <- a
	}()
	<-received
	tp.mustLogIn("alice", "new", BackendDecides).Close()
	close(answer)
	if a := <-logins; a != nil {
		a.Close()
	}
	if tp.idleCount() != 1 || tp.asksBackend(s, "new") || !tp.asksBackend(s, "old") {
		t.Errorf("%d idle, %d logins", tp.idleCount(), s.loginAttempts())
	}
}

func TestFormerCredentialsAreLimited(t *testing.T) {
	s := startStub(t, stubCaps)
	tp := s.newPool(Config{Settings: Settings{CredentialCache: true}})
	for n := range 3 * maxFormerCredentials {
		tp.mustLogIn("alice", fmt.Sprint("pw", n), BackendDecides).Close()
	}
	u := tp.users[newRequest(t, "alice", "").User]
	if len(u.formerCredentials) > maxFormerCredentials || len(u.credentials) != 1 || tp.idleCount() != 1 {
		t.Errorf("%d former, %d credentials, %d idle", len(u.formerCredentials), len(u.credentials), tp.idleCount())
	}
}

func TestEvictUserDiscardsIdleConnections(t *testing.T) {
	s := startStub(t, stubCaps)
	tp := s.newPool(Config{Settings: Settings{CredentialCache: true}})
	a := tp.mustLogIn("alice", "pw", VerifiedHere)
	out, released, aux := acquireLease(t, a), acquireLease(t, a), acquireAux(t, a)
	a.Release(released)
	a.ReleaseAux(aux)
	tp.mustLogIn("bob", "pw", VerifiedHere).Close()
	tp.EvictUser(newRequest(t, "carol", "").User, "", event.DiscardMoved)
	tp.EvictUser(a.User(), "", event.DiscardMoved)
	if tp.idleCount() != 1 || tp.discardedFor(event.DiscardMoved) != 2 {
		t.Errorf("%d idle, closed for %v", tp.idleCount(), tp.discarded)
	}
	a.Release(out)
	a.Close()
	if tp.idleCount() != 1 || tp.slotCount() != 1 || len(tp.users) != 1 {
		t.Errorf("%d idle, %d slots, %d users", tp.idleCount(), tp.slotCount(), len(tp.users))
	}
	if !tp.asksBackend(s, "pw") {
		t.Error("the login is still cached")
	}
}

// acquireAux leases a connection for the gateway itself.
func acquireAux(t testing.TB, a *Account) *lease.Conn {
	t.Helper()
	c, err := a.AcquireAux(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return c
}
