package config

import (
	"slices"
	"strings"

	"imapgate/auth/authhttp"
	"imapgate/auth/oauth"
	"imapgate/internal/identity"
)

// checkMechanisms checks the keys of mechanisms. Package auth checks whether the
// methods can serve them.
func (c checker) checkMechanisms() {
	a := &c.cfg.Auth
	c.checkRules(rule{a.External.SAN != "" && c.cfg.TLS.ClientCA == "", "auth.external.san", "needs tls.client_ca: without it no client certificate is requested"})
	c.checkUnique("auth.mechanisms", a.Mechanisms)
	for i, l := range c.cfg.Listeners {
		key := MemberKey(ItemKey("listeners", i), "mechanisms")
		c.checkUnique(key, l.Mechanisms)
		for j, name := range l.Mechanisms {
			if len(a.Mechanisms) > 0 && !slices.Contains(a.Mechanisms, name) {
				c.add(ItemKey(key, j), "%s is not among auth.mechanisms", name)
			}
		}
	}
}

func (c checker) checkUnique(key string, names []string) {
	for i, name := range names {
		if name != "" && slices.Contains(names[:i], name) {
			c.add(ItemKey(key, i), "duplicate value %s", name)
		}
	}
}

const scramSecretKey = "auth.scram_secret_file"

// readSCRAM reads the secret of the SCRAM mechanisms, and reports a missing one if
// they are configured.
func (s secrets) readSCRAM(a *Auth) {
	const key, variable = scramSecretKey, "IMAPGATE_SCRAM_SECRET"
	a.SCRAMSecret = s.readSecret(key, a.SCRAMSecretFile, variable)
	needed := slices.ContainsFunc(a.Mechanisms, func(name string) bool { return strings.HasPrefix(name, "SCRAM") })
	switch n := len(a.SCRAMSecret.Reveal()); {
	case n == 0 && needed:
		s.add(key, "SCRAM needs scram_secret_file or %s", variable)
	case n > 0 && n < minTokenLength:
		s.add(key, "the secret has fewer than %d characters", minTokenLength)
	}
}

// checkAuthHTTP checks the auth servers, even if no method uses them.
func (c checker) checkAuthHTTP() {
	h := &c.cfg.Auth.HTTP
	secure := false
	for i, raw := range h.URLs {
		u, err := authhttp.ParseURL(raw)
		if err != nil {
			c.add(ItemKey("auth.http.urls", i), "%s", err)
			continue
		}
		secure = secure || u.Scheme == "https"
	}
	if len(h.URLs) > authhttp.MaxURLs {
		c.add("auth.http.urls", "has more than %d", authhttp.MaxURLs)
	}
	method := slices.Index(c.cfg.Auth.Methods, "http")
	c.checkRules(
		rule{!secure && (h.CA != "" || h.Cert != "") && len(h.URLs) > 0, "auth.http.urls", "ca and cert are used only with https"},
		rule{(h.Cert == "") != (h.Key == ""), "auth.http.cert", "needs key, and key needs cert"},
		rule{h.PassClientCert && c.cfg.TLS.ClientCA == "", "auth.http.pass_client_cert", "needs tls.client_ca: without it no client certificate is requested"},
		rule{method >= 0 && len(h.URLs) == 0, ItemKey("auth.methods", method), "is http, but auth.http.urls names no auth server"},
		rule{c.cfg.Routing.Source == "http" && method < 0, "routing.source",
			"is http, but http is not among auth.methods: only the auth server's answer to a login names the backend"},
	)
	c.checkHeaders(h)
}

// checkHeaders checks the header names, which are not case-sensitive.
func (c checker) checkHeaders(h *authhttp.Settings) {
	seen := make(map[string]bool)
	for block, values := range map[string]map[string]string{"auth.http.headers": h.Headers, "auth.http.header_files": h.HeaderFiles} {
		for name, value := range values {
			if block == "auth.http.header_files" {
				value = ""
			}
			if err := authhttp.CheckHeader(name, value); err != nil {
				c.add(MemberKey(block, name), "%s", err)
			} else if seen[strings.ToLower(name)] {
				c.add(MemberKey(block, name), "duplicate key")
			}
			seen[strings.ToLower(name)] = true
		}
	}
}

// readAuthHTTP reads the header values that are in files.
func (s secrets) readAuthHTTP(h *authhttp.Settings) {
	for name, file := range h.HeaderFiles {
		key := MemberKey("auth.http.header_files", name)
		if file == "" {
			s.add(key, "is empty")
			continue
		}
		// An empty variable name is never set, so the value can only come from the file.
		value := s.readSecret(key, file, "")
		if value.IsZero() {
			continue
		}
		f := (*s.files)[len(*s.files)-1]
		f.validate = func(text string) error { return authhttp.CheckHeader(name, text) }
		if h.Secrets == nil {
			h.Secrets = make(map[string]identity.Secret)
		}
		h.Secrets[name] = value
	}
}

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
