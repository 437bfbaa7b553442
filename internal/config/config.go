package config

import (
	"net/netip"
	"time"

	"imapgate/internal/identity"
	"imapgate/tlsconf"
)

// Config is the whole file. The tags of its fields mean: was, the key's name in
// earlier versions; default, the value of a key left out; oneof, the words allowed; later, words of the contract that
// this version does not have; min and max, bounds; form, a check in forms.go;
// file, what becomes of a change of the file that the value names (schema.go); doc, the
// text of the reference.
type Config struct {
	Listeners []Listener         `yaml:"listeners" doc:"Where clients connect. Left out: one listener, 0.0.0.0:993 with implicit TLS."`
	TLS       TLS                `yaml:"tls" doc:"Certificates and TLS policy of the listeners. Needed as soon as a listener has TLS."`
	Redis     *Redis             `yaml:"redis" doc:"The Redis that holds routes (and passwords, with auth method redis). Left out: the gateway runs without Redis."`
	Auth      Auth               `yaml:"auth" doc:"Who a client is."`
	Routing   Routing            `yaml:"routing" doc:"Which backend a user's mail is on."`
	Backends  map[string]Backend `yaml:"backends" doc:"The mail servers, by name. A route can only name one of these. At least one is needed. Names have 1 to 63 of a-z, 0-9, - and _, beginning with a letter or digit."`
	Limits    Limits             `yaml:"limits" doc:"Time-outs and bounds."`
	Audit     Audit              `yaml:"audit" doc:"The audit log: one line of JSON for every login attempt and every end of a connection."`
	Log       Log                `yaml:"log" doc:"The ordinary log, on standard error."`
	Admin     Admin              `yaml:"admin" doc:"The HTTP address for metrics and health."`

	SecretFiles []*SecretFile `yaml:"-"` // those that secrets were read from

	file      string              `yaml:"-"`
	positions map[string]position `yaml:"-"` // where in the file each key is
}

// Listener is one address clients connect to.
type Listener struct {
	Address         string          `yaml:"address" default:"0.0.0.0:993" form:"listen" doc:"host:port to listen on."`
	Name            string          `yaml:"name" form:"label" doc:"Its name in logs and metrics. Default: the address."`
	TLS             string          `yaml:"tls" default:"implicit" oneof:"implicit starttls none" doc:"implicit: TLS from the first byte. starttls: LOGINDISABLED until the client has sent STARTTLS. none: passwords travel in the clear; only for a trusted network, behind something that ends TLS."`
	ProxyProtocol   *ProxyProtocol  `yaml:"proxy_protocol" doc:"When present, a PROXY v1 or v2 header is required from the trusted peers and refused from every other: those are served as ordinary clients without one. When left out, no header is accepted from anyone."`
	Mechanisms      []string        `yaml:"mechanisms" oneof:"SCRAM-SHA-256-PLUS SCRAM-SHA-256 EXTERNAL PLAIN LOGIN OAUTHBEARER XOAUTH2" example:"[SCRAM-SHA-256-PLUS, EXTERNAL]" doc:"Of auth.mechanisms, those that clients of this listener may use. Left out: all. The LOGIN command goes with PLAIN or LOGIN."`
	TrustedNetworks []netip.Prefix  `yaml:"trusted_networks" example:"[10.1.0.0/16]" doc:"Networks of other IMAP proxies in front, whose ID parameters x-originating-ip and its kin are believed. From everybody else they are ignored. Compared with the TCP peer, or behind a PROXY header with the address in that."`
	Limits          *ListenerLimits `yaml:"limits" doc:"Where this listener differs from limits."`
}

// ProxyProtocol says from whom a PROXY header is believed.
type ProxyProtocol struct {
	Trusted []netip.Prefix `yaml:"trusted" example:"[10.0.0.0/8]" doc:"Networks of the load balancers in front. Required, not empty."`
}

// TLS is the listeners' side.
type TLS struct {
	MinVersion     string        `yaml:"min_version" default:"1.2" oneof:"1.2 1.3" doc:"The oldest TLS version spoken, in quotes. There is no word for 1.0 and 1.1."`
	Certificates   []Certificate `yaml:"certificates" doc:"Chosen by the name the client asks for (SNI): an exact match, then a wildcard, then the first. Of several for a name, say with an ECDSA and an RSA key, a client gets the first that it can use; so it does of those for the names of the first. The files are followed: a new version is used for new connections, a bad one is reported and the last good one stays."`
	CertificateDir string        `yaml:"certificate_dir" file:"tls" form:"path" example:"/etc/letsencrypt/live" doc:"A directory of more pairs, which come behind certificates, in the order of their files' names; those that are not valid now come last, and of those for one name the newest first. Read are *.pem, *.crt, *.cer and *.key in it and in the directories in it, as certbot's live/ has them, and no deeper, in any mix: chains and keys in files of their own, or in one. A key is for the certificates with its public key, whatever the files are called; of several chains for a certificate the longest is served; files of CAs alone are intermediates, and a CA is not served, though its key be there. Followed: pairs that are added, renewed or removed are so for new connections. Of a pair that is half written the last good version stays, and what cannot be used is told by name."`
	ClientCA       string        `yaml:"client_ca" file:"tls" example:"/etc/imapgate/tls/clients.pem" doc:"PEM file of the CAs of client certificates. When set, clients are asked for one; a client without one is served, and one whose certificate is not good is refused in the handshake. Followed when it changes: nobody resumes a session that was trusted under another. For auth.external and auth.http."`
}

// Certificate names two PEM files.
type Certificate struct {
	Cert string `yaml:"cert" file:"tls" form:"required" example:"/etc/imapgate/tls/mail.pem" doc:"PEM file of the certificate, followed by its intermediates."`
	Key  string `yaml:"key" file:"tls" form:"required" example:"/etc/imapgate/tls/mail.key" doc:"PEM file of its key."`
}

// KeyPair is the part tlsconf takes of a certificate that may not be there.
func (c *Certificate) KeyPair() tlsconf.CertFiles {
	if c == nil {
		return tlsconf.CertFiles{}
	}
	return tlsconf.CertFiles{Cert: c.Cert, Key: c.Key}
}

// Redis is the connection to Redis.
type Redis struct {
	Addresses      []string `yaml:"addresses" default:"127.0.0.1:6379" form:"redis" doc:"host:port of the server, or unix:///path of its socket; host:port of some nodes with cluster; of the sentinels with sentinel_master."`
	Cluster        bool     `yaml:"cluster" default:"false" doc:"The addresses are nodes of a Redis Cluster."`
	Database       int      `yaml:"database" default:"0" min:"0" max:"1000000" doc:"Number of the database (SELECT). A cluster has only 0. Gateways that do not belong together need another prefix too: changes are announced for all databases."`
	SentinelMaster string   `yaml:"sentinel_master" form:"label" doc:"Name of the master set. When set, the addresses are sentinels."`
	Username       string   `yaml:"username" form:"label" doc:"ACL user; which rights it needs is in OPERATIONS.md."`
	PasswordFile   string   `yaml:"password_file" file:"secret" doc:"File with the password, or set IMAPGATE_REDIS_PASSWORD."`

	SentinelUsername     string `yaml:"sentinel_username" form:"label" doc:"ACL user of the sentinels, which know neither username nor the password of the servers."`
	SentinelPasswordFile string `yaml:"sentinel_password_file" file:"restart" doc:"File with the password of the sentinels, or set IMAPGATE_REDIS_SENTINEL_PASSWORD. Left out: the sentinels want none."`

	TLS        bool   `yaml:"tls" default:"false" doc:"Speak TLS to Redis; its certificate is verified."`
	CA         string `yaml:"ca" file:"tls" doc:"PEM file of the CAs to trust. Default: the system's."`
	ServerName string `yaml:"server_name" form:"label" doc:"The name its certificate must have; with cluster or sentinel_master, that of every server. Default: the host that is connected to."`

	ClientCertificate *Certificate `yaml:"client_certificate" doc:"Shown to a Redis that asks for one, as one with TLS does by default (tls-auth-clients)."`

	Prefix string `yaml:"prefix" default:"imapgate:" form:"prefix" doc:"Begins every key."`

	Password         identity.Secret `yaml:"-"` // of PasswordFile or the environment
	SentinelPassword identity.Secret `yaml:"-"` // of SentinelPasswordFile or the environment
}

// Auth is how a client's identity is found.
type Auth struct {
	Methods         []string     `yaml:"methods" default:"passthrough" oneof:"passthrough file redis http oauth" doc:"Tried in order; the first that knows the user decides. file: a passwd-file. redis: the field password of the user's record. http: an auth server as nginx's mail proxy asks one; it decides about every password. oauth: bearer tokens are verified here. passthrough: the backend decides, with the client's own password or token; it comes last. A user whom only passthrough would vouch for cannot be sent to a backend with login: master."`
	DefaultDomain   string       `yaml:"default_domain" form:"domain" example:"example.org" doc:"Appended to a user name without @."`
	Names           AuthNames    `yaml:"names" doc:"Which user names there are, and how they are spelled."`
	Mechanisms      []string     `yaml:"mechanisms" oneof:"SCRAM-SHA-256-PLUS SCRAM-SHA-256 EXTERNAL PLAIN LOGIN OAUTHBEARER XOAUTH2" example:"[SCRAM-SHA-256-PLUS, SCRAM-SHA-256, PLAIN, LOGIN]" doc:"The SASL mechanisms offered; no other is accepted. Left out: PLAIN and LOGIN where a method judges passwords, OAUTHBEARER and XOAUTH2 with the method oauth, EXTERNAL with external. SCRAM must be named: programs that know it prefer it, and it fails for every user whose password is not stored as {SCRAM-SHA-256}. OAUTHBEARER and XOAUTH2 with passthrough must be named too: not every backend takes tokens. PLUS is offered inside TLS only, EXTERNAL to clients with a good certificate only."`
	SCRAMSecretFile string       `yaml:"scram_secret_file" file:"restart" example:"/run/secrets/scram" doc:"File with a secret of at least 16 characters, or set IMAPGATE_SCRAM_SECRET; needed for SCRAM. The salts that users get who do not exist are made of it, so all gateways need the same, for ever: whoever sees a salt change knows that there is no such user. Nor are unknown names told from users who are unavailable. openssl rand -base64 32 makes one."`
	SCRAMIterations int          `yaml:"scram_iterations" default:"100000" min:"4096" max:"1000000" doc:"The iterations with which users are answered who have no password stored for SCRAM. It must be the number that the stored ones have, at all gateways: whoever gets another exists. imapgate passwd makes 100000, doveadm pw 4096. A stored password with another number is warned of in the log."`
	External        AuthExternal `yaml:"external" doc:"For the mechanism EXTERNAL: clients with certificates of tls.client_ca."`
	File            AuthFile     `yaml:"file" doc:"For the method file."`
	HTTP            AuthHTTP     `yaml:"http" doc:"For the method http: auth servers that speak the protocol of nginx's auth_http."`
	OAuth           AuthOAuth    `yaml:"oauth" doc:"For the method oauth: who gives out the bearer tokens that OAUTHBEARER and XOAUTH2 bring."`

	SCRAMSecret identity.Secret `yaml:"-"` // of SCRAMSecretFile or the environment
	NameRules   identity.Names  `yaml:"-"` // of DefaultDomain and Names
}

// AuthFile is a passwd-file.
type AuthFile struct {
	Path string `yaml:"path" default:"/etc/imapgate/users" file:"users" form:"required" doc:"Lines of user:{SCHEME}hash, as in Dovecot's passwd-file. Followed when it changes."`
}

// Routing is how a user's backend is found.
type Routing struct {
	Source   string `yaml:"source" default:"redis" oneof:"redis static http" doc:"redis: the records of the contract, changed with any Redis client. static: the block below. http: the auth server of the method http says it with each login; its Auth-Server and Auth-Port must be the address of a backend: its IP address, or one that its name leads to now (which is remembered for cache.ttl). With the other sources they are not looked at."`
	Static   Static `yaml:"static" doc:"Used with source: static. The user's own entry wins over the domain's, that over default."`
	Cache    Cache  `yaml:"cache" doc:"How long answers of Redis are used."`
	Snapshot string `yaml:"snapshot" file:"own" form:"path" example:"/var/lib/imapgate/routes" doc:"File in which the known routes are kept, so that a gateway restarted while Redis is away still serves known users, and one that is restarted while Redis has lost its records notices. It must belong to the gateway's user or root, and be writable to nobody else. Empty: none is kept."`
}

// Static routes from the file itself.
type Static struct {
	Users   map[string]string `yaml:"users" example:"{alice@example.org: east}" doc:"User to backend."`
	Domains map[string]string `yaml:"domains" example:"{example.org: east}" doc:"Domain to backend."`
	Default string            `yaml:"default" doc:"Backend of everyone else. Empty: everyone else is refused."`
}

// Cache bounds the age of routes.
type Cache struct {
	TTL      time.Duration `yaml:"ttl" default:"60s" min:"1s" max:"24h" doc:"An answer is fresh for this long. Changes arrive within a second without it; this is the bound when the channel for changes is broken."`
	Stale    time.Duration `yaml:"stale" default:"24h" min:"0s" max:"720h" doc:"While Redis gives no answer, the last good one serves for this long."`
	Negative time.Duration `yaml:"negative" default:"5s" min:"0s" max:"5m" doc:"An answer of no such user is fresh for this long."`
}

// Backend is one mail server.
type Backend struct {
	Name       string `yaml:"-"` // its key
	Address    string `yaml:"address" form:"backend" example:"mail-east.internal:993" doc:"host:port of the server. Required."`
	TLS        string `yaml:"tls" default:"implicit" oneof:"implicit starttls none" doc:"How the connection is protected. The certificate is always verified. none: passwords travel in the clear."`
	CA         string `yaml:"ca" file:"tls" doc:"PEM file of the CAs to trust. Default: the system's."`
	ServerName string `yaml:"server_name" form:"label" doc:"The name its certificate must have. Default: the host in address."`

	ClientCertificate *Certificate `yaml:"client_certificate" doc:"Shown to a server that asks for one (mTLS)."`

	Login   string `yaml:"login" default:"passthrough" oneof:"passthrough master oauth" doc:"passthrough: with the client's own name and its password or token. master: with the gateway's account, on the user's behalf. oauth: with the client's token alone; who logs in with a password is refused."`
	Master  Master `yaml:"master" doc:"For login: master."`
	Forward string `yaml:"forward" default:"id" oneof:"id proxy none" doc:"How the client's address reaches the backend. id: Dovecot's x-originating-ip and its kin in the ID command. proxy: a PROXY v2 header. none: not at all. What the client says of itself by ID, its name and version, goes on in any case."`
	Mode    string `yaml:"mode" default:"splice" oneof:"splice reuse resume" later:"park" doc:"How sessions are relayed. splice: byte for byte. reuse: commands are followed, and after LOGOUT the connection to the backend waits for the same account's next login; webmail's many short sessions then cost the backend next to nothing. resume: as reuse, and a session whose backend restarts goes on when it is back; its client notices nothing, or a pause. For that the client's password is kept in memory while the session lasts, unless the backend has login: master. What a mode cannot follow is relayed as splice does."`
	Mux     Mux    `yaml:"mux" doc:"For the modes reuse and resume."`
}

// Master is the account that may log in for any user.
type Master struct {
	User         string `yaml:"user" form:"label" example:"gateway" doc:"Its name. Required with login: master."`
	PasswordFile string `yaml:"password_file" file:"secret" example:"/run/secrets/master" doc:"File with its password, or set IMAPGATE_MASTER_PASSWORD_ followed by the backend's name in capitals, with - as _."`
	Style        string `yaml:"style" default:"authzid" oneof:"authzid separator" doc:"authzid: SASL PLAIN with the user as authorization identity. separator: LOGIN as user, separator, master."`
	Separator    string `yaml:"separator" default:"*" form:"separator" doc:"For style: separator. One character that no user name can have."`

	Password identity.Secret `yaml:"-"` // of PasswordFile or the environment
}

// Limits are time-outs and bounds.
type Limits struct {
	MaxConnections               int           `yaml:"max_connections" default:"0" min:"0" max:"10000000" doc:"Client connections at a time. 0: as many as the process's descriptor limit allows, at two each, with 64 kept back."`
	PreauthTimeout               time.Duration `yaml:"preauth_timeout" default:"60s" min:"1s" max:"10m" doc:"From accept to the last byte of a login, all together. The auth method has as long again to judge it, and the backend limits.upstream_login_timeout."`
	TLSHandshakeTimeout          time.Duration `yaml:"tls_handshake_timeout" default:"10s" min:"1s" max:"1m" doc:"For the TLS handshake, from accept or from the OK to STARTTLS."`
	TLSHandshakes                int           `yaml:"tls_handshakes" default:"0" min:"0" max:"10000" doc:"TLS handshakes computed at a time; sessions and logins that are further on go first. Who would wait longer for a turn than 80 ms (500 ms in the first half second of a crowd) is disconnected at once: so a flood leaves room for those whose turn it is. 0: two for each core."`
	IdleTimeout                  time.Duration `yaml:"idle_timeout" default:"32m" min:"30m" max:"24h" doc:"A session in which neither side says anything ends after this. RFC 9051 demands at least 30 minutes."`
	WriteTimeout                 time.Duration `yaml:"write_timeout" default:"5m" min:"1s" max:"1h" doc:"A session whose client or backend does not take the bytes for it ends after this."`
	MaxAuthAttempts              int           `yaml:"max_auth_attempts" was:"auth_attempts" default:"3" min:"1" max:"100" doc:"Failed logins on a connection before it is closed."`
	MaxBadCommands               int           `yaml:"max_bad_commands" was:"bad_commands" default:"3" min:"1" max:"100" doc:"Commands before login that are not understood, before the connection is closed."`
	MaxLineLength                int           `yaml:"max_line_length" default:"65536" min:"65536" max:"16777216" doc:"Bytes of a client's line after the login, literals not counted, in the modes reuse and resume; splice counts none. Longer ones are answered BAD. Set it to what the backends take (Dovecot: imap_max_line_length): webmails send long lists of UIDs. A client can have so much of the gateway's memory while it sends a line."`
	UpstreamConnectTimeout       time.Duration `yaml:"upstream_connect_timeout" default:"5s" min:"100ms" max:"1m" doc:"For a TCP connection to a backend."`
	UpstreamLoginTimeout         time.Duration `yaml:"upstream_login_timeout" default:"30s" min:"1s" max:"5m" doc:"For the whole login at a backend, connecting included. For its answer to the password a backend has 20s at least: what is not waited for would be a guess that does not count."`
	MaxUpstreamLogins            int           `yaml:"max_upstream_logins" default:"64" min:"1" max:"100000" doc:"Logins under way at one backend at a time; more wait. One counts for a second at most: a backend that delays its answer to a wrong password keeps nobody else waiting."`
	ProxyTTL                     int           `yaml:"proxy_ttl" default:"5" min:"1" max:"255" doc:"IMAP proxies a login may pass through, to end loops."`
	DrainTimeout                 time.Duration `yaml:"drain_timeout" was:"drain" default:"30s" min:"0s" max:"24h" doc:"How long sessions may go on after SIGTERM. Quiet ones are ended one after the other in this time. Whoever stops the gateway must wait for longer: see OPERATIONS.md, Restart and replace."`
	MaxUpstreamConnectsPerSecond int           `yaml:"max_upstream_connects_per_second" was:"max_upstream_rate" default:"0" min:"0" max:"1000000" doc:"New connections to one backend in a second, of all users together; more wait, within the time of their login. 0: as they come."`
	MaxPasswordHashes            int           `yaml:"max_password_hashes" was:"verifiers" default:"0" min:"0" max:"1024" doc:"Password hashes computed at a time. 0: one for each core."`

	Connections    Connections    `yaml:"connections" doc:"How many connections clients may have. What is full says so: before the login with BYE, behind a right password with NO [LIMIT]. With redis the counts are of all gateways together."`
	Failures       Failures       `yaml:"failures" doc:"What failed logins cost. A wrong password that is only repeated, as a forgotten phone does, is counted once. With redis the counts, delays and bans are of all gateways together."`
	UserQuota      Quota          `yaml:"user_quota" was:"budget" doc:"What the sessions of one user may use together. A user who uses more is slowed down, not cut off."`
	ExemptNetworks []netip.Prefix `yaml:"exempt_networks" was:"exempt" default:"127.0.0.0/8 ::1/128" example:"[127.0.0.0/8, 10.2.0.0/16]" doc:"Networks of which no address is counted, delayed or banned, such as a webmail's, which stands for many people; what bounds a user's sessions and budget holds there too, but failed logins from there are not counted. The client's own address decides, by a PROXY header or a trusted ID where there is one."`
}

// Log is the ordinary log.
type Log struct {
	Level  string `yaml:"level" default:"info" oneof:"debug info warn error" doc:"The least severe lines written."`
	Format string `yaml:"format" default:"json" oneof:"json console" doc:"json for machines, console for people."`
}

// Admin is the HTTP side.
type Admin struct {
	Address   string `yaml:"address" default:"127.0.0.1:9143" form:"admin" doc:"host:port; empty switches it off. Outside loopback a token is required."`
	TokenFile string `yaml:"token_file" file:"secret" doc:"File with the bearer token, at least 16 characters, or set IMAPGATE_ADMIN_TOKEN. Empty: no token, on loopback only."`

	Token identity.Secret `yaml:"-"` // of TokenFile or the environment
}

// ServerConfig is the part tlsconf takes.
func (t TLS) ServerConfig() tlsconf.ServerConfig {
	cfg := tlsconf.ServerConfig{MinVersion: t.MinVersion, Directory: t.CertificateDir, ClientCA: t.ClientCA}
	for _, c := range t.Certificates {
		cfg.Certificates = append(cfg.Certificates, tlsconf.CertFiles{Cert: c.Cert, Key: c.Key})
	}
	return cfg
}
