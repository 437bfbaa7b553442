package authhttp

import (
	"maps"
	"time"

	"imapgate/internal/identity"
)

// Settings are the settings of the auth servers.
type Settings struct {
	URLs           []string          `yaml:"urls" example:"[https://auth1.internal/auth, https://auth2.internal/auth]" reload:"new" doc:"The auth servers, http or https. The first one that gives a usable answer decides. After five failures in a row a server is skipped for a second at a time. With http, passwords travel in the clear. At most 16."`
	Timeout        time.Duration     `yaml:"timeout" default:"5s" min:"100ms" max:"1m" reload:"new" doc:"Limit for the answer of one server, before the next is tried."`
	Headers        map[string]string `yaml:"headers" example:"{X-Auth-Realm: mail}" reload:"new" doc:"Headers sent with every request. Those of the protocol cannot be replaced."`
	HeaderFiles    map[string]string `yaml:"header_files" file:"secret" example:"{X-Auth-Key: /run/secrets/auth-key}" reload:"new" doc:"Headers whose values are secrets, each with the file that holds the value."`
	CA             string            `yaml:"ca" file:"tls" reload:"new" doc:"For https. PEM file of the CAs to trust. Default: the system's."`
	Cert           string            `yaml:"cert" file:"tls" reload:"new" doc:"For https. PEM file of the certificate presented to the auth server, followed by its intermediates."`
	Key            string            `yaml:"key" file:"tls" reload:"new" doc:"For https. PEM file of its key."`
	PassClientCert bool              `yaml:"pass_client_cert" default:"false" reload:"new" doc:"Send the client's certificate too, as Auth-SSL-Cert. Needs tls.client_ca."`

	Secrets map[string]identity.Secret `yaml:"-"` // headers with the contents of HeaderFiles
}

// allHeaders returns Headers and Secrets together.
func (s *Settings) allHeaders() map[string]identity.Secret {
	all := maps.Clone(s.Secrets)
	if all == nil {
		all = make(map[string]identity.Secret)
	}
	for name, value := range s.Headers {
		all[name] = identity.NewSecret(value)
	}
	return all
}
