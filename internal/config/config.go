package config

import (
	"net/netip"

	"imapgate/auth"
	"imapgate/auth/authhttp"
	"imapgate/auth/oauth"
	"imapgate/internal/admin"
	"imapgate/internal/audit"
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
	Mechanisms []string        `yaml:"mechanisms" oneof:"SCRAM-SHA-256-PLUS SCRAM-SHA-256 EXTERNAL PLAIN LOGIN OAUTHBEARER XOAUTH2" example:"[SCRAM-SHA-256-PLUS, EXTERNAL]" doc:"The subset of auth.mechanisms that clients of this listener may use. Left out: all. The LOGIN command is allowed with PLAIN or LOGIN."`
	Limits     *ListenerLimits `yaml:"limits" doc:"Overrides of limits for this listener."`
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

	Connections    Connections    `yaml:"connections" doc:"Bounds on the connections of clients. When a bound is reached, clients get BYE before login, or NO [LIMIT] after a correct password. With redis, the counts cover all gateways."`
	Failures       Failures       `yaml:"failures" doc:"Penalties for failed logins. The same wrong password repeated, such as by a phone with an outdated password, counts once. With redis, the counts, delays and bans cover all gateways."`
	UserQuota      Quota          `yaml:"user_quota" was:"budget" doc:"What the sessions of one user may use together. A user who exceeds it is slowed down, not disconnected."`
	ExemptNetworks []netip.Prefix `yaml:"exempt_networks" was:"exempt" default:"127.0.0.0/8 ::1/128" example:"[127.0.0.0/8, 10.2.0.0/16]" doc:"Networks whose addresses are not counted, delayed or banned, such as a webmail's, which stands for many users. The bounds on a user's sessions and quota apply there too, but failed logins from there are not counted. The client's own address is compared: that of a PROXY header or a trusted ID if there is one."`
}

// Log is the ordinary log.
type Log struct {
	Level  string `yaml:"level" default:"info" oneof:"debug info warn error" doc:"The lowest level that is written."`
	Format string `yaml:"format" default:"json" oneof:"json console" doc:"json for machines, console for people."`
}
