package auth

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"testing"
	"time"

	"go.uber.org/zap"

	"imapgate/internal/identity"
)

func nobodyAnswers(context.Context, Login) (Answer, error) { return Answer{}, errors.New("away") }

func nobodyVerifies(context.Context, identity.Secret) (string, time.Time, error) {
	return "", time.Time{}, errors.New("away")
}

// tokens verifies tokens that are names, and no other.
func tokensOf(names map[string]string, until time.Time) VerifyToken {
	return func(_ context.Context, token identity.Secret) (string, time.Time, error) {
		if name, ok := names[token.Reveal()]; ok {
			return name, until, nil
		}
		return "", time.Time{}, ErrDenied
	}
}

func methodsAuth(t *testing.T, from Sources, methods ...string) *Authenticator {
	t.Helper()
	a, err := New(Config{Methods: methods, Names: rewriting(t)}, from, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestATokenSaysWhoItsHolderIs(t *testing.T) {
	until := time.Now().Add(time.Hour)
	a := methodsAuth(t, Sources{Redis: records(nil), OAuth: tokensOf(map[string]string{"t1": "Alice", "t2": "not a name", "t4": "alice+x", "t5": `CORP\alice`}, until)}, Redis, OAuth, Passthrough)
	alice, _ := a.Canon("alice")
	bob, _ := a.Canon("bob")
	for what, c := range map[string]struct {
		login Login
		right bool
	}{
		"without a name":                   {Login{Token: secret("t1")}, true},
		"with the same name":               {Login{Token: secret("t1"), User: alice}, true},
		"with another's":                   {Login{Token: secret("t1"), User: bob}, false},
		"a name nobody can have":           {Login{Token: secret("t2")}, false},
		"another account's, with a detail": {Login{Token: secret("t4")}, false},
		"another account's, with a prefix": {Login{Token: secret("t5")}, false},
		"a token of nobody's":              {Login{Token: secret("t3"), User: alice}, false}, // and not passed through
		"what is no token":                 {Login{Token: secret("t 1")}, false},
	} {
		id, err := a.Authenticate(t.Context(), c.login)
		if !c.right {
			if !errors.Is(err, ErrDenied) || id != (Identity{}) {
				t.Errorf("%s: %v, %v", what, id, err)
			}
			continue
		}
		if err != nil || id.User() != alice || id.Token().Reveal() != "t1" || id.Method() != OAuth || !id.Decided() || !id.Expires().Equal(until) || !id.Password().IsZero() {
			t.Errorf("%s: %v, %v", what, id, err)
		}
	}
}

func TestAVerifierThatIsAwayIsUnavailable(t *testing.T) {
	a := methodsAuth(t, Sources{OAuth: nobodyVerifies, HTTP: nobodyAnswers}, OAuth, HTTP, Passthrough)
	alice, _ := a.Canon("alice")
	for _, l := range []Login{{Token: secret("t")}, {User: alice, Password: secret("x")}} {
		if _, err := a.Authenticate(t.Context(), l); !errors.Is(err, ErrUnavailable) || errors.Is(err, ErrDenied) {
			t.Errorf("%v", err)
		}
	}
}

func TestPassthroughLeavesTokensToTheBackend(t *testing.T) {
	a := methodsAuth(t, Sources{}, Passthrough)
	alice, _ := a.Canon("alice")
	id, err := a.Authenticate(t.Context(), Login{Token: secret("t"), User: alice})
	if err != nil || id.User() != alice || id.Token().Reveal() != "t" || id.Decided() {
		t.Errorf("%v, %v", id, err)
	}
	if _, err := a.Authenticate(t.Context(), Login{Token: secret("t")}); !errors.Is(err, ErrDenied) {
		t.Errorf("a token without a name cannot be routed: %v", err)
	}
}

func TestATokenIsNoPassword(t *testing.T) {
	a := methodsAuth(t, Sources{Redis: records(map[string]string{"alice@example.org": "{PLAIN}t"})}, Redis)
	alice, _ := a.Canon("alice")
	if _, err := a.Authenticate(t.Context(), Login{Token: secret("t"), User: alice}); !errors.Is(err, ErrDenied) {
		t.Errorf("a token opened what a password opens: %v", err)
	}
}

func TestAnAuthServersAnswerIsUsedAtTheBackend(t *testing.T) {
	server := netip.MustParseAddrPort("192.0.2.1:143")
	wait := &Wait{For: time.Second, Err: ErrDenied}
	a := methodsAuth(t, Sources{HTTP: func(_ context.Context, l Login) (Answer, error) {
		switch l.Password.Reveal() {
		case "plain":
			return Answer{Server: server}, nil
		case "other":
			return Answer{Server: server, User: "u123", Password: secret("changed")}, nil
		case "later":
			return Answer{}, wait
		}
		return Answer{}, ErrDenied
	}}, HTTP)
	alice, _ := a.Canon("alice")
	ask := func(password string) (Identity, error) {
		return a.Authenticate(t.Context(), Login{User: alice, Password: secret(password), Mechanism: CommandLogin})
	}
	if id, err := ask("plain"); err != nil || id.User() != alice || id.Login() != "" || id.Password().Reveal() != "plain" || id.Placed() != server || id.Method() != HTTP {
		t.Errorf("%v, %v", id, err)
	}
	if id, err := ask("other"); err != nil || id.User() != alice || id.Login() != "u123" || id.Password().Reveal() != "changed" {
		t.Errorf("%v, %v", id, err)
	}
	_, err := ask("later")
	if asked := (*Wait)(nil); !errors.As(err, &asked) || asked.For != time.Second || !errors.Is(err, ErrDenied) {
		t.Errorf("%v", err)
	}
	if _, err := ask("wrong"); !errors.Is(err, ErrDenied) {
		t.Errorf("%v", err)
	}
}

func TestMechanismsFollowTheMethods(t *testing.T) {
	from := Sources{Redis: records(nil), OAuth: nobodyVerifies}
	for _, c := range []struct{ methods, want []string }{
		{[]string{Passthrough}, []string{"PLAIN", "LOGIN"}},
		{[]string{OAuth}, []string{OAuthBearer, XOAuth2}},
		{[]string{Redis, OAuth}, []string{"PLAIN", "LOGIN", OAuthBearer, XOAuth2}},
	} {
		a := methodsAuth(t, from, c.methods...)
		if got := a.Mechanisms(&Client{}); !slices.Equal(got, c.want) {
			t.Errorf("%q: %q", c.methods, got)
		}
		if a.TakesPasswords(&Client{}) != slices.Contains(c.want, "PLAIN") {
			t.Errorf("%q: passwords", c.methods)
		}
	}
}

func TestBearerMechanismsBringTokens(t *testing.T) {
	a := methodsAuth(t, Sources{OAuth: tokensOf(map[string]string{"t1": "alice"}, time.Time{})}, OAuth)
	for mechanism, message := range map[string]string{
		OAuthBearer: "n,a=alice,\x01auth=Bearer t1\x01\x01", XOAuth2: "user=alice\x01auth=Bearer t1\x01\x01",
	} {
		e, _ := a.Start(mechanism, &Client{})
		if _, done, err := e.Next(t.Context(), []byte(message)); !done || err != nil {
			t.Errorf("%s: %v", mechanism, err)
		}
		if id, err := a.Authenticate(t.Context(), e.Login()); err != nil || id.User().String() != "alice@example.org" || e.Login().Mechanism != "AUTH="+mechanism {
			t.Errorf("%s: %v, %v", mechanism, id, err)
		}
	}
}
