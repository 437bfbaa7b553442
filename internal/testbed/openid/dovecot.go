package openid

import (
	"net/url"
	"testing"

	"imapgate/internal/testbed"
)

// DovecotTokenCheck makes a Dovecot ask the provider, as a client, whose the tokens are that
// come by mechanisms ("oauthbearer xoauth2").
func (p *Provider) DovecotTokenCheck(t testing.TB, client, mechanisms string) *testbed.TokenCheck {
	t.Helper()
	address, err := url.Parse(p.IntrospectionURL())
	if err != nil {
		t.Fatal(err)
	}
	address.User = url.UserPassword(url.QueryEscape(client), url.QueryEscape(ClientSecret)) // RFC 6749 §2.3.1
	return &testbed.TokenCheck{Mechanisms: mechanisms, Introspection: address.String()}
}
