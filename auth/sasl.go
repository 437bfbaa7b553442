package auth

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/emersion/go-sasl"

	"imapgate/internal/identity"
)

// maxMessage bounds one decoded SASL message, as Dovecot does.
const maxMessage = 8 << 10

// Mechanisms are the SASL mechanisms offered, the preferred one first.
func (a *Authenticator) Mechanisms() []string { return []string{sasl.Plain, sasl.Login} }

// Exchange is one SASL exchange with one client. It is a sasl.Server on decoded
// messages; base64, "*" to cancel, limits and deadlines are the front door's.
// An Exchange that has ended, well or badly, is of no further use: the next
// attempt starts a new one and inherits nothing.
type Exchange struct {
	// Set once.
	auth      *Authenticator
	mechanism string // SASLPlain or SASLLogin
	// Owned by the session.
	server sasl.Server // nil once the exchange has ended
	begun  bool        // the client has been heard, or has declined to go first
	login  Login
}

// Start begins an exchange. Mechanism names are not case-sensitive (RFC 9051
// §6.2.2: auth-type is an atom). One that is not offered is not accepted.
func (a *Authenticator) Start(mechanism string) (*Exchange, bool) {
	e := &Exchange{auth: a}
	switch { // not by strings.ToUpper, which makes an I of a dotless i
	case strings.EqualFold(mechanism, sasl.Plain):
		e.mechanism, e.server = SASLPlain, sasl.NewPlainServer(e.plain)
	case strings.EqualFold(mechanism, sasl.Login):
		e.mechanism, e.server = SASLLogin, newLoginServer(e.accept)
	default:
		return nil, false
	}
	return e, true
}

// Mechanism is SASLPlain or SASLLogin.
func (e *Exchange) Mechanism() string { return e.mechanism }

// Format implements fmt.Formatter: fmt would show the password inside.
func (e Exchange) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, e.mechanism+" exchange") }

// Login is what the client said, once Next has returned done and no error;
// before that, and after an error, it is the zero Login, which nobody accepts.
func (e *Exchange) Login() Login { return e.login }

// Next implements sasl.Server. Only in the first call nil differs from empty:
// nil is a client that sent no initial response, empty is one that sent "="
// (RFC 4959 §3). Every error is ErrDenied, wrapped, and ends the exchange.
func (e *Exchange) Next(response []byte) (challenge []byte, done bool, err error) {
	if e.server == nil {
		return nil, false, fmt.Errorf("%s: %w: %w", e.mechanism, ErrDenied, sasl.ErrUnexpectedClientResponse)
	}
	if e.begun && response == nil {
		response = []byte{} // an empty line; go-sasl's PLAIN would ask for ever
	}
	e.begun = true
	if len(response) > maxMessage {
		e.server = nil
		return nil, false, fmt.Errorf("%s: %w: message is longer than %d bytes", e.mechanism, ErrDenied, maxMessage)
	}
	challenge, done, err = e.server.Next(response)
	if err != nil {
		e.server, e.login = nil, Login{}
		return nil, false, fmt.Errorf("%s: %w: %w", e.mechanism, ErrDenied, err)
	}
	if done {
		e.server = nil
	}
	return challenge, done, nil
}

// plain takes the three parts of a PLAIN message (RFC 4616 §2). To act for
// somebody else is a right that no user of a gateway has.
func (e *Exchange) plain(authzid, user, password string) error {
	if err := e.accept(user, password); err != nil {
		return err
	}
	if authzid == "" {
		return nil
	}
	if other, err := e.auth.Canon(authzid); err != nil || other != e.login.User {
		return errors.New("authorization identity is another user")
	}
	return nil
}

// accept checks what a mechanism has learned. go-sasl checks none of it.
func (e *Exchange) accept(user, password string) error {
	secret := identity.NewSecret(password)
	if err := checkPassword(secret); err != nil {
		return err
	}
	// RFC 4616 §2 speaks of UTF-8; the name's alphabet is narrower still.
	if !utf8.ValidString(password) {
		return errors.New("password is not UTF-8")
	}
	name, err := e.auth.Canon(user)
	if err != nil {
		return err
	}
	e.login = Login{User: name, Password: secret, Mechanism: e.mechanism}
	return nil
}

// loginServer is the mechanism LOGIN, which go-sasl has for clients only. It
// was never standardised (draft-murchison-sasl-login); clients expect these
// challenges to the letter, and some send the name as an initial response.
type loginServer struct {
	// Set once.
	accept func(user, password string) error
	// Owned by the session.
	step func(response []byte) (challenge []byte, done bool, err error)
}

func newLoginServer(accept func(user, password string) error) *loginServer {
	s := &loginServer{accept: accept}
	s.step = s.user
	return s
}

// Next implements sasl.Server.
func (s *loginServer) Next(response []byte) ([]byte, bool, error) { return s.step(response) }

// user asks for the name until it is there, then for the password.
func (s *loginServer) user(response []byte) ([]byte, bool, error) {
	if response == nil {
		return []byte("Username:"), false, nil
	}
	user := string(response)
	s.step = func(response []byte) ([]byte, bool, error) {
		err := s.accept(user, string(response))
		return nil, err == nil, err
	}
	return []byte("Password:"), false, nil
}
