//go:build unix

package upstream

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"

	"go.uber.org/zap"

	"imapgate/internal/event"
	"imapgate/internal/identity"
	"imapgate/internal/testbed"
	"imapgate/internal/testbed/openid"
)

func TestDovecotAcceptsTheClientsToken(t *testing.T) {
	p := openid.Start(t, "alice@example.org", "bob@example.org")
	alice, bob := p.Login(t, openid.OpaqueClient, "alice@example.org").Access, p.Login(t, openid.OpaqueClient, "bob@example.org").Access
	for _, mechanisms := range []string{"oauthbearer xoauth2", "xoauth2"} {
		t.Run(mechanisms, func(t *testing.T) {
			d := testbed.StartDovecot(t, testbed.DovecotConfig{Tokens: p.DovecotTokenCheck(t, openid.OpaqueClient, mechanisms)})
			for _, cfg := range []Config{
				{Settings: Settings{Address: d.Plain, TLS: event.StartTLS, Login: OAuthLogin}}, {Settings: Settings{Address: d.TLS, TLS: event.ImplicitTLS, Login: Passthrough}},
			} {
				cfg.Name, cfg.TLSConfig = "east", d.CA.ClientTLSFunc(testbed.DovecotName)
				b := New(testbed.WithDefaults(cfg), Hooks{}, zap.NewNop())
				for name, token := range map[string]string{"alice@example.org": alice, "bob@example.org": bob} {
					checkTokenLogin(t, b, name, token)
				}
				for what, token := range map[string]string{"a forged": "forged", "another user's": bob, "a corrupted": alice + "x"} {
					if err := tryToken(t, b, "alice@example.org", token); !errors.Is(err, ErrDenied) {
						t.Errorf("%s token: %v", what, err)
					}
				}
			}
		})
	}
}

func TestDovecotWithAnUnavailableProviderDeniesNoUser(t *testing.T) {
	p := openid.Start(t, "alice@example.org")
	token := p.Login(t, openid.OpaqueClient, "alice@example.org").Access
	d := testbed.StartDovecot(t, testbed.DovecotConfig{Tokens: p.DovecotTokenCheck(t, openid.OpaqueClient, "oauthbearer")})
	b := New(testbed.WithDefaults(Config{Name: "east", Settings: Settings{Address: d.TLS, Login: OAuthLogin}, TLSConfig: d.CA.ClientTLSFunc(testbed.DovecotName)}), Hooks{}, zap.NewNop())
	p.SetFault(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) })
	var refused *RefusedError
	if err := tryToken(t, b, "alice@example.org", token); errors.Is(err, ErrDenied) || !errors.As(err, &refused) || refused.Code != "UNAVAILABLE" {
		t.Errorf("%v", err)
	}
	p.SetFault(nil)
	checkTokenLogin(t, b, "alice@example.org", token)
}

// Dovecot closes a connection after a response of more than 8 KiB.
func TestATokenTooLongForDovecotIsNotDenied(t *testing.T) {
	p := openid.Start(t, "alice@example.org")
	d := testbed.StartDovecot(t, testbed.DovecotConfig{Tokens: p.DovecotTokenCheck(t, openid.OpaqueClient, "oauthbearer xoauth2")})
	result := event.ConnectResult("")
	b := New(testbed.WithDefaults(Config{Name: "east", Settings: Settings{Address: d.TLS, Login: OAuthLogin}, TLSConfig: d.CA.ClientTLSFunc(testbed.DovecotName)}),
		Hooks{OnConnect: func(r event.ConnectResult) { result = r }}, zap.NewNop())
	for _, n := range []int{LongTokenSize + 1, 8 << 10, identity.MaxToken} {
		if err := tryToken(t, b, "alice@example.org", strings.Repeat("t", n)); n > 6<<10 && (!errors.Is(err, ErrUnavailable) || result != event.ConnectNotAccepted) {
			t.Errorf("%d bytes: %v, %s", n, err, result)
		} else if n < 6<<10 && !errors.Is(err, ErrDenied) {
			t.Errorf("%d bytes, which it reads: %v", n, err)
		}
	}
	checkTokenLogin(t, b, "alice@example.org", p.Login(t, openid.OpaqueClient, "alice@example.org").Access)
}

func tryToken(t *testing.T, b *Backend, name, token string) error {
	t.Helper()
	conn, err := b.Login(context.Background(), Request{User: user(t, name), Token: identity.NewSecret(token)})
	if err == nil {
		_ = conn.Close() // it was not used
	}
	return err
}

func checkTokenLogin(t *testing.T, b *Backend, name, token string) {
	t.Helper()
	if err := tryToken(t, b, name, token); err != nil {
		t.Errorf("%s: %v", name, err)
	}
}
