package admin

import (
	"imapgate/internal/identity"
	"imapgate/tlsconf"
)

// Settings are the settings of the listeners for operators.
type Settings struct {
	Socket     string             `yaml:"socket" default:"/run/imapgate/admin.sock" form:"path" reload:"restart" doc:"Unix socket for the commands on this machine, with mode 0660: its group may do everything. Empty disables it. If it is left out and the directory does not exist, the gateway runs without it."`
	Address    string             `yaml:"address" default:"127.0.0.1:9143" form:"admin" reload:"restart" doc:"host:port of the HTTP listener; empty disables it. Outside loopback it needs tls and a token."`
	TLS        *tlsconf.CertFiles `yaml:"tls" doc:"Certificate of the address, which is then HTTPS. The files are watched."`
	TokenFile  string             `yaml:"token_file" file:"secret" reload:"restart" doc:"File with the bearer token of an operator named admin, at least 16 characters, or set IMAPGATE_ADMIN_TOKEN. Without any token everyone on loopback may read."`
	TokensFile string             `yaml:"tokens_file" file:"secret" reload:"restart" example:"/etc/imapgate/tokens" doc:"File with a line for each token: name, role (viewer or operator), SHA-256 of the token in hex, and optionally when it expires. imapgate token new makes one. The file is watched."`

	Token           identity.Secret `yaml:"-"` // from TokenFile or the environment
	SocketIsDefault bool            `yaml:"-"` // the configuration does not name it
}
