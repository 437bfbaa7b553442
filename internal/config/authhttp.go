package config

import (
	"slices"
	"strings"

	"imapgate/auth/authhttp"
	"imapgate/internal/identity"
)

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
	if !secure && (h.CA != "" || h.Cert != "") && len(h.URLs) > 0 {
		c.add("auth.http.urls", "ca and cert are used only with https")
	}
	if (h.Cert == "") != (h.Key == "") {
		c.add("auth.http.cert", "needs key, and key needs cert")
	}
	if h.PassClientCert && c.cfg.TLS.ClientCA == "" {
		c.add("auth.http.pass_client_cert", "needs tls.client_ca: without it no client certificate is requested")
	}
	c.checkHeaders(h)
	method := slices.Index(c.cfg.Auth.Methods, "http")
	if method >= 0 && len(h.URLs) == 0 {
		c.add(ItemKey("auth.methods", method), "is http, but auth.http.urls names no auth server")
	}
	if c.cfg.Routing.Source == "http" && method < 0 {
		c.add("routing.source", "is http, but http is not among auth.methods: only the auth server's answer to a login names the backend")
	}
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
