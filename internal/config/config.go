package config

import (
	"imapgate/auth"
	"imapgate/auth/authhttp"
	"imapgate/auth/oauth"
	"imapgate/internal/admin"
	"imapgate/internal/audit"
	"imapgate/internal/limit"
	"imapgate/internal/settings"
	"imapgate/proxy"
	"imapgate/proxy/upstream"
	"imapgate/routing"
	"imapgate/tlsconf"
)

// Config is the whole file, composed of the settings of all packages. Package settings
// describes the tags.
type Config struct {
	Listeners []Listener             `yaml:"listeners" doc:"Where clients connect. Left out: one listener, 0.0.0.0:993 with implicit TLS."`
	TLS       tlsconf.ServerSettings `yaml:"tls" doc:"Certificates and TLS policy of the listeners. Required if a listener uses TLS."`
	Redis     *routing.RedisSettings `yaml:"redis" doc:"The Redis that holds routes (and passwords, with auth method redis). Left out: the gateway runs without Redis."`
	Auth      Auth                   `yaml:"auth" doc:"How clients are authenticated."`
	Routing   routing.Settings       `yaml:"routing" doc:"Which backend a user's mail is on."`
	Backends  map[string]Backend     `yaml:"backends" doc:"The mail servers, by name. A route can only name one of these. At least one is needed. A name has 1 to 63 characters of a-z, 0-9, - and _ and begins with a letter or digit."`
	Limits    Limits                 `yaml:"limits" doc:"Timeouts and bounds."`
	Audit     audit.Settings         `yaml:"audit" doc:"The audit log: one line of JSON for every login attempt and every end of a connection."`
	Log       Log                    `yaml:"log" doc:"The ordinary log, on standard error."`
	Admin     admin.Settings         `yaml:"admin" doc:"The HTTP address for metrics and health."`

	SecretFiles []*SecretFile `yaml:"-"` // the files that secrets were read from

	file      string              `yaml:"-"`
	positions map[string]position `yaml:"-"` // position of each key in the file
}

// Listener is one address clients connect to.
type Listener struct {
	proxy.ListenerSettings
	Mechanisms []string        `yaml:"mechanisms" oneof:"SCRAM-SHA-256-PLUS SCRAM-SHA-256 EXTERNAL PLAIN LOGIN OAUTHBEARER XOAUTH2" example:"[SCRAM-SHA-256-PLUS, EXTERNAL]" reload:"new" doc:"The subset of auth.mechanisms that clients of this listener may use. Left out: all. The LOGIN command is allowed with PLAIN or LOGIN."`
	Limits     *limit.Settings `yaml:"limits" override:"true" doc:"Overrides of limits for this listener."`
}

// Auth configures how clients are authenticated.
type Auth struct {
	auth.Settings
	HTTP  authhttp.Settings `yaml:"http" doc:"For the method http: auth servers that speak the protocol of nginx's auth_http."`
	OAuth oauth.Settings    `yaml:"oauth" doc:"For the method oauth: the provider of the bearer tokens that clients send with OAUTHBEARER and XOAUTH2."`
}

// Backend is one mail server.
type Backend struct {
	Name string `yaml:"-"` // its key
	upstream.Settings
	proxy.BackendSettings
}

// Limits are timeouts and bounds.
type Limits struct {
	proxy.LimitSettings
	upstream.LoginSettings
	auth.HashSettings
	limit.Settings
}

// LimitsOf returns the limits of a listener.
func (c *Config) LimitsOf(l Listener) limit.Settings {
	if l.Limits == nil {
		return c.Limits.Settings
	}
	return settings.Override(c.Limits.Settings, *l.Limits)
}

// Log is the ordinary log.
type Log struct {
	Level  string `yaml:"level" default:"info" oneof:"debug info warn error" reload:"live" doc:"The lowest level that is written."`
	Format string `yaml:"format" default:"json" oneof:"json console" reload:"restart" doc:"json for machines, console for people."`
}
