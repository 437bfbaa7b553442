package config

import (
	"net/netip"
	"time"

	"imapgate/internal/identity"
	"imapgate/proxy/upstream"
	"imapgate/tlsconf"
)

// Config is the whole file. The tags of its fields are: was, the key's name in
// earlier versions; default, the value of a key that is left out; oneof, the allowed
// words; set, the type of internal/event whose words are allowed, and a tag that they must
// have; later, words that a later version will support; min and max, bounds; form, a check
// of formats.go; file, the effect of a change to the file that the value names (schema.go);
// doc, the text of the reference.
type Config struct {
	Listeners []Listener             `yaml:"listeners" doc:"Where clients connect. Left out: one listener, 0.0.0.0:993 with implicit TLS."`
	TLS       tlsconf.ServerSettings `yaml:"tls" doc:"Certificates and TLS policy of the listeners. Required if a listener uses TLS."`
	Redis     *Redis                 `yaml:"redis" doc:"The Redis that holds routes (and passwords, with auth method redis). Left out: the gateway runs without Redis."`
	Auth      Auth                   `yaml:"auth" doc:"How clients are authenticated."`
	Routing   Routing                `yaml:"routing" doc:"Which backend a user's mail is on."`
	Backends  map[string]Backend     `yaml:"backends" doc:"The mail servers, by name. A route can only name one of these. At least one is needed. A name has 1 to 63 characters of a-z, 0-9, - and _ and begins with a letter or digit."`
	Limits    Limits                 `yaml:"limits" doc:"Timeouts and bounds."`
	Audit     Audit                  `yaml:"audit" doc:"The audit log: one line of JSON for every login attempt and every end of a connection."`
	Log       Log                    `yaml:"log" doc:"The ordinary log, on standard error."`
	Admin     Admin                  `yaml:"admin" doc:"The HTTP address for metrics and health."`

	SecretFiles []*SecretFile `yaml:"-"` // the files that secrets were read from

	file      string              `yaml:"-"`
	positions map[string]position `yaml:"-"` // position of each key in the file
}

// Listener is one address clients connect to.
type Listener struct {
	Address         string          `yaml:"address" default:"0.0.0.0:993" form:"listen" doc:"host:port to listen on."`
	Name            string          `yaml:"name" form:"label" doc:"Its name in logs and metrics. Default: the address."`
	TLS             string          `yaml:"tls" default:"implicit" oneof:"implicit starttls none" doc:"implicit: TLS from the first byte. starttls: LOGINDISABLED until the client has sent STARTTLS. none: passwords travel in the clear; only for a trusted network, behind a proxy that terminates TLS."`
	ProxyProtocol   *ProxyProtocol  `yaml:"proxy_protocol" doc:"If present, a PROXY v1 or v2 header is required from trusted peers and refused from all others, which are served as ordinary clients without one. Left out: no header is accepted."`
	Mechanisms      []string        `yaml:"mechanisms" oneof:"SCRAM-SHA-256-PLUS SCRAM-SHA-256 EXTERNAL PLAIN LOGIN OAUTHBEARER XOAUTH2" example:"[SCRAM-SHA-256-PLUS, EXTERNAL]" doc:"The subset of auth.mechanisms that clients of this listener may use. Left out: all. The LOGIN command is allowed with PLAIN or LOGIN."`
	TrustedNetworks []netip.Prefix  `yaml:"trusted_networks" example:"[10.1.0.0/16]" doc:"Networks of other IMAP proxies in front, whose ID parameters x-originating-ip and related ones are trusted. From all other clients they are ignored. Compared with the TCP peer, or with the address in the PROXY header if there is one."`
	Limits          *ListenerLimits `yaml:"limits" doc:"Overrides of limits for this listener."`
}

// ProxyProtocol names the peers whose PROXY header is trusted.
type ProxyProtocol struct {
	Trusted []netip.Prefix `yaml:"trusted" example:"[10.0.0.0/8]" doc:"Networks of the load balancers in front. Required, not empty."`
}

// Redis configures the connection to Redis.
type Redis struct {
	Addresses      []string `yaml:"addresses" default:"127.0.0.1:6379" form:"redis" doc:"host:port of the server, or unix:///path of its socket; host:port of some nodes with cluster; of the sentinels with sentinel_master."`
	Cluster        bool     `yaml:"cluster" default:"false" doc:"The addresses are nodes of a Redis Cluster."`
	Database       int      `yaml:"database" default:"0" min:"0" max:"1000000" doc:"Number of the database (SELECT). A cluster has only 0. Independent gateways also need different prefixes, because Redis announces changes for all databases."`
	SentinelMaster string   `yaml:"sentinel_master" form:"label" doc:"Name of the master set. When set, the addresses are sentinels."`
	Username       string   `yaml:"username" form:"label" doc:"ACL user. docs/operating/redis.md lists the rights it needs."`
	PasswordFile   string   `yaml:"password_file" file:"secret" doc:"File with the password, or set IMAPGATE_REDIS_PASSWORD."`

	SentinelUsername     string `yaml:"sentinel_username" form:"label" doc:"ACL user of the sentinels, which do not use username and password_file."`
	SentinelPasswordFile string `yaml:"sentinel_password_file" file:"restart" doc:"File with the password of the sentinels, or set IMAPGATE_REDIS_SENTINEL_PASSWORD. Left out: the sentinels need none."`

	TLS        bool   `yaml:"tls" default:"false" doc:"Connect to Redis with TLS. The certificate is always verified."`
	CA         string `yaml:"ca" file:"tls" doc:"PEM file of the CAs to trust. Default: the system's."`
	ServerName string `yaml:"server_name" form:"label" doc:"The name its certificate must have; with cluster or sentinel_master, that of every server. Default: the host of the address."`

	ClientCertificate *tlsconf.CertFiles `yaml:"client_certificate" doc:"Presented to a Redis that requests one, which is the default of a Redis with TLS (tls-auth-clients)."`

	Prefix string `yaml:"prefix" default:"imapgate:" form:"prefix" doc:"The prefix of every key."`

	Password         identity.Secret `yaml:"-"` // from PasswordFile or the environment
	SentinelPassword identity.Secret `yaml:"-"` // from SentinelPasswordFile or the environment
}

// Auth configures how clients are authenticated.
type Auth struct {
	Methods         []string     `yaml:"methods" default:"passthrough" oneof:"passthrough file redis http oauth" doc:"Tried in order; the first that knows the user decides. file: a passwd-file. redis: the field password of the user's record. http: an auth server that speaks the protocol of nginx's mail proxy; it decides about every password. oauth: bearer tokens are verified here. passthrough: the backend decides, with the client's own password or token; it must come last. A user whom only passthrough would verify cannot be routed to a backend with login: master."`
	DefaultDomain   string       `yaml:"default_domain" form:"domain" example:"example.org" doc:"Appended to a user name without @."`
	Names           AuthNames    `yaml:"names" doc:"Which user names are valid, and how they are normalized."`
	Mechanisms      []string     `yaml:"mechanisms" oneof:"SCRAM-SHA-256-PLUS SCRAM-SHA-256 EXTERNAL PLAIN LOGIN OAUTHBEARER XOAUTH2" example:"[SCRAM-SHA-256-PLUS, SCRAM-SHA-256, PLAIN, LOGIN]" doc:"The SASL mechanisms offered; no other is accepted. Left out: PLAIN and LOGIN if a method verifies passwords, OAUTHBEARER and XOAUTH2 with the method oauth, EXTERNAL with external. SCRAM must be named: clients that support it prefer it, and it fails for every user whose password is not stored as {SCRAM-SHA-256}. OAUTHBEARER and XOAUTH2 with passthrough must be named too, because not every backend accepts tokens. PLUS is offered only inside TLS, EXTERNAL only to clients with a valid certificate."`
	SCRAMSecretFile string       `yaml:"scram_secret_file" file:"restart" example:"/run/secrets/scram" doc:"File with a secret of at least 16 characters, or set IMAPGATE_SCRAM_SECRET; needed for SCRAM. It derives the salts that unknown users get, so all gateways must share it, and it must never change: a salt that changes reveals that the user does not exist. It also makes unknown users look like unavailable ones. openssl rand -base64 32 makes one."`
	SCRAMIterations int          `yaml:"scram_iterations" default:"100000" min:"4096" max:"1000000" doc:"The iteration count presented for users who have no password stored for SCRAM. It must be the count of the stored passwords, on all gateways: a different count reveals that a user exists. imapgate passwd uses 100000, doveadm pw 4096. A stored password with another count is reported as a warning in the log."`
	External        AuthExternal `yaml:"external" doc:"For the mechanism EXTERNAL: clients with certificates issued by tls.client_ca."`
	File            AuthFile     `yaml:"file" doc:"For the method file."`
	HTTP            AuthHTTP     `yaml:"http" doc:"For the method http: auth servers that speak the protocol of nginx's auth_http."`
	OAuth           AuthOAuth    `yaml:"oauth" doc:"For the method oauth: the provider of the bearer tokens that clients send with OAUTHBEARER and XOAUTH2."`

	SCRAMSecret identity.Secret `yaml:"-"` // from SCRAMSecretFile or the environment
	NameRules   identity.Names  `yaml:"-"` // from DefaultDomain and Names
}

// AuthFile names a passwd-file.
type AuthFile struct {
	Path string `yaml:"path" default:"/etc/imapgate/users" file:"users" form:"required" doc:"Lines of user:{SCHEME}hash, as in Dovecot's passwd-file. Watched: changes apply without a restart."`
}

// Routing configures how a user's backend is found.
type Routing struct {
	Source   string `yaml:"source" default:"redis" oneof:"redis static http" doc:"redis: the route records, which any Redis client can change. static: the block below. http: the auth server of the method http names the backend with each login. Its Auth-Server and Auth-Port must be the address of a backend: its IP address, or one that its name resolves to now (remembered for cache.ttl). The other sources ignore these two headers."`
	Static   Static `yaml:"static" doc:"Used with source: static. The user's own entry takes precedence over the domain's, and that over default."`
	Cache    Cache  `yaml:"cache" doc:"How long answers of Redis are used."`
	Snapshot string `yaml:"snapshot" file:"own" form:"path" example:"/var/lib/imapgate/routes" doc:"File for the known routes. With it, a gateway that is restarted while Redis is down still serves known users, and one that is restarted after Redis has lost its records detects the loss. It must belong to the gateway's user or root, and no other user may have write access. Empty: none is kept."`
}

// Static holds routes from the configuration file.
type Static struct {
	Users   map[string]string `yaml:"users" example:"{alice@example.org: east}" doc:"User to backend."`
	Domains map[string]string `yaml:"domains" example:"{example.org: east}" doc:"Domain to backend."`
	Default string            `yaml:"default" doc:"Backend of all other users. Empty: they are refused."`
}

// Cache bounds the age of cached routes.
type Cache struct {
	TTL      time.Duration `yaml:"ttl" default:"60s" min:"1s" max:"24h" doc:"How long an answer is fresh. Changes normally arrive within a second; this is the bound while the invalidation connection is down."`
	Stale    time.Duration `yaml:"stale" default:"24h" min:"0s" max:"720h" doc:"While Redis gives no answer, the last good one is used for this long."`
	Negative time.Duration `yaml:"negative" default:"5s" min:"0s" max:"5m" doc:"How long an answer that a user does not exist is fresh."`
}

// Backend is one mail server.
type Backend struct {
	Name string `yaml:"-"` // its key
	upstream.Settings
	Mode string `yaml:"mode" default:"splice" set:"Mode" later:"park" doc:"How sessions are relayed. splice: byte for byte. reuse: commands are parsed, and after LOGOUT the backend connection is kept for the next login of the same account. The many short sessions of webmail then cost the backend very little. resume: as reuse, and a session survives a restart of its backend; its client sees at most a pause. For this the client's password is kept in memory during the session, unless the backend has login: master. Whatever a mode cannot follow is relayed as with splice."`
	Mux  Mux    `yaml:"mux" doc:"For the modes reuse and resume."`
}

// Limits are timeouts and bounds.
type Limits struct {
	MaxConnections      int           `yaml:"max_connections" default:"0" min:"0" max:"10000000" doc:"Concurrent client connections. 0: as many as the process's descriptor limit allows, at two descriptors each, with 64 in reserve."`
	PreauthTimeout      time.Duration `yaml:"preauth_timeout" default:"60s" min:"1s" max:"10m" doc:"From accept to the last byte of a login, in total. The auth method then has the same time to verify it, and the backend takes at most limits.upstream_login_timeout."`
	TLSHandshakeTimeout time.Duration `yaml:"tls_handshake_timeout" default:"10s" min:"1s" max:"1m" doc:"For the TLS handshake, from accept or from the OK to STARTTLS."`
	TLSHandshakes       int           `yaml:"tls_handshakes" default:"0" min:"0" max:"10000" doc:"TLS handshakes computed at a time; established sessions and logins in progress take precedence. Handshakes that would queue for more than 80 ms (500 ms at the start of a burst) are rejected immediately, so that a flood does not starve the rest. 0: two for each core."`
	IdleTimeout         time.Duration `yaml:"idle_timeout" default:"32m" min:"30m" max:"24h" doc:"A session without traffic in either direction ends after this. RFC 9051 requires at least 30 minutes."`
	WriteTimeout        time.Duration `yaml:"write_timeout" default:"5m" min:"1s" max:"1h" doc:"A session ends if its client or backend accepts no bytes for this long."`
	MaxAuthAttempts     int           `yaml:"max_auth_attempts" was:"auth_attempts" default:"3" min:"1" max:"100" doc:"Failed logins on a connection before it is closed."`
	MaxBadCommands      int           `yaml:"max_bad_commands" was:"bad_commands" default:"3" min:"1" max:"100" doc:"Invalid commands before login, before the connection is closed."`
	MaxLineLength       int           `yaml:"max_line_length" default:"65536" min:"65536" max:"16777216" doc:"Bytes of one line of a client after login, without literals, in the modes reuse and resume; splice has no such limit. Longer lines get BAD. Set it to what the backends accept (Dovecot: imap_max_line_length): webmail sends long lists of UIDs. A client can occupy this much of the gateway's memory while it sends a line."`
	DrainTimeout        time.Duration `yaml:"drain_timeout" was:"drain" default:"30s" min:"0s" max:"24h" doc:"How long sessions may continue after SIGTERM. Idle ones are ended one by one during this time. The service manager must wait longer before it kills the process: see docs/operating/restart-and-upgrade.md."`
	upstream.LimitSettings
	MaxPasswordHashes int `yaml:"max_password_hashes" was:"verifiers" default:"0" min:"0" max:"1024" doc:"Password hashes computed at a time. 0: one for each core."`

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

// Admin configures the HTTP listener for operators.
type Admin struct {
	Address   string `yaml:"address" default:"127.0.0.1:9143" form:"admin" doc:"host:port; empty disables it. Outside loopback a token is required."`
	TokenFile string `yaml:"token_file" file:"secret" doc:"File with the bearer token, at least 16 characters, or set IMAPGATE_ADMIN_TOKEN. Empty: no token, on loopback only."`

	Token identity.Secret `yaml:"-"` // from TokenFile or the environment
}
