// Package upstream connects to a backend and logs a user in: connect, TLS, greeting, ID and
// login. The result is a *Conn, which only a login returns: holding one proves it.
//
// The package does not decide who may log in (auth does) or on which backend a user is
// (routing). It does not relay the session. It does not trust backends. Bytes before the
// tagged OK of the login count against a budget. Clients receive only sanitised text of them.
// Data from before STARTTLS is discarded. After a protocol violation no credentials are sent.
//
// All sessions share a Backend. It has addresses (address.go) with a circuit breaker each
// (circuit.go), health checks (check.go) and DNS (resolve.go). A login chooses among them
// (choose.go) and is an attempt at one after the other (attempt.go), each with the dialogue of
// login.go. It runs in the caller's goroutine. Run has one more goroutine for each address.
package upstream

import (
	"crypto/tls"
	"net"
	"time"

	"imapgate/internal/descriptors"
	"imapgate/internal/event"
	"imapgate/internal/identity"
	"imapgate/tlsconf"
)

// Kinds of login, styles of a master login, and ways to forward the client's address.
const (
	Passthrough = "passthrough" // with the client's own password or token
	MasterLogin = "master"      // with the gateway's password
	OAuthLogin  = "oauth"       // with the client's token only

	AuthzidStyle   = "authzid"   // SASL PLAIN: user NUL master NUL password (RFC 4616)
	SeparatorStyle = "separator" // user*master, as Dovecot's auth_master_user_separator

	ForwardID    = "id"    // Dovecot's x-originating-ip and related fields in ID (RFC 2971)
	ForwardProxy = "proxy" // a PROXY v2 header; no address in ID
	ForwardNone  = "none"  // no address in ID
)

// answerTimeout is LoginSettings.AnswerTimeout unless a test sets it: Dovecot delays the answer to a
// wrong password by up to 17 s.
const answerTimeout = 20 * time.Second

// Settings are the settings of one backend.
type Settings struct {
	Address     string            `yaml:"address" form:"backend" example:"mail-east.internal:993" reload:"new" doc:"host:port of the server. Required, unless addresses are given."`
	Addresses   []AddressSettings `yaml:"addresses" doc:"Several addresses, in place of address. All of them must serve the same mailboxes."`
	Placement   event.Placement   `yaml:"placement" default:"sticky" set:"Placement" reload:"new" doc:"With several addresses. sticky: all sessions of a user are at one address, in the whole fleet. spread: each session is where its login went. In both cases a user's name decides where, so that all gateways choose alike."`
	Resolve     time.Duration     `yaml:"resolve" default:"30s" min:"1s" max:"24h" reload:"new" doc:"How often host names and SRV records are looked up again. If DNS does not answer, the last answer stays in use."`
	Health      HealthSettings    `yaml:"health" doc:"Health checks of each address."`
	Breaker     BreakerSettings   `yaml:"breaker" doc:"When failing logins make an address be passed over."`
	SlowStart   time.Duration     `yaml:"slow_start" default:"30s" min:"0s" max:"1h" reload:"new" doc:"With several addresses: one that comes back gets its share of the users gradually, over this time."`
	MaxSessions int               `yaml:"max_sessions" default:"0" min:"0" max:"10000000" reload:"new" doc:"Connections of this gateway to one address, idle ones of the modes reuse and resume included. A full address is passed over. 0: no bound."`
	Maintenance string            `yaml:"maintenance" reload:"live" doc:"A text: new logins are refused with it (NO [UNAVAILABLE]); live sessions go on. Empty: no maintenance."`
	TLS         event.TLSMode     `yaml:"tls" default:"implicit" set:"TLSMode" reload:"new" doc:"How the connection is protected. The certificate is always verified. none: passwords travel in the clear."`
	CA          string            `yaml:"ca" file:"tls" reload:"new" doc:"PEM file of the CAs to trust. Default: the system's."`
	ServerName  string            `yaml:"server_name" form:"label" reload:"new" doc:"The name its certificate must have. Default: the host of the address in use."`

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
	MaxUpstreamLogins            int           `yaml:"max_upstream_logins" default:"64" min:"1" max:"100000" reload:"new" doc:"Concurrent logins at one address of a backend; more of them wait. A login counts for at most one second, so a backend that delays its answer to a wrong password does not delay other logins."`
	ProxyTTL                     int           `yaml:"proxy_ttl" default:"5" min:"1" max:"255" reload:"new" doc:"IMAP proxies that a login may pass through, to end loops."`
	MaxUpstreamConnectsPerSecond int           `yaml:"max_upstream_connects_per_second" was:"max_upstream_rate" default:"0" min:"0" max:"1000000" reload:"new" doc:"New connections to one address of a backend per second, of all users; more of them wait, within the timeout of their login. 0: no bound."`
	// AnswerTimeout is the least time for the answer to the credentials, even beyond
	// UpstreamLoginTimeout; 0: answerTimeout. Only tests set it.
	AnswerTimeout time.Duration `yaml:"-"`
}

// Config is the configuration of one backend.
type Config struct {
	Name string // as in routes and logs
	Settings
	LoginSettings

	TLSConfig func() *tls.Config // for new connections; shared, so that TLS sessions resume; unused with event.NoTLS
	// WrapConn returns the connection to run TLS over; nil: the TCP connection.
	WrapConn func(*net.TCPConn) net.Conn
	// Sockets counts the connections; nil: without a limit.
	Sockets       *descriptors.Counter
	SessionPrefix string // prefix of this gateway's session ids; "": no check
	// Places keeps a user's sessions together; nil: only the user's name decides.
	Places Places
}

// AllHosts returns host:port of all configured addresses, without those of SRV records.
func (s *Settings) AllHosts() (list []string) {
	if s.Address != "" {
		return []string{s.Address}
	}
	for _, a := range s.Addresses {
		if a.Address != "" {
			list = append(list, a.Address)
		}
	}
	return list
}

// AllAddresses returns the configured addresses.
func (c *Config) AllAddresses() []AddressSettings {
	if c.Address != "" {
		return []AddressSettings{{Address: c.Address, Priority: 1, Weight: 1}}
	}
	return c.Addresses
}

// Request is one login.
type Request struct {
	User     identity.User   // user of the session
	Login    string          // login name at the backend; "": User
	Password identity.Secret // the client's; unused by MasterLogin
	Token    identity.Secret // the client's, in place of a password; unused by MasterLogin
	Client   Client
	WaitTime *time.Duration // incremented by the wait for the backend's limits; may be nil
	// HasSession means that the connection is for a session that exists. Neither maintenance nor
	// a drain prevents it.
	HasSession bool
}

// Wait is a login that was delayed or refused by a limit of its backend.
type Wait struct {
	Limit    event.Limit // LimitUpstreamLogins or LimitUpstreamRate
	TimedOut bool        // the wait would have exceeded the deadline
}

// Hooks are callbacks of a Backend. A nil one is not called.
type Hooks struct {
	// OnConnect is called at the end of every login, except those refused early at no cost.
	OnConnect func(event.ConnectResult)
	// OnWait is called for every login that a limit delayed or refused.
	OnWait func(Wait)
	// OnState is called when the state of an address has changed, and why.
	OnState func(address string, old, now event.AddressState, why string)
}

// clientTLS returns the TLS configuration for a new connection to a host. It raises the given
// one to safe minimums.
func (c *Config) clientTLS(host string) *tls.Config {
	cfg := &tls.Config{}
	if c.TLSConfig != nil {
		cfg = c.TLSConfig().Clone()
	}
	cfg.MinVersion = max(cfg.MinVersion, tls.VersionTLS12)
	cfg.InsecureSkipVerify = false
	if cfg.ServerName == "" {
		cfg.ServerName = host
	}
	return cfg
}
