package auth

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"time"

	"imapgate/internal/identity"
)

// The closed set of Login.Mechanism. The LOGIN command and the SASL mechanism LOGIN differ, so
// mechanisms are written as in a CAPABILITY response.
const (
	CommandLogin  = "LOGIN"
	SASLPlain     = "AUTH=PLAIN"
	SASLLogin     = "AUTH=LOGIN"
	SASLScram     = "AUTH=SCRAM-SHA-256"
	SASLScramPlus = "AUTH=SCRAM-SHA-256-PLUS"
	SASLExternal  = "AUTH=EXTERNAL"
)

// Client describes the connection of a login, for the methods and mechanisms that need it.
type Client struct {
	Session           string
	Listener          string
	Addr              netip.AddrPort       // the client's, from the PROXY header or a trusted ID if there is one
	Peer              netip.AddrPort       // the TCP peer
	Local             netip.AddrPort       // address that the peer connected to
	ProxyHeader       *ProxyHeader         // nil without a PROXY header
	Attempt           int                  // 1-based, of this connection
	TLS               *tls.ConnectionState // nil in the clear
	ServedCertificate *x509.Certificate    // leaf that the server sent, for tls-server-end-point; nil in the clear
}

// ProxyHeader holds the addresses of a PROXY header: of the client, and of the balancer that it
// connected to.
type ProxyHeader struct{ Client, Local netip.AddrPort }

// Login holds unverified credentials of a client: a name and a password, a token, or the proof
// that a mechanism has checked.
type Login struct {
	User      identity.User // may be zero with a token, which names the user
	Password  identity.Secret
	Token     identity.Secret // a bearer token
	Mechanism string
	Client    *Client
	proof     *proof // nil if a method has to verify the login
}

// proof is the outcome of a mechanism that verifies the client itself. The client has shown
// that it knows a password, or holds a key, without sending it.
type proof struct {
	// Set once.
	user   identity.User
	method string // source of the keys, or External
	err    error  // wraps ErrDenied if the proof is wrong; not yet reported to the client
}

// credentialType is a kind of credential that a method may verify.
type credentialType int

const (
	passwordCredential credentialType = iota
	tokenCredential
)

func (l *Login) credentialType() credentialType {
	if !l.Token.IsZero() {
		return tokenCredential
	}
	return passwordCredential
}

// validate rejects logins that no working client sends. None of its errors depends on whether
// an account exists, so they may be fast.
func (l *Login) validate() error {
	switch {
	case l.proof != nil:
		if l.User.IsZero() || l.User != l.proof.user {
			return identity.ErrName
		}
		return nil
	case l.credentialType() == tokenCredential:
		if len(l.Token.Reveal()) > identity.MaxToken || !isB64Token(l.Token.Reveal()) {
			return errMalformedToken
		}
		return nil
	case l.User.IsZero():
		return identity.ErrName
	}
	return validatePassword(l.Password)
}

// Identity is a verified Login, or, with passthrough, one that the backend will verify. Only
// Authenticate makes one. The User of the zero Identity is zero.
type Identity struct {
	// Set once.
	user        identity.User
	loginName   string
	password    identity.Secret
	token       identity.Secret
	method      string
	backendAddr netip.AddrPort
	expires     time.Time
}

// User returns the canonical name.
func (i Identity) User() identity.User { return i.user }

// LoginName returns the name for the login at the backend if a method has set one other than
// User; "" otherwise.
func (i Identity) LoginName() string { return i.loginName }

// Password returns the password for the login at the backend: the client's, or the one that a
// method has replaced it with. It is zero if the client sent none, with SCRAM, EXTERNAL and
// tokens.
func (i Identity) Password() identity.Secret { return i.password }

// Token returns the client's bearer token; zero if it sent none.
func (i Identity) Token() identity.Secret { return i.token }

// Method returns the method that verified the login.
func (i Identity) Method() string { return i.method }

// BackendAddr returns the backend address that the method http returned; invalid if it returned
// none.
func (i Identity) BackendAddr() netip.AddrPort { return i.backendAddr }

// Expires returns the end of the token's lifetime; zero if unknown.
func (i Identity) Expires() time.Time { return i.expires }

// IsVerified reports whether the gateway has verified the user. If it has not, the backend
// decides, so the backend login must use this very password or token. A login there with other
// credentials, such as a master user's, would accept any client.
func (i Identity) IsVerified() bool { return i.method != "" && i.method != Passthrough }

// String returns the user and the method.
func (i Identity) String() string { return i.user.String() + " by " + i.method }

// Format implements fmt.Formatter. fmt ignores the methods of unexported fields, so without it
// %v would print the password.
func (i Identity) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, i.String()) }

// DelayedDenial is a refusal with a delay: the reply to the client is sent no sooner than Delay
// after its request.
type DelayedDenial struct {
	Delay time.Duration
	Err   error
}

// Error implements error.
func (d *DelayedDenial) Error() string { return fmt.Sprintf("%v, reply after %v", d.Err, d.Delay) }

// Unwrap returns the refusal.
func (d *DelayedDenial) Unwrap() error { return d.Err }

// validatePassword rejects a password that is empty, too long or has control characters. CR, LF
// and NUL could change the meaning of a command sent to a backend. Octets from 128 on are left
// to the verifying method.
func validatePassword(password identity.Secret) error {
	p := password.Reveal()
	if p == "" || len(p) > maxPassword {
		return errors.New("password is empty or too long")
	}
	if hasControl(p) {
		return errors.New("password has control characters")
	}
	return nil
}

func hasControl(s string) bool {
	return strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f })
}
