// Package upstream connects to a backend and logs a user in: connect, TLS, greeting, ID and
// login. The result is a *Conn, which only a login returns: holding one proves it.
//
// The package does not decide who may log in (auth does) or on which backend a user is
// (routing). It does not relay the session. It does not trust backends. Bytes before the
// tagged OK of the login count against a budget. Clients receive only sanitised text of them.
// Data from before STARTTLS is discarded. After a protocol violation no credentials are sent.
//
// All sessions share a Backend. A login runs in the caller's goroutine; the package starts
// none.
package upstream

import (
	"crypto/tls"
	"net"
	"net/netip"
	"time"

	"imapgate/internal/descriptors"
	"imapgate/internal/event"
	"imapgate/internal/identity"
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
}

// Client is the client of a login, as reported to the backend.
type Client struct {
	Addr        netip.AddrPort // the client's address
	Local       netip.AddrPort // local address of its connection
	Session     string         // this gateway's session id
	PeerSession string         // x-session-id of a trusted peer; "" without one
	TTL         int            // hops left according to a trusted peer; 0: unknown
	ID          [][2]string    // the client's ID, which is forwarded within bounds
}

// Request is one login.
type Request struct {
	User     identity.User   // user of the session
	Login    string          // login name at the backend; "": User
	Password identity.Secret // the client's; unused by MasterLogin
	Token    identity.Secret // the client's, in place of a password; unused by MasterLogin
	Client   Client
	WaitTime *time.Duration // incremented by the wait for the backend's limits; may be nil
}

// Wait is a login that was delayed or refused by a limit of its backend.
type Wait struct {
	Limit    event.Limit // LimitUpstreamLogins or LimitUpstreamRate
	TimedOut bool        // the wait would have exceeded the deadline
}

// Hooks are callbacks of a Backend. A nil one is not called.
type Hooks struct {
	// OnConnect is called with one of the Result constants at the end of every login, except
	// those refused early at no cost.
	OnConnect func(event.ConnectResult)
	// OnWait is called for every login that a limit delayed or refused.
	OnWait func(Wait)
}

// clientTLS returns the TLS configuration for a new connection. It raises the given one to
// safe minimums.
func (c Config) clientTLS() *tls.Config {
	cfg := &tls.Config{}
	if c.TLSConfig != nil {
		cfg = c.TLSConfig().Clone()
	}
	cfg.MinVersion = max(cfg.MinVersion, tls.VersionTLS12)
	cfg.InsecureSkipVerify = false
	if cfg.ServerName == "" {
		cfg.ServerName, _, _ = net.SplitHostPort(c.Address)
	}
	return cfg
}
