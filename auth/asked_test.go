package auth

import (
	"context"
	"errors"
	"net/netip"
	"testing"

	"go.uber.org/zap"
)

// asking is an Authenticator with an authentication server, and what that was
// asked.
func asking(t *testing.T, answer Answer, err error) (*Authenticator, *[]Login) {
	t.Helper()
	questions := new([]Login)
	a, wrong := New(Config{Methods: []string{HTTP}}, Sources{HTTP: func(_ context.Context, l Login) (Answer, error) {
		*questions = append(*questions, l)
		return answer, err
	}}, zap.NewNop())
	if wrong != nil {
		t.Fatal(wrong)
	}
	return a, questions
}

func TestAnAuthenticationServerIsToldOfACertificatesUser(t *testing.T) {
	where := netip.MustParseAddrPort("10.0.0.1:143")
	answer := Answer{Server: where, User: "u17", Password: secret("store")}
	for name, c := range map[string]struct {
		proof, answer, want error
		questions           int
	}{
		"let in":             {nil, nil, nil, 1},
		"refused":            {nil, ErrDenied, ErrDenied, 1},
		"nobody knows":       {nil, errors.New("connection refused"), ErrUnavailable, 1},
		"without a good one": {ErrDenied, nil, ErrDenied, 0},
	} {
		a, questions := asking(t, answer, c.answer)
		u, err := a.Canon("alice")
		if err != nil {
			t.Fatal(err)
		}
		id, err := a.Authenticate(t.Context(), Login{User: u, Mechanism: SASLExternal, proof: &proof{user: u, method: External, err: c.proof}})
		if !errors.Is(err, c.want) || len(*questions) != c.questions || err != nil && id != (Identity{}) {
			t.Errorf("%s: %v, %v after %d questions", name, id, err, len(*questions))
		}
		if err == nil && (id.User() != u || id.Method() != External || id.Placed() != where || id.Login() != "u17" || id.Password() != secret("store") || !id.Decided()) {
			t.Errorf("%s: %v at %v as %q", name, id, id.Placed(), id.Login())
		}
	}
}

func TestWhatAnAuthenticationServerSaysIsTheIdentity(t *testing.T) {
	where := netip.MustParseAddrPort("10.0.0.1:143")
	a, _ := asking(t, Answer{Server: where}, nil)
	id, err := login(t, a, "Alice", "hers")
	if err != nil || id.Placed() != where || id.Login() != "" || id.Password() != secret("hers") || id.Method() != HTTP || !id.Decided() {
		t.Errorf("%v, %v at %v", id, err, id.Placed())
	}
	wait := &Wait{For: 3, Err: ErrDenied}
	a, _ = asking(t, Answer{}, wait)
	var got *Wait
	if _, err := login(t, a, "alice", "wrong"); !errors.Is(err, ErrDenied) || !errors.As(err, &got) || got.For != 3 {
		t.Errorf("a refusal that asks for time: %v", err)
	}
}
