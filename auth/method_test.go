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

func failLogin(context.Context, Login) (ServerResponse, error) {
	return ServerResponse{}, errors.New("service is down")
}

func failToken(context.Context, identity.Secret) (string, time.Time, error) {
	return "", time.Time{}, errors.New("service is down")
}

// mapTokens accepts the tokens of a map and no others.
func mapTokens(names map[string]string, until time.Time) VerifyToken {
	return func(_ context.Context, token identity.Secret) (string, time.Time, error) {
		if name, ok := names[token.Reveal()]; ok {
			return name, until, nil
		}
		return "", time.Time{}, ErrDenied
	}
}

func newMethodsAuth(t *testing.T, from Sources, methods ...string) *Authenticator {
	t.Helper()
	a, err := New(Config{Settings: Settings{Methods: methods, NameRules: mappingNames(t)}}, from, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestTokenNamesUser(t *testing.T) {
	until := time.Now().Add(time.Hour)
	a := newMethodsAuth(t, Sources{Redis: mapLookup(nil), OAuth: mapTokens(map[string]string{"t1": "Alice", "t2": "not a name", "t4": "alice+x", "t5": `CORP\alice`}, until)}, Redis, OAuth, Passthrough)
	alice, _ := a.Canonicalize("alice")
	bob, _ := a.Canonicalize("bob")
	for what, c := range map[string]struct {
		login Login
		right bool
	}{
		"without a name":                   {Login{Token: secret("t1")}, true},
		"with the same name":               {Login{Token: secret("t1"), User: alice}, true},
		"with another's":                   {Login{Token: secret("t1"), User: bob}, false},
		"an invalid name":                  {Login{Token: secret("t2")}, false},
		"another account's, with a detail": {Login{Token: secret("t4")}, false},
		"another account's, with a prefix": {Login{Token: secret("t5")}, false},
		"an unknown token":                 {Login{Token: secret("t3"), User: alice}, false}, // not left to passthrough
		"a malformed token":                {Login{Token: secret("t 1")}, false},
	} {
		id, err := a.Authenticate(t.Context(), c.login)
		if !c.right {
			if !errors.Is(err, ErrDenied) || id != (Identity{}) {
				t.Errorf("%s: %v, %v", what, id, err)
			}
			continue
		}
		if err != nil || id.User() != alice || id.Token().Reveal() != "t1" || id.Method() != OAuth || !id.IsVerified() || !id.Expires().Equal(until) || !id.Password().IsZero() {
			t.Errorf("%s: %v, %v", what, id, err)
		}
	}
}

func TestFailedVerifierIsUnavailable(t *testing.T) {
	a := newMethodsAuth(t, Sources{OAuth: failToken, HTTP: failLogin}, OAuth, HTTP, Passthrough)
	alice, _ := a.Canonicalize("alice")
	for _, l := range []Login{{Token: secret("t")}, {User: alice, Password: secret("x")}} {
		if _, err := a.Authenticate(t.Context(), l); !errors.Is(err, ErrUnavailable) || errors.Is(err, ErrDenied) {
			t.Errorf("%v", err)
		}
	}
}

func TestPassthroughLeavesTokensToTheBackend(t *testing.T) {
	a := newMethodsAuth(t, Sources{}, Passthrough)
	alice, _ := a.Canonicalize("alice")
	id, err := a.Authenticate(t.Context(), Login{Token: secret("t"), User: alice})
	if err != nil || id.User() != alice || id.Token().Reveal() != "t" || id.IsVerified() {
		t.Errorf("%v, %v", id, err)
	}
	if _, err := a.Authenticate(t.Context(), Login{Token: secret("t")}); !errors.Is(err, ErrDenied) {
		t.Errorf("a token without a name cannot be routed: %v", err)
	}
}

func TestTokenIsNotAcceptedAsPassword(t *testing.T) {
	a := newMethodsAuth(t, Sources{Redis: mapLookup(map[string]string{"alice@example.org": "{PLAIN}t"})}, Redis)
	alice, _ := a.Canonicalize("alice")
	if _, err := a.Authenticate(t.Context(), Login{Token: secret("t"), User: alice}); !errors.Is(err, ErrDenied) {
		t.Errorf("a token opened what a password opens: %v", err)
	}
}

func TestHTTPResponseIsUsedAtBackend(t *testing.T) {
	server := netip.MustParseAddrPort("192.0.2.1:143")
	wait := &DelayedDenial{Delay: time.Second, Err: ErrDenied}
	a := newMethodsAuth(t, Sources{HTTP: func(_ context.Context, l Login) (ServerResponse, error) {
		switch l.Password.Reveal() {
		case "plain":
			return ServerResponse{BackendAddr: server}, nil
		case "other":
			return ServerResponse{BackendAddr: server, LoginName: "u123", Password: secret("changed")}, nil
		case "later":
			return ServerResponse{}, wait
		}
		return ServerResponse{}, ErrDenied
	}}, HTTP)
	alice, _ := a.Canonicalize("alice")
	ask := func(password string) (Identity, error) {
		return a.Authenticate(t.Context(), Login{User: alice, Password: secret(password), Mechanism: CommandLogin})
	}
	if id, err := ask("plain"); err != nil || id.User() != alice || id.LoginName() != "" || id.Password().Reveal() != "plain" || id.BackendAddr() != server || id.Method() != HTTP {
		t.Errorf("%v, %v", id, err)
	}
	if id, err := ask("other"); err != nil || id.User() != alice || id.LoginName() != "u123" || id.Password().Reveal() != "changed" {
		t.Errorf("%v, %v", id, err)
	}
	_, err := ask("later")
	if denial := (*DelayedDenial)(nil); !errors.As(err, &denial) || denial.Delay != time.Second || !errors.Is(err, ErrDenied) {
		t.Errorf("%v", err)
	}
	if _, err := ask("wrong"); !errors.Is(err, ErrDenied) {
		t.Errorf("%v", err)
	}
}

func TestMechanismsFollowTheMethods(t *testing.T) {
	from := Sources{Redis: mapLookup(nil), OAuth: failToken}
	for _, c := range []struct{ methods, want []string }{
		{[]string{Passthrough}, []string{"PLAIN", "LOGIN"}},
		{[]string{OAuth}, []string{OAuthBearer, XOAuth2}},
		{[]string{Redis, OAuth}, []string{"PLAIN", "LOGIN", OAuthBearer, XOAuth2}},
	} {
		a := newMethodsAuth(t, from, c.methods...)
		if got := a.Mechanisms(&Client{}); !slices.Equal(got, c.want) {
			t.Errorf("%q: %q", c.methods, got)
		}
		if a.AllowsPasswords(&Client{}) != slices.Contains(c.want, "PLAIN") {
			t.Errorf("%q: passwords", c.methods)
		}
	}
}

func TestBearerMechanismsBringTokens(t *testing.T) {
	a := newMethodsAuth(t, Sources{OAuth: mapTokens(map[string]string{"t1": "alice"}, time.Time{})}, OAuth)
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
