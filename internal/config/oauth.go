package config

import (
	"slices"

	"imapgate/auth/oauth"
)

const oauthSecretVariable = "IMAPGATE_OAUTH_CLIENT_SECRET"

// checkOAuth checks the provider, even if no method uses it.
func (c checker) checkOAuth() {
	o := c.cfg.Auth.OAuth
	if i := slices.Index(c.cfg.Auth.Methods, "oauth"); i >= 0 && o.Issuer == "" && o.IntrospectionURL == "" {
		c.add(ItemKey("auth.methods", i), "is oauth, but there is neither auth.oauth.issuer nor auth.oauth.introspection_url")
	}
	c.checkKeyPair("auth.oauth.client_certificate", o.ClientCertificate)
	for key, address := range map[string]string{"issuer": o.Issuer, "introspection_url": o.IntrospectionURL} {
		if err := oauth.CheckURL(address); address != "" && err != nil {
			c.add("auth.oauth."+key, "%s", err)
		}
	}
	for key, values := range map[string][]string{"audience": o.Audience, "authorized_party": o.AuthorizedParty} {
		if i := slices.Index(values, ""); i >= 0 {
			c.add(ItemKey("auth.oauth."+key, i), "is empty")
		}
	}
	if o.SessionGrace > 0 && o.SessionGrace < oauth.Leeway {
		c.add("auth.oauth.session_grace", "is less than %s, for which a token is accepted after it expires", oauth.Leeway)
	}
	const risk = "a token that the provider issued for another service would open a mailbox"
	switch {
	case o.Issuer != "" && len(o.Audience) == 0:
		c.add("auth.oauth.audience", "is required with issuer: without it "+risk)
	case o.IntrospectionURL != "" && len(o.Audience) == 0 && len(o.AuthorizedParty) == 0 && o.Scope == "":
		c.add("auth.oauth.introspection_url", "needs audience, authorized_party or scope: without them "+risk)
	case o.IntrospectionURL == "" && o.ClientID != "":
		c.add("auth.oauth.client_id", "is used only with introspection_url")
	}
}

func (s secrets) readOAuth(o *oauth.Settings) {
	o.ClientSecret = s.readSecret("auth.oauth.client_secret_file", o.ClientSecretFile, oauthSecretVariable)
	if o.ClientID == "" && !o.ClientSecret.IsZero() {
		s.add("auth.oauth.client_id", "is required with a client secret")
	}
}
