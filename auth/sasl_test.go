package auth

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/emersion/go-sasl"
	"go.uber.org/zap"

	"imapgate/internal/identity"
)

// newPassthroughAuth returns an Authenticator for exchanges.
func newPassthroughAuth(t testing.TB) *Authenticator {
	t.Helper()
	a, err := New(Config{Settings: Settings{Methods: []string{Passthrough}, NameRules: identity.NamesInDomain("example.org")}}, Sources{}, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// runExchange sends messages until the exchange ends or no message is left.
func runExchange(e *Exchange, messages ...[]byte) (challenges []string, done bool, err error) {
	for _, m := range messages {
		var c []byte
		if c, done, err = e.Next(context.Background(), m); err != nil || done {
			return challenges, done, err
		}
		challenges = append(challenges, string(c))
	}
	return challenges, done, err
}

func TestMechanismsAreExactlyWhatStartAccepts(t *testing.T) {
	a := newPassthroughAuth(t)
	if got := a.Mechanisms(&Client{}); !slices.Equal(got, []string{"PLAIN", "LOGIN"}) {
		t.Errorf("Mechanisms() = %q", got)
	}
	for _, name := range append(a.Mechanisms(&Client{}), "plain", "Login") {
		if _, ok := a.Start(name, &Client{}); !ok {
			t.Errorf("%s is not accepted", name)
		}
	}
	for _, name := range []string{"", "EXTERNAL", "ANONYMOUS", "OAUTHBEARER", "XOAUTH2", "CRAM-MD5", "PLAIN ", "PLAIN-X", "ＰＬＡＩＮ", "LOG\u0130N", "log\u0131n"} {
		if e, ok := a.Start(name, &Client{}); ok || e != nil {
			t.Errorf("%q is accepted", name)
		}
	}
}

func TestValidExchangesAreAccepted(t *testing.T) {
	for what, c := range map[string]struct {
		mechanism  string
		messages   [][]byte
		challenges []string
		as         string
	}{
		"PLAIN with an initial response":    {"PLAIN", [][]byte{[]byte("\x00Alice\x00pä ss")}, nil, SASLPlain},
		"PLAIN without one":                 {"PLAIN", [][]byte{nil, []byte("\x00alice\x00pä ss")}, []string{""}, SASLPlain},
		"PLAIN as oneself":                  {"PLAIN", [][]byte{[]byte("alice\x00alice\x00pä ss")}, nil, SASLPlain},
		"PLAIN as oneself, spelt otherwise": {"plain", [][]byte{[]byte("ALICE@example.org\x00alice\x00pä ss")}, nil, SASLPlain},
		"LOGIN":                             {"LOGIN", [][]byte{nil, []byte("alice"), []byte("pä ss")}, []string{"Username:", "Password:"}, SASLLogin},
		"LOGIN with an initial response":    {"LOGIN", [][]byte{[]byte("alice@EXAMPLE.org"), []byte("pä ss")}, []string{"Password:"}, SASLLogin},
	} {
		e, _ := newPassthroughAuth(t).Start(c.mechanism, &Client{})
		challenges, done, err := runExchange(e, c.messages...)
		if err != nil || !done || !slices.Equal(challenges, c.challenges) {
			t.Errorf("%s: %q, %v, %v", what, challenges, done, err)
		}
		l := e.Login()
		if l.User.String() != "alice@example.org" || l.Password.Reveal() != "pä ss" || l.Mechanism != c.as {
			t.Errorf("%s: %+v", what, l)
		}
		if _, done, err := e.Next(context.Background(), []byte("\x00bob\x00x")); err == nil || done || e.Login() != l {
			t.Errorf("%s: the exchange continues after its end: %v", what, err)
		}
	}
}

func TestBadExchangesAreDeniedAndKeepNoLogin(t *testing.T) {
	long := strings.Repeat("a", maxSASLMessage+1)
	for what, c := range map[string]struct {
		mechanism string
		messages  []string
	}{
		"empty":                       {"PLAIN", []string{""}},
		"no NUL":                      {"PLAIN", []string{"alice"}},
		"one NUL":                     {"PLAIN", []string{"alice\x00x"}},
		"three NULs":                  {"PLAIN", []string{"\x00alice\x00x\x00"}},
		"four NULs":                   {"PLAIN", []string{"\x00\x00alice\x00x\x00"}},
		"no user":                     {"PLAIN", []string{"\x00\x00x"}},
		"no password":                 {"PLAIN", []string{"\x00alice\x00"}},
		"only NULs":                   {"PLAIN", []string{"\x00\x00"}},
		"user not UTF-8":              {"PLAIN", []string{"\x00al\xffce\x00x"}},
		"user is overlong UTF-8":      {"PLAIN", []string{"\x00\xc1\xa1lice\x00x"}},
		"another user":                {"PLAIN", []string{"bob\x00alice\x00x"}},
		"another domain":              {"PLAIN", []string{"alice@example.net\x00alice\x00x"}},
		"a bad authzid":               {"PLAIN", []string{"a b\x00alice\x00x"}},
		"authzid not UTF-8":           {"PLAIN", []string{"\xff\x00alice\x00x"}},
		"CRLF in the password":        {"PLAIN", []string{"\x00alice\x00x\r\ny LOGOUT"}},
		"CRLF in the user":            {"PLAIN", []string{"\x00alice\r\n\x00x"}},
		"a long password":             {"PLAIN", []string{"\x00alice\x00" + long[:maxPassword+1]}},
		"a long message":              {"PLAIN", []string{long}},
		"LOGIN without a user":        {"LOGIN", []string{"", "x"}},
		"LOGIN without a password":    {"LOGIN", []string{"alice", ""}},
		"LOGIN with NUL":              {"LOGIN", []string{"alice\x00", "x"}},
		"LOGIN with NUL in the pass":  {"LOGIN", []string{"alice", "x\x00"}},
		"LOGIN user not UTF-8":        {"LOGIN", []string{"\xff", "x"}},
		"LOGIN with a master's name":  {"LOGIN", []string{"alice*master", "x"}},
		"LOGIN with a long user":      {"LOGIN", []string{long, "x"}},
		"LOGIN with PLAIN's response": {"LOGIN", []string{"\x00alice\x00x", "x"}},
	} {
		e, _ := newPassthroughAuth(t).Start(c.mechanism, &Client{})
		var messages [][]byte
		for _, m := range c.messages {
			messages = append(messages, []byte(m))
		}
		_, done, err := runExchange(e, messages...)
		if done || !errors.Is(err, ErrDenied) || e.Login() != (Login{}) {
			t.Errorf("%s: %v, %v, %+v", what, done, err, e.Login())
		}
		if _, done, err := e.Next(context.Background(), []byte("\x00alice\x00x")); done || !errors.Is(err, ErrDenied) || e.Login() != (Login{}) {
			t.Errorf("%s: a second message continues the exchange: %v", what, err)
		}
		if _, err := newPassthroughAuth(t).Authenticate(t.Context(), e.Login()); !errors.Is(err, ErrDenied) {
			t.Errorf("%s: the ended exchange can log in: %v", what, err)
		}
	}
}

func TestEmptyLinesEndExchange(t *testing.T) {
	for _, mechanism := range newPassthroughAuth(t).Mechanisms(&Client{}) {
		e, _ := newPassthroughAuth(t).Start(mechanism, &Client{})
		steps := 0
		for steps < 10 {
			steps++
			if _, _, err := e.Next(context.Background(), nil); err != nil {
				break
			}
		}
		if steps > 3 {
			t.Errorf("%s accepts %d empty messages", mechanism, steps)
		}
	}
}

func TestGoSASLClientsAreAccepted(t *testing.T) {
	for want, client := range map[string]sasl.Client{
		SASLPlain: sasl.NewPlainClient("", "alice", "x"),
		SASLLogin: sasl.NewLoginClient("alice", "x"),
	} {
		name, message, err := client.Start()
		if err != nil {
			t.Fatal(err)
		}
		e, ok := newPassthroughAuth(t).Start(name, &Client{})
		for done := false; ok && !done; {
			var challenge []byte
			if challenge, done, err = e.Next(context.Background(), message); err != nil {
				t.Fatal(err)
			}
			if !done {
				if message, err = client.Next(challenge); err != nil {
					t.Fatal(err)
				}
			}
		}
		if e.Login().Mechanism != want {
			t.Errorf("%s: %+v", name, e.Login())
		}
	}
}
