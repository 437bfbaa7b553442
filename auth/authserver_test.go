package auth

import (
	"context"
	"errors"
	"net/netip"
	"testing"

	"go.uber.org/zap"
)

// newHTTPAuth returns an Authenticator with an authentication server, and the requests sent to
// it.
func newHTTPAuth(t *testing.T, answer ServerResponse, err error) (*Authenticator, *[]Login) {
	t.Helper()
	requests := new([]Login)
	a, newErr := New(Config{Settings: Settings{Methods: []string{HTTP}}}, Sources{HTTP: func(_ context.Context, l Login) (ServerResponse, error) {
		*requests = append(*requests, l)
		return answer, err
	}}, zap.NewNop())
	if newErr != nil {
		t.Fatal(newErr)
	}
	return a, requests
}

func TestHTTPServerSeesCertificateUser(t *testing.T) {
	where := netip.MustParseAddrPort("10.0.0.1:143")
	answer := ServerResponse{BackendAddr: where, LoginName: "u17", Password: secret("store")}
	for name, c := range map[string]struct {
		proof, serverErr, want error
		requests               int
	}{
		"accepted":    {nil, nil, nil, 1},
		"refused":     {nil, ErrDenied, ErrDenied, 1},
		"server down": {nil, errors.New("connection refused"), ErrUnavailable, 1},
		"wrong proof": {ErrDenied, nil, ErrDenied, 0},
	} {
		a, requests := newHTTPAuth(t, answer, c.serverErr)
		u, err := a.Canonicalize("alice")
		if err != nil {
			t.Fatal(err)
		}
		id, err := a.Authenticate(t.Context(), Login{User: u, Mechanism: SASLExternal, proof: &proof{user: u, method: External, err: c.proof}})
		if !errors.Is(err, c.want) || len(*requests) != c.requests || err != nil && id != (Identity{}) {
			t.Errorf("%s: %v, %v after %d requests", name, id, err, len(*requests))
		}
		if err == nil && (id.User() != u || id.Method() != External || id.BackendAddr() != where || id.LoginName() != "u17" || id.Password() != secret("store") || !id.IsVerified()) {
			t.Errorf("%s: %v at %v as %q", name, id, id.BackendAddr(), id.LoginName())
		}
	}
}

func TestHTTPResponseBecomesIdentity(t *testing.T) {
	where := netip.MustParseAddrPort("10.0.0.1:143")
	a, _ := newHTTPAuth(t, ServerResponse{BackendAddr: where}, nil)
	id, err := logIn(t, a, "Alice", "hers")
	if err != nil || id.BackendAddr() != where || id.LoginName() != "" || id.Password() != secret("hers") || id.Method() != HTTP || !id.IsVerified() {
		t.Errorf("%v, %v at %v", id, err, id.BackendAddr())
	}
	wait := &DelayedDenial{Delay: 3, Err: ErrDenied}
	a, _ = newHTTPAuth(t, ServerResponse{}, wait)
	var got *DelayedDenial
	if _, err := logIn(t, a, "alice", "wrong"); !errors.Is(err, ErrDenied) || !errors.As(err, &got) || got.Delay != 3 {
		t.Errorf("a delayed denial: %v", err)
	}
}
