package config

import (
	"strings"
	"testing"
	"time"

	"imapgate/internal/identity"
)

func TestOAuthProviderIsReadWithItsSecret(t *testing.T) {
	text := minimal + `
auth:
  oauth:
    issuer: https://id.example.org/realms/mail
    audience: [imap, mail]
    authorized_party: [thunderbird]
    introspection_url: https://id.example.org/introspect
    client_id: imapgate
`
	file := "    client_secret_file: " + writeSecretFile(t, "s3cret\n") + "\n"
	cfg := mustParse(t, text+file).Auth.OAuth
	if cfg.ClientSecret.Current() != identity.NewSecret("s3cret") || cfg.UsernameClaim != "email" || cfg.CacheTTL != time.Minute || len(cfg.Audience) != 2 ||
		cfg.AuthorizedParty[0] != "thunderbird" || cfg.Issuer != "https://id.example.org/realms/mail" || cfg.ClientID != "imapgate" {
		t.Errorf("%+v", cfg)
	}
	env := func(name string) (string, bool) {
		return "from the environment", name == "IMAPGATE_OAUTH_CLIENT_SECRET"
	}
	c, err := parse("test.yaml", []byte(text), env)
	if err != nil || c.Auth.OAuth.ClientSecret.Reveal() != "from the environment" {
		t.Errorf("%v", err)
	}
	if _, err := parse("test.yaml", []byte(text+file), env); err == nil || !strings.Contains(err.Error(), "only one may be") {
		t.Errorf("two secrets: %v", err)
	}
}

func TestOAuthProblemsAreReported(t *testing.T) {
	for text, want := range map[string]string{
		"issuer: https://a":                                    "auth.oauth.audience: is required",
		"{issuer: http://a, audience: [b]}":                    "auth.oauth.issuer: is neither https nor on this machine",
		"{issuer: id.example.org, audience: [b]}":              "auth.oauth.issuer: is not a URL",
		"{issuer: 'https://u:hunter2@a/', audience: [b]}":      "auth.oauth.issuer: is not a URL",
		"introspection_url: https://a":                         "auth.oauth.introspection_url: needs audience",
		"{introspection_url: 'http://10.0.0.1/', scope: b}":    "auth.oauth.introspection_url: is neither",
		"{issuer: https://a, audience: [b], client_id: c}":     "auth.oauth.client_id: is used only",
		"{issuer: https://a, audience: [b, '']}":               "auth.oauth.audience[1]: is empty",
		"client_secret_file: /nonexistent/hunter2":             "auth.oauth.client_secret_file: no such file",
		"username_claim: ''":                                   "auth.oauth.username_claim: is empty",
		"session_grace: 29s":                                   "auth.oauth.session_grace: is less than 30s",
		"cache_ttl: 2h":                                        "auth.oauth.cache_ttl",
		"{introspection_url: https://a, scope: \"mail imap\"}": "auth.oauth.scope",
	} {
		if !strings.HasPrefix(text, "{") {
			text = "{" + text + "}"
		}
		_, err := parse("test.yaml", []byte(minimal+"auth: {oauth: "+text+"}\n"), noEnv)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %q is missing: %v", text, want, err)
		}
	}
	mustParse(t, minimal+"auth: {oauth: {introspection_url: 'http://127.0.0.1:9000/x', scope: mail, session_grace: 30s}}\n")
}
