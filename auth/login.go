package auth

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"time"

	"imapgate/internal/identity"
)

// How a login can arrive: the closed set of Login.Mechanism. The LOGIN command
// and the SASL mechanism LOGIN are two things, so the mechanisms are written
// the way a CAPABILITY response lists them.
const (
	CommandLogin  = "LOGIN"
	SASLPlain     = "AUTH=PLAIN"
	SASLLogin     = "AUTH=LOGIN"
	SASLScram     = "AUTH=SCRAM-SHA-256"
	SASLScramPlus = "AUTH=SCRAM-SHA-256-PLUS"
	SASLExternal  = "AUTH=EXTERNAL"
)

// Client is what is known of the connection a login comes on; for the methods
// and mechanisms that look at it.
type Client struct {
	Session           string
	Listener          string
	Addr              netip.AddrPort       // the client's, by the PROXY header or a trusted ID where there is one
	Peer              netip.AddrPort       // the TCP peer
	Local             netip.AddrPort       // where it connected to
	ProxyHeader       *ProxyHeader         // nil without a PROXY header
	Attempt           int                  // 1-based, of this connection
	TLS               *tls.ConnectionState // nil in the clear
	ServedCertificate *x509.Certificate    // the leaf that was served to it, for tls-server-end-point; nil in the clear
}

// ProxyHeader is what a PROXY header says: who connected to the balancer, and to
// which of its addresses.
type ProxyHeader struct{ Client, Local netip.AddrPort }

// Login is what a client said, before anyone checked it: a name and a password,
// or a token, or nothing but a proof that a mechanism has seen.
type Login struct {
	User      identity.User // with a token it may be nobody: the token says who
	Password  identity.Secret
	Token     identity.Secret // a bearer token
	Mechanism string
	Client    *Client
	proof     *proof // nil: somebody has yet to judge
}

// proof is the outcome of a mechanism that needs nobody's judgement: the client
// has shown that it knows a password, or holds a key, without giving it away.
type proof struct {
	// Set once.
	user   identity.User
	method string // whose word the proof rests on
	err    error  // ErrDenied, wrapped, when the proof is wrong; nobody was told so far
}

// credentialType is what a method can judge.
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

// validate refuses what nobody can have said in earnest. None of its refusals
// tells whether an account exists, so they may be quick.
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

// Identity is a Login that somebody vouches for, or, with passthrough, one that
// the backend is going to decide. Only Authenticate makes one; the zero
// Identity is nobody's and its User is zero.
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

// User is the canonical name.
func (i Identity) User() identity.User { return i.user }

// LoginName is the name for the login at the backend, where a method has given
// another than User; "" otherwise.
func (i Identity) LoginName() string { return i.loginName }

// Password is for the login at the backend: what the client said, or what a
// method has put in its place. It is zero when the client has shown none, with
// SCRAM, EXTERNAL and tokens.
func (i Identity) Password() identity.Secret { return i.password }

// Token is the bearer token that the client brought; zero when it brought none.
func (i Identity) Token() identity.Secret { return i.token }

// Method is the method that decided.
func (i Identity) Method() string { return i.method }

// BackendAddr is where the method http said that the user's mail is; not valid when
// nobody said.
func (i Identity) BackendAddr() netip.AddrPort { return i.backendAddr }

// Expires is when the token ends; zero when nobody knows.
func (i Identity) Expires() time.Time { return i.expires }

// IsVerified says whether somebody has checked who it is. When it is false the
// backend decides, so the backend must be shown this very password or token: a
// login there with any other right (a master user) would let everybody in.
func (i Identity) IsVerified() bool { return i.method != "" && i.method != Passthrough }

// orError is i, or nobody when there is an error.
func (i Identity) orError(err error) (Identity, error) {
	if err != nil {
		return Identity{}, err
	}
	return i, nil
}

// String is the user and the method.
func (i Identity) String() string { return i.user.String() + " by " + i.method }

// Format implements fmt.Formatter: fmt does not ask unexported fields how they
// want to be printed, so without it %v would show the password.
func (i Identity) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, i.String()) }

// DelayedDenial is a refusal that asks for time: the client is to be answered no sooner
// than For after it has spoken.
type DelayedDenial struct {
	Delay time.Duration
	Err   error
}

// Error implements error.
func (w *DelayedDenial) Error() string { return fmt.Sprintf("%v, to be told after %v", w.Err, w.Delay) }

// Unwrap gives the refusal.
func (w *DelayedDenial) Unwrap() error { return w.Err }

// validatePassword refuses what could change the meaning of a command sent on to
// a backend (CR, LF, NUL), every other control, and what is empty or too long. Octets
// from 128 on are for whoever judges the password.
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
