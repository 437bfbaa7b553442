package openid

import (
	"net/url"
	"testing"

	"imapgate/internal/testbed"
)

// DovecotTokenCheck returns settings with which Dovecot, as a client of the provider,
// introspects tokens. mechanisms is "oauthbearer xoauth2" or one of both.
func (p *Provider) DovecotTokenCheck(t testing.TB, client, mechanisms string) *testbed.TokenCheck {
	t.Helper()
	address, err := url.Parse(p.IntrospectionURL())
	if err != nil {
		t.Fatal(err)
	}
	address.User = url.UserPassword(url.QueryEscape(client), url.QueryEscape(ClientSecret)) // RFC 6749 §2.3.1
	return &testbed.TokenCheck{Mechanisms: mechanisms, Introspection: address.String()}
}
