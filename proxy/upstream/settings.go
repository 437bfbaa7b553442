package upstream

import (
	"time"

	"imapgate/internal/event"
	"imapgate/internal/identity"
	"imapgate/tlsconf"
)

// Settings are the settings of one backend.
type Settings struct {
	Address    string        `yaml:"address" form:"backend" example:"mail-east.internal:993" reload:"new" doc:"host:port of the server. Required."`
	TLS        event.TLSMode `yaml:"tls" default:"implicit" set:"TLSMode" reload:"new" doc:"How the connection is protected. The certificate is always verified. none: passwords travel in the clear."`
	CA         string        `yaml:"ca" file:"tls" reload:"new" doc:"PEM file of the CAs to trust. Default: the system's."`
	ServerName string        `yaml:"server_name" form:"label" reload:"new" doc:"The name its certificate must have. Default: the host in address."`

	ClientCertificate *tlsconf.CertFiles `yaml:"client_certificate" doc:"Presented to a server that requests one (mTLS)."`

	Login   string `yaml:"login" default:"passthrough" oneof:"passthrough master oauth" reload:"new" doc:"How the gateway logs in. passthrough: with the client's own user name and password or token. master: with the gateway's account, on behalf of the user. oauth: with the client's token only; password logins are refused."`
	Master  Master `yaml:"master" doc:"For login: master."`
	Forward string `yaml:"forward" default:"id" oneof:"id proxy none" reload:"new" doc:"How the client's address reaches the backend. id: Dovecot's x-originating-ip and related parameters in the ID command. proxy: a PROXY v2 header. none: not at all. The client's own ID parameters, such as name and version, are forwarded in any case."`
}

// Master is the account that may log in on behalf of any user.
type Master struct {
	User         string `yaml:"user" form:"label" example:"gateway" reload:"new" doc:"Its user name. Required with login: master."`
	PasswordFile string `yaml:"password_file" file:"secret" example:"/run/secrets/master" reload:"new" doc:"File with its password, or set IMAPGATE_MASTER_PASSWORD_ followed by the backend's name in capitals, with - as _."`
	Style        string `yaml:"style" default:"authzid" oneof:"authzid separator" reload:"new" doc:"authzid: SASL PLAIN with the user as authorization identity. separator: LOGIN as user, separator, master."`
	Separator    string `yaml:"separator" default:"*" form:"separator" reload:"new" doc:"For style: separator. One character that no user name can contain."`

	Password identity.Secret `yaml:"-"` // from PasswordFile or the environment
}

// LoginSettings are the settings of logins at all backends.
type LoginSettings struct {
	UpstreamConnectTimeout       time.Duration `yaml:"upstream_connect_timeout" default:"5s" min:"100ms" max:"1m" reload:"new" doc:"For a TCP connection to a backend."`
	UpstreamLoginTimeout         time.Duration `yaml:"upstream_login_timeout" default:"30s" min:"1s" max:"5m" reload:"new" doc:"For the whole login at a backend, including connecting. A backend has at least 20s to answer the password: a client could otherwise try passwords whose failures are not counted."`
	MaxUpstreamLogins            int           `yaml:"max_upstream_logins" default:"64" min:"1" max:"100000" reload:"new" doc:"Concurrent logins at one backend; more of them wait. A login counts for at most one second, so a backend that delays its answer to a wrong password does not delay other logins."`
	ProxyTTL                     int           `yaml:"proxy_ttl" default:"5" min:"1" max:"255" reload:"new" doc:"IMAP proxies that a login may pass through, to end loops."`
	MaxUpstreamConnectsPerSecond int           `yaml:"max_upstream_connects_per_second" was:"max_upstream_rate" default:"0" min:"0" max:"1000000" reload:"new" doc:"New connections to one backend per second, of all users; more of them wait, within the timeout of their login. 0: no bound."`
	// AnswerTimeout is the least time for the answer to the credentials, even beyond
	// UpstreamLoginTimeout; 0: answerTimeout. Only tests set it.
	AnswerTimeout time.Duration `yaml:"-"`
}
