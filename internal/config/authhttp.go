package config

import (
	"slices"
	"strings"
	"time"

	"imapgate/auth/authhttp"
	"imapgate/internal/identity"
)

// AuthHTTP is the auth servers, as nginx's mail proxy asks one.
type AuthHTTP struct {
	URLs           []string          `yaml:"urls" example:"[https://auth1.internal/auth, https://auth2.internal/auth]" doc:"The auth servers, http or https. The first that gives a usable answer decides; one that gives none five times in a row is left alone for a second at a time. With http, passwords travel in the clear. At most 16."`
	Timeout        time.Duration     `yaml:"timeout" default:"5s" min:"100ms" max:"1m" doc:"For the answer of one server, before the next is asked."`
	Headers        map[string]string `yaml:"headers" example:"{X-Auth-Realm: mail}" doc:"Headers sent with every question. Those of the protocol cannot be replaced."`
	HeaderFiles    map[string]string `yaml:"header_files" file:"secret" example:"{X-Auth-Key: /run/secrets/auth-key}" doc:"Headers whose values are secrets: files that hold them."`
	CA             string            `yaml:"ca" file:"tls" doc:"For https. PEM file of the CAs to trust. Default: the system's."`
	Cert           string            `yaml:"cert" file:"tls" doc:"For https. PEM file of the certificate to show to the auth server, followed by its intermediates."`
	Key            string            `yaml:"key" file:"tls" doc:"For https. PEM file of its key."`
	PassClientCert bool              `yaml:"pass_client_cert" default:"false" doc:"Send the client's certificate too, as Auth-SSL-Cert. Needs tls.client_ca."`

	Secrets map[string]identity.Secret `yaml:"-"` // what is in HeaderFiles
}

// checkAuthHTTP checks the auth servers, whether or not a method asks them yet.
func (k checker) checkAuthHTTP() {
	h := &k.cfg.Auth.HTTP
	secure := false
	for i, raw := range h.URLs {
		u, err := authhttp.ParseURL(raw)
		if err != nil {
			k.add(ItemKey("auth.http.urls", i), "%s", err)
			continue
		}
		secure = secure || u.Scheme == "https"
	}
	if len(h.URLs) > authhttp.MaxURLs {
		k.add("auth.http.urls", "has more than %d", authhttp.MaxURLs)
	}
	if !secure && (h.CA != "" || h.Cert != "") && len(h.URLs) > 0 {
		k.add("auth.http.urls", "ca and cert are used only with https")
	}
	if (h.Cert == "") != (h.Key == "") {
		k.add("auth.http.cert", "needs key, and key needs cert")
	}
	if h.PassClientCert && k.cfg.TLS.ClientCA == "" {
		k.add("auth.http.pass_client_cert", "needs tls.client_ca: without it no client is asked for a certificate")
	}
	k.checkHeaders(h)
	method := slices.Index(k.cfg.Auth.Methods, "http")
	if method >= 0 && len(h.URLs) == 0 {
		k.add(ItemKey("auth.methods", method), "is http, but auth.http.urls names no auth server")
	}
	if k.cfg.Routing.Source == "http" && method < 0 {
		k.add("routing.source", "is http, but http is not among auth.methods: only the auth server's answer to a login says where")
	}
}

// checkHeaders checks the names, which are one whatever the case of their letters.
func (k checker) checkHeaders(h *AuthHTTP) {
	seen := make(map[string]bool)
	for block, values := range map[string]map[string]string{"auth.http.headers": h.Headers, "auth.http.header_files": h.HeaderFiles} {
		for name, value := range values {
			if block == "auth.http.header_files" {
				value = ""
			}
			if err := authhttp.CheckHeader(name, value); err != nil {
				k.add(MemberKey(block, name), "%s", err)
			} else if seen[strings.ToLower(name)] {
				k.add(MemberKey(block, name), "is there twice")
			}
			seen[strings.ToLower(name)] = true
		}
	}
}

// readAuthHTTP reads the values of the headers that are in files.
func (s secrets) readAuthHTTP(h *AuthHTTP) {
	for name, file := range h.HeaderFiles {
		key := MemberKey("auth.http.header_files", name)
		if file == "" {
			s.add(key, "is empty")
			continue
		}
		// A variable of no name is not set.
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

// Config is the part the Asker takes, but for TLS.
func (h *AuthHTTP) Config() authhttp.Config {
	cfg := authhttp.Config{URLs: h.URLs, Timeout: h.Timeout, PassClientCert: h.PassClientCert, Headers: make(map[string]identity.Secret)}
	for name, value := range h.Headers {
		cfg.Headers[name] = identity.NewSecret(value)
	}
	for name, value := range h.Secrets {
		cfg.Headers[name] = value
	}
	return cfg
}
