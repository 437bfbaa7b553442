package config

import (
	"slices"
	"strings"
	"time"

	"imapgate/auth/authhttp"
	"imapgate/internal/identity"
)

// AuthHTTP configures the auth servers, which speak the protocol of nginx's mail
// proxy.
type AuthHTTP struct {
	URLs           []string          `yaml:"urls" example:"[https://auth1.internal/auth, https://auth2.internal/auth]" doc:"The auth servers, http or https. The first one that gives a usable answer decides. After five failures in a row a server is skipped for a second at a time. With http, passwords travel in the clear. At most 16."`
	Timeout        time.Duration     `yaml:"timeout" default:"5s" min:"100ms" max:"1m" doc:"Limit for the answer of one server, before the next is tried."`
	Headers        map[string]string `yaml:"headers" example:"{X-Auth-Realm: mail}" doc:"Headers sent with every request. Those of the protocol cannot be replaced."`
	HeaderFiles    map[string]string `yaml:"header_files" file:"secret" example:"{X-Auth-Key: /run/secrets/auth-key}" doc:"Headers whose values are secrets, each with the file that holds the value."`
	CA             string            `yaml:"ca" file:"tls" doc:"For https. PEM file of the CAs to trust. Default: the system's."`
	Cert           string            `yaml:"cert" file:"tls" doc:"For https. PEM file of the certificate presented to the auth server, followed by its intermediates."`
	Key            string            `yaml:"key" file:"tls" doc:"For https. PEM file of its key."`
	PassClientCert bool              `yaml:"pass_client_cert" default:"false" doc:"Send the client's certificate too, as Auth-SSL-Cert. Needs tls.client_ca."`

	Secrets map[string]identity.Secret `yaml:"-"` // contents of HeaderFiles
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
func (c checker) checkHeaders(h *AuthHTTP) {
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
func (s secrets) readAuthHTTP(h *AuthHTTP) {
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

// Config returns the settings of an authhttp.Asker, without those for TLS.
func (a *AuthHTTP) Config() authhttp.Config {
	cfg := authhttp.Config{URLs: a.URLs, Timeout: a.Timeout, PassClientCert: a.PassClientCert, Headers: make(map[string]identity.Secret)}
	for name, value := range a.Headers {
		cfg.Headers[name] = identity.NewSecret(value)
	}
	for name, value := range a.Secrets {
		cfg.Headers[name] = value
	}
	return cfg
}
