package openid

import (
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"testing"
)

// Dovecot is settings with which a Dovecot 2.3 asks the provider, as a client,
// whose the tokens are that come by mechanisms ("oauthbearer xoauth2").
func (p *Provider) Dovecot(t testing.TB, client, mechanisms string) string {
	t.Helper()
	address, err := url.Parse(p.Introspection())
	if err != nil {
		t.Fatal(err)
	}
	address.User = url.UserPassword(url.QueryEscape(client), url.QueryEscape(Secret)) // RFC 6749 §2.3.1
	file := filepath.Join(t.TempDir(), "oauth2.conf")
	text := fmt.Sprintf("introspection_mode = post\nintrospection_url = %s\nusername_attribute = email\nactive_attribute = active\nactive_value = true\n", address)
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf(`
auth_mechanisms = plain %s
passdb {
  driver = oauth2
  mechanisms = oauthbearer xoauth2
  args = %s
}
`, mechanisms, file)
}
