package auth

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/emersion/go-sasl"

	"imapgate/internal/identity"
)

// Bounds of one decoded SASL message: Dovecot's, and for mechanisms that bring a token
// what fits the line of a client in base64.
const (
	maxSASLMessage   = 8 << 10
	maxBearerMessage = 24 << 10
)

// Exchange is one SASL exchange with one client, on decoded messages; base64,
// "*" to cancel, limits and deadlines are the front door's. An Exchange that has
// ended, well or badly, is of no further use: the next attempt starts a new one
// and inherits nothing.
type Exchange struct {
	// Set once.
	auth      *Authenticator
	mechanism string // as Login.Mechanism
	client    *Client
	// Owned by the session.
	server    mechanismServer // nil once the exchange has ended
	isStarted bool            // the client has been heard, or has declined to go first
	login     Login
	presented PresentedLogin
}

// PresentedLogin is what a client has shown, right or wrong, whether or not it has the
// form of a login. A client that shows it again has not tried anything new.
type PresentedLogin struct {
	RawName string          // as it came; "" when there was none
	Secret  identity.Secret // zero with a proof of SCRAM, which differs each time
	// Who it is, for records: the canonical user, or the name as it came where no account
	// can have it. Both are empty where the name may be the password, or contain it.
	User         identity.User
	ClaimedName  string
	NameIsSecret bool // the name is a message or token in the wrong place, which no record shows
}

// setName notes who a client says it is that shows secret, "" with a proof. The error is
// Canon's.
func (t *PresentedLogin) setName(names identity.Names, raw, secret string) (identity.User, error) {
	user, err := names.Canonicalize(raw)
	if err != nil {
		if !mayContainSecret(raw, secret) {
			t.ClaimedName = raw
		}
		return identity.User{}, fmt.Errorf("%w: %w", ErrDenied, err)
	}
	if t.NameIsSecret = isSASLMessage(raw); !t.NameIsSecret {
		t.User = user
	}
	return user, nil
}

// mechanismServer is one side of a mechanism: of go-sasl, or our own.
type mechanismServer interface {
	next(ctx context.Context, response []byte) (challenge []byte, done bool, err error)
}

// saslServer is a mechanism that asks nobody.
type saslServer struct{ sasl.Server }

func (p saslServer) next(_ context.Context, response []byte) ([]byte, bool, error) {
	return p.Next(response)
}

// Start begins an exchange. A mechanism that is not offered to this client is
// not accepted.
func (a *Authenticator) Start(mechanism string, c *Client) (*Exchange, bool) {
	name, ok := a.findOffered(mechanism, c)
	if !ok {
		return nil, false
	}
	e := &Exchange{auth: a, mechanism: "AUTH=" + name, client: c}
	switch name {
	case sasl.Plain:
		e.server = saslServer{sasl.NewPlainServer(e.acceptPlain)}
	case sasl.Login:
		e.server = saslServer{newLoginServer(e.acceptPassword)}
	case OAuthBearer:
		e.server = saslServer{newOAuthBearerServer(e.acceptToken)}
	case XOAuth2:
		e.server = saslServer{newXOAuth2Server(e.acceptToken)}
	case sasl.External:
		e.server = saslServer{sasl.NewExternalServer(e.acceptCertificate)}
	case scramSHA256, scramSHA256Plus:
		e.server = &scramServer{exchange: e, isPlus: name == scramSHA256Plus}
	}
	return e, true
}

// Mechanism is as Login.Mechanism.
func (e *Exchange) Mechanism() string { return e.mechanism }

// Format implements fmt.Formatter: fmt would show the password inside.
func (e Exchange) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, e.mechanism+" exchange") }

func (e *Exchange) isBearer() bool {
	return e.mechanism == SASLOAuthBearer || e.mechanism == SASLXOAuth2
}

// PresentedLogin is what the client has shown so far. After an error it is all that is
// left of the exchange.
func (e *Exchange) PresentedLogin() PresentedLogin { return e.presented }

// Login is what the client said, once Next has returned done and no error;
// before that, and after an error, it is the zero Login, which nobody accepts.
func (e *Exchange) Login() Login { return e.login }

// Next takes what the client said. Only in the first call nil differs from
// empty: nil is a client that sent no initial response, empty is one that sent
// "=" (RFC 4959 §3). A challenge together with done is for the client to see
// once its login has been accepted, and not before. Every error is ErrDenied,
// ErrUnavailable or ErrTooLong, wrapped, and ends the exchange.
func (e *Exchange) Next(ctx context.Context, response []byte) (challenge []byte, done bool, err error) {
	if e.server == nil {
		return nil, false, fmt.Errorf("%s: %w: %w", e.mechanism, ErrDenied, sasl.ErrUnexpectedClientResponse)
	}
	if e.isStarted && response == nil {
		response = []byte{} // an empty line; go-sasl's PLAIN would ask for ever
	}
	e.isStarted = true
	if len(response) > maxSASLMessage && !e.isBearer() { // whose server has a bound of its own
		e.server, e.presented.Secret = nil, identity.NewSecret(string(response))
		return nil, false, fmt.Errorf("%s: %w: message is longer than %d bytes", e.mechanism, ErrDenied, maxSASLMessage)
	}
	challenge, done, err = e.server.next(ctx, response)
	if err != nil {
		e.server, e.login = nil, Login{}
		if e.presented.RawName == "" && e.presented.Secret.IsZero() { // a message without the form of the mechanism
			e.presented.Secret = identity.NewSecret(string(response))
		}
		return nil, false, fmt.Errorf("%s: %w", e.mechanism, toAuthError(err))
	}
	if done {
		e.server = nil
	}
	return challenge, done, nil
}

// toAuthError makes a mechanism's error one of ours: what is not somebody else's
// trouble is the client's fault.
func toAuthError(err error) error {
	if isAuthError(err) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrDenied, err)
}

// acceptPlain takes the three parts of a PLAIN message (RFC 4616 §2). With another user in
// the first, or one that is none, they may be in the wrong order, and the second the password.
func (e *Exchange) acceptPlain(authzid, user, password string) error {
	err := e.acceptPassword(user, password)
	authzErr := e.auth.checkAuthzID(e.presented.User, authzid)
	if authzErr != nil {
		e.presented.User, e.presented.ClaimedName = identity.User{}, ""
	}
	return cmp.Or(err, authzErr)
}

// acceptPassword checks what a mechanism has learned. go-sasl checks none of it. RFC 4616 §2
// wants passwords in UTF-8, but one that was set in Latin-1 is right as it is: whoever
// judges it compares octets.
func (e *Exchange) acceptPassword(user, password string) error {
	var err error
	e.login = Login{Password: identity.NewSecret(password), Mechanism: e.mechanism, Client: e.client}
	if e.login.User, e.presented, err = e.auth.ReadPasswordLogin(user, e.login.Password); err != nil {
		return err
	}
	return validatePassword(e.login.Password)
}

// ReadPasswordLogin is the canonical name of a client that shows a password, and what it has
// tried. The error is ErrDenied. Without a password the name may be the password, and is
// noted as nobody's.
func (a *Authenticator) ReadPasswordLogin(user string, password identity.Secret) (identity.User, PresentedLogin, error) {
	t := PresentedLogin{RawName: user, Secret: password}
	if password.IsZero() {
		return identity.User{}, t, fmt.Errorf("%w: %w", ErrDenied, validatePassword(password))
	}
	u, err := t.setName(a.names, user, password.Reveal())
	return u, t, err
}

// acceptToken takes a token, and the name the client gives with it, if any; wrong is what is
// wrong with either. A name without a token is not noted: it may be the token.
func (e *Exchange) acceptToken(user, token string, parseErr error) error {
	l := Login{Token: identity.NewSecret(token), Mechanism: e.mechanism, Client: e.client}
	if parseErr == nil {
		e.presented = PresentedLogin{RawName: user, Secret: l.Token}
	}
	if user != "" {
		var err error
		l.User, err = e.presented.setName(e.auth.names, user, token)
		if token == "" {
			e.presented.User, e.presented.ClaimedName = identity.User{}, ""
		}
		if err != nil && !errors.Is(parseErr, ErrTooLong) {
			return err
		}
	}
	if parseErr == nil {
		e.login = l
	}
	return parseErr
}

// checkAuthzID refuses an authorization identity that is somebody else: to act for
// others is a right that no user of a gateway has.
func (a *Authenticator) checkAuthzID(user identity.User, authzid string) error {
	if authzid == "" {
		return nil
	}
	if other, err := a.Canonicalize(authzid); err != nil || other != user {
		return errAuthzID
	}
	return nil
}
