//go:build unix

package upstream

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"

	"go.uber.org/zap"

	"imapgate/internal/identity"
	"imapgate/internal/testbed"
	"imapgate/internal/testbed/openid"
)

func TestDovecotTakesTheClientsToken(t *testing.T) {
	p := openid.Start(t, "alice@example.org", "bob@example.org")
	alice, bob := p.Login(t, openid.Opaque, "alice@example.org").Access, p.Login(t, openid.Opaque, "bob@example.org").Access
	for _, mechanisms := range []string{"oauthbearer xoauth2", "xoauth2"} {
		t.Run(mechanisms, func(t *testing.T) {
			d := testbed.StartDovecot(t, testbed.DovecotConfig{Tokens: p.Dovecot(t, openid.Opaque, mechanisms)})
			for _, cfg := range []Config{
				{Address: d.Plain, TLSMode: StartTLS, Login: OAuthLogin}, {Address: d.TLS, TLSMode: ImplicitTLS, Login: Passthrough},
			} {
				cfg.Name, cfg.TLS = "east", d.CA.Client(testbed.DovecotName)
				b := New(cfg, Hooks{}, zap.NewNop())
				for name, token := range map[string]string{"alice@example.org": alice, "bob@example.org": bob} {
					goesIn(t, b, name, token)
				}
				for what, token := range map[string]string{"a forged": "forged", "somebody else's": bob, "a spoilt": alice + "x"} {
					if err := tries(t, b, "alice@example.org", token); !errors.Is(err, ErrDenied) {
						t.Errorf("%s token: %v", what, err)
					}
				}
			}
		})
	}
}

func TestADovecotWhoseProviderIsAwayDeniesNobody(t *testing.T) {
	p := openid.Start(t, "alice@example.org")
	token := p.Login(t, openid.Opaque, "alice@example.org").Access
	d := testbed.StartDovecot(t, testbed.DovecotConfig{Tokens: p.Dovecot(t, openid.Opaque, "oauthbearer")})
	b := New(Config{Name: "east", Address: d.TLS, TLS: d.CA.Client(testbed.DovecotName), Login: OAuthLogin}, Hooks{}, zap.NewNop())
	p.Fault(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) })
	var refused *Refused
	if err := tries(t, b, "alice@example.org", token); errors.Is(err, ErrDenied) || !errors.As(err, &refused) || refused.Code != "UNAVAILABLE" {
		t.Errorf("%v", err)
	}
	p.Fault(nil)
	goesIn(t, b, "alice@example.org", token)
}

// Dovecot ends a connection on which a response of more than 8 KB comes.
func TestATokenThatDovecotDoesNotReadIsNotDenied(t *testing.T) {
	p := openid.Start(t, "alice@example.org")
	d := testbed.StartDovecot(t, testbed.DovecotConfig{Tokens: p.Dovecot(t, openid.Opaque, "oauthbearer xoauth2")})
	result := ""
	b := New(Config{Name: "east", Address: d.TLS, TLS: d.CA.Client(testbed.DovecotName), Login: OAuthLogin},
		Hooks{OnConnect: func(r string) { result = r }}, zap.NewNop())
	for _, n := range []int{LongToken + 1, 8 << 10, identity.MaxToken} {
		if err := tries(t, b, "alice@example.org", strings.Repeat("t", n)); n > 6<<10 && (!errors.Is(err, ErrUnavailable) || result != ResultNotTaken) {
			t.Errorf("%d bytes: %v, %s", n, err, result)
		} else if n < 6<<10 && !errors.Is(err, ErrDenied) {
			t.Errorf("%d bytes, which it reads: %v", n, err)
		}
	}
	goesIn(t, b, "alice@example.org", p.Login(t, openid.Opaque, "alice@example.org").Access)
}

func tries(t *testing.T, b *Backend, name, token string) error {
	t.Helper()
	conn, err := b.Login(context.Background(), Request{User: user(t, name), Token: identity.NewSecret(token)})
	if err == nil {
		_ = conn.Close() // nothing was said on it
	}
	return err
}

func goesIn(t *testing.T, b *Backend, name, token string) {
	t.Helper()
	if err := tries(t, b, name, token); err != nil {
		t.Errorf("%s: %v", name, err)
	}
}
