package auth

import (
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/emersion/go-sasl"

	"imapgate/internal/identity"
)

// Bounds of one decoded SASL message: Dovecot's, and for a bearer token what fits one line of a
// client in base64.
const (
	maxSASLMessage   = 8 << 10
	maxBearerMessage = 24 << 10
)

// Exchange is one SASL exchange with one client, on decoded messages. Base64, "*" to cancel,
// limits and deadlines belong to the caller. An Exchange that has ended cannot be reused; the
// next attempt starts a new one with no state of the old.
type Exchange struct {
	// Set once.
	auth      *Authenticator
	mechanism string // as in Login.Mechanism
	client    *Client
	// Owned by the session.
	server    mechanismServer // nil once the exchange has ended
	isStarted bool            // the client has sent a message, or no initial response
	login     Login
	presented PresentedLogin
}

// PresentedLogin is what a client has sent, right or wrong, even if it is not a well-formed
// login. The same one sent again is not a new guess.
type PresentedLogin struct {
	RawName string          // as received; "" if there was none
	Secret  identity.Secret // zero with a SCRAM proof, which differs each time
	// For records: the canonical user, or the name as received if no account can have it. Both
	// are empty if the name may be the password, or contain it.
	User         identity.User
	ClaimedName  string
	NameIsSecret bool // the name is a message or token in the wrong place, which no record may show
}

// setName records the user name that a client sent together with secret; secret is "" with a
// proof. The error wraps ErrDenied and that of Names.Canonicalize.
func (p *PresentedLogin) setName(names identity.Names, raw, secret string) (identity.User, error) {
	user, err := names.Canonicalize(raw)
	if err != nil {
		if !mayContainSecret(raw, secret) {
			p.ClaimedName = raw
		}
		return identity.User{}, fmt.Errorf("%w: %w", ErrDenied, err)
	}
	if p.NameIsSecret = isSASLMessage(raw); !p.NameIsSecret {
		p.User = user
	}
	return user, nil
}

// mechanismServer is the server side of a mechanism. It processes one message of the client.
type mechanismServer func(ctx context.Context, response []byte) (challenge []byte, done bool, err error)

// withoutContext adapts a server that needs no context.
func withoutContext(s sasl.Server) mechanismServer {
	return func(_ context.Context, response []byte) ([]byte, bool, error) { return s.Next(response) }
}

// Start begins an exchange. The second result is false for a mechanism that is not offered to
// this client.
func (a *Authenticator) Start(mechanism string, c *Client) (*Exchange, bool) {
	name, ok := a.findOffered(mechanism, c)
	if !ok {
		return nil, false
	}
	e := &Exchange{auth: a, mechanism: "AUTH=" + name, client: c}
	switch name {
	case sasl.Plain:
		e.server = withoutContext(sasl.NewPlainServer(e.acceptPlain))
	case sasl.Login:
		e.server = withoutContext(&loginServer{accept: e.acceptPassword})
	case OAuthBearer:
		e.server = withoutContext(&bearerServer{parseOAuthBearer, e.acceptToken})
	case XOAuth2:
		e.server = withoutContext(&bearerServer{parseXOAuth2, e.acceptToken})
	case sasl.External:
		e.server = withoutContext(sasl.NewExternalServer(e.acceptCertificate))
	case scramSHA256, scramSHA256Plus:
		e.server = (&scramServer{exchange: e, isPlus: name == scramSHA256Plus}).next
	}
	return e, true
}

// Mechanism returns the mechanism as in Login.Mechanism.
func (e *Exchange) Mechanism() string { return e.mechanism }

// Format implements fmt.Formatter. Without it fmt would print the password inside.
func (e Exchange) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, e.mechanism+" exchange") }

// PresentedLogin returns what the client has sent so far, also after an error.
func (e *Exchange) PresentedLogin() PresentedLogin { return e.presented }

// Login returns the client's login once Next has returned done without an error. Before that,
// and after an error, it is the zero Login, which Authenticate refuses.
func (e *Exchange) Login() Login { return e.login }

// Next processes one message of the client. In the first call nil means no initial response,
// and empty means that the client sent "=" (RFC 4959 §3). In later calls nil and empty are the
// same.
//
// If the result has both a challenge and done, the caller sends the challenge only after the
// login has been accepted. Every error wraps ErrDenied, ErrUnavailable or ErrTooLong and ends
// the exchange.
func (e *Exchange) Next(ctx context.Context, response []byte) (challenge []byte, done bool, err error) {
	if e.server == nil {
		return nil, false, fmt.Errorf("%s: %w: %w", e.mechanism, ErrDenied, sasl.ErrUnexpectedClientResponse)
	}
	if e.isStarted && response == nil {
		response = []byte{} // an empty line; with nil go-sasl's PLAIN would repeat its challenge for ever
	}
	e.isStarted = true
	isBearer := e.mechanism == SASLOAuthBearer || e.mechanism == SASLXOAuth2 // bearerServer has its own bound
	if len(response) > maxSASLMessage && !isBearer {
		e.server, e.presented.Secret = nil, identity.NewSecret(string(response))
		return nil, false, fmt.Errorf("%s: %w: message is longer than %d bytes", e.mechanism, ErrDenied, maxSASLMessage)
	}
	challenge, done, err = e.server(ctx, response)
	if err != nil {
		e.server, e.login = nil, Login{}
		if e.presented.RawName == "" && e.presented.Secret.IsZero() { // a malformed message
			e.presented.Secret = identity.NewSecret(string(response))
		}
		return nil, false, fmt.Errorf("%s: %w", e.mechanism, toAuthError(err))
	}
	if done {
		e.server = nil
	}
	return challenge, done, nil
}

// toAuthError maps an error of a mechanism to one of this package: an unknown one is ErrDenied.
func toAuthError(err error) error {
	if errors.Is(err, ErrDenied) || errors.Is(err, ErrUnavailable) || errors.Is(err, ErrTooLong) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrDenied, err)
}

// loginServer implements the mechanism LOGIN, which go-sasl has for clients only. It was never
// standardised (draft-murchison-sasl-login). Clients expect exactly these challenges, and some
// send the name as an initial response.
type loginServer struct {
	// Set once.
	accept func(user, password string) error
	// Owned by the session.
	user *string // nil until it arrives
}

// Next implements sasl.Server. It requests the name until it arrives, then the password.
func (s *loginServer) Next(response []byte) ([]byte, bool, error) {
	if s.user != nil {
		err := s.accept(*s.user, string(response))
		return nil, err == nil, err
	}
	if response == nil {
		return []byte("Username:"), false, nil
	}
	user := string(response)
	s.user = &user
	return []byte("Password:"), false, nil
}

// acceptPlain takes the three parts of a PLAIN message (RFC 4616 §2). If the authorization
// identity is not the user, the parts may be in the wrong order, and the user name may be the
// password.
func (e *Exchange) acceptPlain(authzid, user, password string) error {
	err := e.acceptPassword(user, password)
	authzErr := e.auth.checkAuthzID(e.presented.User, authzid)
	if authzErr != nil {
		e.presented.User, e.presented.ClaimedName = identity.User{}, ""
	}
	return cmp.Or(err, authzErr)
}

// acceptPassword checks a name and a password, which go-sasl does not. RFC 4616 §2 requires
// UTF-8 passwords, but one that was set in Latin-1 is right as it is: methods compare octets.
func (e *Exchange) acceptPassword(user, password string) error {
	var err error
	e.login = Login{Password: identity.NewSecret(password), Mechanism: e.mechanism, Client: e.client}
	if e.login.User, e.presented, err = e.auth.ReadPasswordLogin(user, e.login.Password); err != nil {
		return err
	}
	return validatePassword(e.login.Password)
}

// ReadPasswordLogin returns the canonical name of a client that sends a password, and the
// PresentedLogin. The error wraps ErrDenied. Without a password the name may be the password,
// so it is not recorded as a name.
func (a *Authenticator) ReadPasswordLogin(user string, password identity.Secret) (identity.User, PresentedLogin, error) {
	p := PresentedLogin{RawName: user, Secret: password}
	if password.IsZero() {
		return identity.User{}, p, fmt.Errorf("%w: %w", ErrDenied, validatePassword(password))
	}
	u, err := p.setName(a.names, user, password.Reveal())
	return u, p, err
}

// acceptToken takes a token, the user name sent with it, if any, and the error of parsing the
// message. A name without a token is not recorded: it may be the token.
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

// checkAuthzID refuses an authorization identity other than user: no user of a gateway may act
// for another.
func (a *Authenticator) checkAuthzID(user identity.User, authzid string) error {
	if authzid == "" {
		return nil
	}
	if other, err := a.Canonicalize(authzid); err != nil || other != user {
		return errAuthzID
	}
	return nil
}

const (
	// minSecretPart is the length in bytes up to which a part of a secret reveals nothing about
	// it.
	minSecretPart = 3
	// minEncodedMessage is the least length in bytes of a name that may be base64.
	minEncodedMessage = 8
	// minJWT is the length in bytes up to which a name is not a JSON Web Token (RFC 7519),
	// which begins with jwtPrefix.
	minJWT    = 24
	jwtPrefix = "eyJ"
)

// mayContainSecret reports whether a name that no account can have contains the secret sent
// with it. It also reports a name that looks like a message or a token in the wrong place.
func mayContainSecret(name, secret string) bool {
	lower, secret := strings.ToLower(name), strings.ToLower(secret)
	if secret != "" && strings.Contains(lower, secret) || len(name) > minSecretPart && strings.Contains(secret, lower) {
		return true
	}
	if looksLikeSecret(lower) || isSASLMessage(name) {
		return true
	}
	text := decodeBase64(name)
	return looksLikeSecret(strings.ToLower(text)) || secret != "" && strings.Contains(strings.ToLower(text), secret)
}

// looksLikeSecret reports whether text in lower case has a separator between a name and a
// password or token. The separators are those of PLAIN, XOAUTH2, OAUTHBEARER, URLs and HTTP
// Basic.
func looksLikeSecret(lower string) bool {
	return strings.ContainsAny(lower, "\x00\x01:") || strings.Contains(lower, "bearer") || strings.Contains(lower, "auth=")
}

// isSASLMessage reports whether a name, even one that an account can have, is a token or the
// base64 of a message that contains a secret.
func isSASLMessage(name string) bool {
	if strings.HasPrefix(name, jwtPrefix) && len(name) > minJWT {
		return true
	}
	message := decodeBase64(name)
	return len(name) >= minEncodedMessage && utf8.ValidString(message) &&
		(strings.Count(message, "\x00") == 2 || strings.Contains(strings.ToLower(message), "auth="))
}

// decodeBase64 decodes name, with or without padding; "" if it is not base64.
func decodeBase64(name string) string {
	text, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(strings.TrimSpace(name), "="))
	if err != nil {
		return ""
	}
	return string(text)
}
