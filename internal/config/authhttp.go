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

// authHTTP checks the auth servers, whether or not a method asks them yet.
func (k checker) authHTTP() {
	h := &k.c.Auth.HTTP
	secure := false
	for i, raw := range h.URLs {
		u, err := authhttp.ParseURL(raw)
		if err != nil {
			k.add(Indexed("auth.http.urls", i), "%s", err)
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
	if h.PassClientCert && k.c.TLS.ClientCA == "" {
		k.add("auth.http.pass_client_cert", "needs tls.client_ca: without it no client is asked for a certificate")
	}
	k.headers(h)
	asked := slices.Index(k.c.Auth.Methods, "http")
	if asked >= 0 && len(h.URLs) == 0 {
		k.add(Indexed("auth.methods", asked), "is http, but auth.http.urls names no auth server")
	}
	if k.c.Routing.Source == "http" && asked < 0 {
		k.add("routing.source", "is http, but http is not among auth.methods: only the auth server's answer to a login says where")
	}
}

// headers checks the names, which are one whatever the case of their letters.
func (k checker) headers(h *AuthHTTP) {
	seen := make(map[string]bool)
	for block, values := range map[string]map[string]string{"auth.http.headers": h.Headers, "auth.http.header_files": h.HeaderFiles} {
		for name, value := range values {
			if block == "auth.http.header_files" {
				value = ""
			}
			if err := authhttp.CheckHeader(name, value); err != nil {
				k.add(Below(block, name), "%s", err)
			} else if seen[strings.ToLower(name)] {
				k.add(Below(block, name), "is there twice")
			}
			seen[strings.ToLower(name)] = true
		}
	}
}

// authHTTP reads the values of the headers that are in files.
func (s secrets) authHTTP(h *AuthHTTP) {
	for name, file := range h.HeaderFiles {
		key := Below("auth.http.header_files", name)
		if file == "" {
			s.add(key, "is empty")
			continue
		}
		// A variable of no name is not set.
		value := s.read(key, file, "")
		if value.IsZero() {
			continue
		}
		read := (*s.files)[len(*s.files)-1]
		read.valid = func(text string) error { return authhttp.CheckHeader(name, text) }
		if h.Secrets == nil {
			h.Secrets = make(map[string]identity.Secret)
		}
		h.Secrets[name] = value
	}
}

// Config is the part the Asker takes, but for TLS.
func (h *AuthHTTP) Config() authhttp.Config {
	cfg := authhttp.Config{URLs: h.URLs, Timeout: h.Timeout, PassCert: h.PassClientCert, Headers: make(map[string]identity.Secret)}
	for name, value := range h.Headers {
		cfg.Headers[name] = identity.NewSecret(value)
	}
	for name, value := range h.Secrets {
		cfg.Headers[name] = value
	}
	return cfg
}
