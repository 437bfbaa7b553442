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
	maxMessage = 8 << 10
	maxBearer  = 24 << 10
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
	server server // nil once the exchange has ended
	begun  bool   // the client has been heard, or has declined to go first
	login  Login
	tried  Tried
}

// Tried is what a client has shown, right or wrong, whether or not it has the
// form of a login. A client that shows it again has not tried anything new.
type Tried struct {
	Name   string          // as it came; "" when there was none
	Secret identity.Secret // zero with a proof of SCRAM, which differs each time
	// Who it is, for records: the canonical user, or the name as it came where no account
	// can have it. Both are empty where the name may be the password, or contain it.
	User    identity.User
	Claimed string
	Hidden  bool // the name is a message or token in the wrong place, which no record shows
}

// name notes who a client says it is that shows secret, "" with a proof. The error is
// Canon's.
func (t *Tried) name(names identity.Names, raw, secret string) (identity.User, error) {
	user, err := names.Canon(raw)
	if err != nil {
		if !mayBeSecret(raw, secret) {
			t.Claimed = raw
		}
		return identity.User{}, fmt.Errorf("%w: %w", ErrDenied, err)
	}
	if t.Hidden = isMessage(raw); !t.Hidden {
		t.User = user
	}
	return user, nil
}

// server is one side of a mechanism: of go-sasl, or our own.
type server interface {
	next(ctx context.Context, response []byte) (challenge []byte, done bool, err error)
}

// pure is a mechanism that asks nobody.
type pure struct{ sasl.Server }

func (p pure) next(_ context.Context, response []byte) ([]byte, bool, error) { return p.Next(response) }

// Start begins an exchange. A mechanism that is not offered to this client is
// not accepted.
func (a *Authenticator) Start(mechanism string, c *Client) (*Exchange, bool) {
	name, ok := a.offered(mechanism, c)
	if !ok {
		return nil, false
	}
	e := &Exchange{auth: a, mechanism: "AUTH=" + name, client: c}
	switch name {
	case sasl.Plain:
		e.server = pure{sasl.NewPlainServer(e.plain)}
	case sasl.Login:
		e.server = pure{newLoginServer(e.accept)}
	case OAuthBearer:
		e.server = pure{newOAuthBearerServer(e.bearer)}
	case XOAuth2:
		e.server = pure{newXOAuth2Server(e.bearer)}
	case sasl.External:
		e.server = pure{sasl.NewExternalServer(e.external)}
	case scramSHA256, scramSHA256Plus:
		e.server = &scramServer{exchange: e, plus: name == scramSHA256Plus}
	}
	return e, true
}

// Mechanism is as Login.Mechanism.
func (e *Exchange) Mechanism() string { return e.mechanism }

// Format implements fmt.Formatter: fmt would show the password inside.
func (e Exchange) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, e.mechanism+" exchange") }

func (e *Exchange) bringsToken() bool {
	return e.mechanism == SASLOAuthBearer || e.mechanism == SASLXOAuth2
}

// Tried is what the client has shown so far. After an error it is all that is
// left of the exchange.
func (e *Exchange) Tried() Tried { return e.tried }

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
	if e.begun && response == nil {
		response = []byte{} // an empty line; go-sasl's PLAIN would ask for ever
	}
	e.begun = true
	if len(response) > maxMessage && !e.bringsToken() { // whose server has a bound of its own
		e.server, e.tried.Secret = nil, identity.NewSecret(string(response))
		return nil, false, fmt.Errorf("%s: %w: message is longer than %d bytes", e.mechanism, ErrDenied, maxMessage)
	}
	challenge, done, err = e.server.next(ctx, response)
	if err != nil {
		e.server, e.login = nil, Login{}
		if e.tried.Name == "" && e.tried.Secret.IsZero() { // a message without the form of the mechanism
			e.tried.Secret = identity.NewSecret(string(response))
		}
		return nil, false, fmt.Errorf("%s: %w", e.mechanism, denial(err))
	}
	if done {
		e.server = nil
	}
	return challenge, done, nil
}

// denial makes a mechanism's error one of ours: what is not somebody else's
// trouble is the client's fault.
func denial(err error) error {
	if isOurs(err) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrDenied, err)
}

// plain takes the three parts of a PLAIN message (RFC 4616 §2). With another user in
// the first, or one that is none, they may be in the wrong order, and the second the password.
func (e *Exchange) plain(authzid, user, password string) error {
	err := e.accept(user, password)
	other := e.auth.actsFor(e.tried.User, authzid)
	if other != nil {
		e.tried.User, e.tried.Claimed = identity.User{}, ""
	}
	return cmp.Or(err, other)
}

// accept checks what a mechanism has learned. go-sasl checks none of it. RFC 4616 §2
// wants passwords in UTF-8, but one that was set in Latin-1 is right as it is: whoever
// judges it compares octets.
func (e *Exchange) accept(user, password string) error {
	var err error
	e.login = Login{Password: identity.NewSecret(password), Mechanism: e.mechanism, Client: e.client}
	if e.login.User, e.tried, err = e.auth.Named(user, e.login.Password); err != nil {
		return err
	}
	return checkPassword(e.login.Password)
}

// Named is the canonical name of a client that shows a password, and what it has
// tried. The error is ErrDenied. Without a password the name may be the password, and is
// noted as nobody's.
func (a *Authenticator) Named(user string, password identity.Secret) (identity.User, Tried, error) {
	t := Tried{Name: user, Secret: password}
	if password.IsZero() {
		return identity.User{}, t, fmt.Errorf("%w: %w", ErrDenied, checkPassword(password))
	}
	u, err := t.name(a.names, user, password.Reveal())
	return u, t, err
}

// bearer takes a token, and the name the client gives with it, if any; wrong is what is
// wrong with either. A name without a token is not noted: it may be the token.
func (e *Exchange) bearer(user, token string, wrong error) error {
	l := Login{Token: identity.NewSecret(token), Mechanism: e.mechanism, Client: e.client}
	if wrong == nil {
		e.tried = Tried{Name: user, Secret: l.Token}
	}
	if user != "" {
		var err error
		l.User, err = e.tried.name(e.auth.names, user, token)
		if token == "" {
			e.tried.User, e.tried.Claimed = identity.User{}, ""
		}
		if err != nil && !errors.Is(wrong, ErrTooLong) {
			return err
		}
	}
	if wrong == nil {
		e.login = l
	}
	return wrong
}

// actsFor refuses an authorization identity that is somebody else: to act for
// others is a right that no user of a gateway has.
func (a *Authenticator) actsFor(user identity.User, authzid string) error {
	if authzid == "" {
		return nil
	}
	if other, err := a.Canon(authzid); err != nil || other != user {
		return errSomebodyElse
	}
	return nil
}
