// Package upstream is our side of a backend until a user is logged in there:
// connect, TLS, greeting, who the client is, the login. What comes out is a
// *Conn, which only a login makes: holding one is the proof of it.
//
// It does not know who may log in (auth did that), where a user lives (routing)
// or what is said afterwards (the relay). It takes nothing from a backend on
// trust: every byte before the tagged OK of the login is read within a budget,
// nothing of it reaches the client but a sanitised text, nothing said in the
// clear outlives the start of TLS, and no credential is written to a backend
// that has broken the protocol.
//
// A Backend is shared by all sessions. One login is one goroutine's, the
// caller's; none is started here.
package upstream

import (
	"cmp"
	"crypto/tls"
	"net"
	"net/netip"
	"time"

	"imapgate/internal/descriptors"
	"imapgate/internal/identity"
)

// TLSMode says how the connection to a backend is protected.
type TLSMode string

// The TLS modes. With NoTLS alone do credentials travel in the clear.
const (
	ImplicitTLS TLSMode = "implicit"
	StartTLS    TLSMode = "starttls"
	NoTLS       TLSMode = "none"
)

// The ways to log in, the styles of a master login, and the ways to say who the
// client is.
const (
	Passthrough = "passthrough" // with the client's own password or token
	MasterLogin = "master"      // with the gateway's password
	OAuthLogin  = "oauth"       // with the client's token, and nothing else

	AuthzidStyle   = "authzid"   // SASL PLAIN: user NUL master NUL password (RFC 4616)
	SeparatorStyle = "separator" // user*master, as Dovecot's auth_master_user_separator

	ForwardID    = "id"    // Dovecot's x-originating-ip and its kin in ID (RFC 2971)
	ForwardProxy = "proxy" // a PROXY v2 header; ID has no address
	ForwardNone  = "none"  // ID has no address
)

// The defaults of Config.
const (
	DefaultConnectTimeout = 5 * time.Second
	DefaultLoginTimeout   = 30 * time.Second
	DefaultAnswerTimeout  = 20 * time.Second // Dovecot delays the answer to a wrong password by up to 17
	DefaultMaxLogins      = 64
	DefaultTTL            = 5
)

// Config is one backend.
type Config struct {
	Name    string // as routes and logs call it
	Address string // host:port; a name is resolved at every connect
	TLSMode TLSMode
	TLS     func() *tls.Config // for a connection that begins now; shared, so that sessions resume; unused with NoTLS
	// WrapConn makes what TLS runs over of a connection; nil: the connection itself.
	WrapConn func(*net.TCPConn) net.Conn
	// Sockets counts the connections; nil: nobody does.
	Sockets *descriptors.Counter

	Login   string // Passthrough, MasterLogin or OAuthLogin
	Master  Master
	Forward string // ForwardID, ForwardProxy or ForwardNone

	ConnectTimeout time.Duration // of all attempts to connect together
	LoginTimeout   time.Duration // of everything, waiting for a turn included
	AnswerTimeout  time.Duration // the least time for the answer to the credentials, whatever LoginTimeout has left
	MaxLogins      int           // logins at a time; more wait
	LoginRate      int           // new connections in a second; more wait; 0: as they come

	TTL           int    // gateways a login may pass, this one included
	SessionPrefix string // prefix of this gateway's session ids; "" does not look
}

// Master is the account that may log in as any user.
type Master struct {
	User      string
	Password  identity.Secret
	Style     string // AuthzidStyle or SeparatorStyle
	Separator string
}

// Client is who the login is for, as the backend is told.
type Client struct {
	Addr        netip.AddrPort // the client's own
	Local       netip.AddrPort // where it connected to
	Session     string         // our id of the session
	PeerSession string         // x-session-id as a trusted peer said it, "" if none did
	TTL         int            // hops left as a trusted peer said it; 0: not said
	ID          [][2]string    // the client's own ID; it is passed on, bounded
}

// Request is one login.
type Request struct {
	User     identity.User   // whose session it is
	Login    string          // the name to use upstream; "" is User
	Password identity.Secret // the client's; unused by MasterLogin
	Token    identity.Secret // the client's, in place of a password; unused by MasterLogin
	Client   Client
	WaitTime *time.Duration // grows by how long the backend's limits made the login wait; nil: nobody asks
}

// Wait is a login that a limit of its backend held up.
type Wait struct {
	Limit    string // LimitLogins or LimitRate
	TimedOut bool   // its turn would have come too late
}

// What holds logins up: a closed set, as in the audit log.
const (
	LimitLogins = "upstream_logins" // MaxLogins
	LimitRate   = "upstream_rate"   // LoginRate
)

// Hooks are called by a Backend. A nil one is left out.
type Hooks struct {
	// OnConnect is called once at the end of every login that was not refused
	// before it cost anything, with one of the Result constants.
	OnConnect func(result string)
	// OnWait is called for every login that had to wait for its turn, or did not
	// get one.
	OnWait func(Wait)
}

// The results of a login: a closed set, for metrics.
const (
	ResultOK          = "ok"
	ResultDenied      = "denied"      // wrong credentials
	ResultRefused     = "refused"     // NO with another response code
	ResultNotAccepted = "not_taken"   // BAD to the login, or no way to bring a token
	ResultUnreachable = "unreachable" // no connection
	ResultTLS         = "tls"         // handshake, certificate or STARTTLS
	ResultTimeout     = "timeout"
	ResultClosed      = "closed"   // the connection ended, or BYE
	ResultProtocol    = "protocol" // the backend broke the protocol or the budget
	ResultDown        = "down"     // not tried: it has failed for a while
	ResultBusy        = "busy"     // not tried: too many logins at a time
	ResultCanceled    = "canceled" // the client went away
	ResultLoop        = "loop"
)

// withDefaults is the configuration with every zero field filled in.
func (c Config) withDefaults() Config {
	c.TLSMode = cmp.Or(c.TLSMode, ImplicitTLS)
	c.Login = cmp.Or(c.Login, Passthrough)
	c.Forward = cmp.Or(c.Forward, ForwardID)
	c.Master.Style = cmp.Or(c.Master.Style, AuthzidStyle)
	c.Master.Separator = cmp.Or(c.Master.Separator, "*")
	c.ConnectTimeout = cmp.Or(c.ConnectTimeout, DefaultConnectTimeout)
	c.LoginTimeout = cmp.Or(c.LoginTimeout, DefaultLoginTimeout)
	c.AnswerTimeout = cmp.Or(c.AnswerTimeout, DefaultAnswerTimeout)
	c.MaxLogins = cmp.Or(c.MaxLogins, DefaultMaxLogins)
	c.TTL = cmp.Or(c.TTL, DefaultTTL)
	return c
}

// clientTLS is the configuration for a connection that begins now. It raises what was
// given to what is safe, and never lowers anything.
func (c Config) clientTLS() *tls.Config {
	cfg := &tls.Config{}
	if c.TLS != nil {
		cfg = c.TLS().Clone()
	}
	cfg.MinVersion = max(cfg.MinVersion, tls.VersionTLS12)
	cfg.InsecureSkipVerify = false
	if cfg.ServerName == "" {
		cfg.ServerName, _, _ = net.SplitHostPort(c.Address)
	}
	return cfg
}
