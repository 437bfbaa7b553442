package admin

import "imapgate/internal/identity"

// Settings are the settings of the HTTP listener for operators.
type Settings struct {
	Address   string `yaml:"address" default:"127.0.0.1:9143" form:"admin" reload:"restart" doc:"host:port; empty disables it. Outside loopback a token is required."`
	TokenFile string `yaml:"token_file" file:"secret" reload:"restart" doc:"File with the bearer token, at least 16 characters, or set IMAPGATE_ADMIN_TOKEN. Empty: no token, on loopback only."`

	Token identity.Secret `yaml:"-"` // from TokenFile or the environment
}
