package auth

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"go.uber.org/zap"

	"imapgate/internal/identity"
)

// The methods in the operator's list, and External. A certificate authority verifies External,
// so it is not a method.
const (
	Passthrough = "passthrough"
	File        = "file"
	Redis       = "redis"
	HTTP        = "http"
	OAuth       = "oauth"
	External    = "external"
)

// Sources are the external services of the methods. The code that connects them translates
// their errors into this package's. A source may be nil if its method is not used.
type Sources struct {
	Redis PasswordLookup
	HTTP  VerifyLogin
	OAuth VerifyToken
}

// PasswordLookup returns the stored hash of a user, with Dovecot's {SCHEME} prefix or as a bare
// crypt(3) string. The error is ErrUnknown if the user has none, and ErrDenied if no password
// may be accepted.
type PasswordLookup func(ctx context.Context, u identity.User) (identity.Secret, error)

// VerifyLogin sends a login with a password to an authentication server. The error is
// ErrDenied, perhaps in a DelayedDenial; any other means that the login could not be verified.
type VerifyLogin func(ctx context.Context, l Login) (ServerResponse, error)

// ServerResponse is the result of an accepted login at an authentication server.
type ServerResponse struct {
	BackendAddr netip.AddrPort  // the user's backend; invalid if the server named none
	LoginName   string          // name for the login there; "" is the client's
	Password    identity.Secret // password for the login there; zero is the client's
}

// VerifyToken returns the user name of a token and the end of its lifetime. The error is
// ErrDenied; any other means that the token could not be verified.
type VerifyToken func(ctx context.Context, token identity.Secret) (name string, expires time.Time, err error)

// passwordSource holds stored passwords: passwdFile and lookupSource.
type passwordSource interface {
	// lookUp returns the user's hash. The error is ErrUnknown, ErrDenied or ErrUnavailable.
	lookUp(ctx context.Context, u identity.User) (storedHash, error)
	// typicalParams returns the parameters of most passwords in the source; zero if unknown.
	typicalParams() hashParams
}

// method verifies logins: storedPasswords, passthroughMethod, authServerMethod and oauthMethod.
type method interface {
	// authenticate returns the identity of a login, without the method's name. The error is
	// ErrDenied, ErrUnavailable, or ErrUnknown to have the next method asked.
	authenticate(ctx context.Context, l Login) (Identity, error)
}

// namedMethod is a method under its name in the configuration.
type namedMethod struct {
	method
	name string
}

// canVerify reports whether the method verifies such a credential.
func (m namedMethod) canVerify(c credentialType) bool {
	return m.name == Passthrough || (m.name == OAuth) == (c == tokenCredential)
}

// storedPasswords verifies passwords against the hashes of one source.
type storedPasswords struct {
	passwordSource
	verifier *verifier
}

func (m storedPasswords) authenticate(ctx context.Context, l Login) (Identity, error) {
	hash, err := m.lookUp(ctx, l.User)
	if err != nil {
		return Identity{}, err
	}
	ok, err := m.verifier.verify(ctx, hash, l.Password)
	if err != nil {
		return Identity{}, err
	}
	if !ok {
		return Identity{}, ErrDenied
	}
	return Identity{user: l.User, password: l.Password}, nil
}

// passthroughMethod leaves the decision to the backend.
type passthroughMethod struct{}

func (passthroughMethod) authenticate(_ context.Context, l Login) (Identity, error) {
	if l.User.IsZero() {
		return Identity{}, fmt.Errorf("the client names no user, and passthrough does not read tokens: %w", ErrDenied)
	}
	return Identity{user: l.User, password: l.Password, token: l.Token}, nil
}

// authServerMethod asks an authentication server. It always decides, because the server gives
// the same response for an unknown user as for a wrong password.
type authServerMethod struct{ verify VerifyLogin }

func (m authServerMethod) authenticate(ctx context.Context, l Login) (Identity, error) {
	resp, err := m.verify(ctx, l)
	if err != nil {
		return Identity{}, classifyError(err)
	}
	id := Identity{user: l.User, loginName: resp.LoginName, password: l.Password, backendAddr: resp.BackendAddr}
	if !resp.Password.IsZero() {
		id.password = resp.Password
	}
	return id, nil
}

// oauthMethod accepts a token that this gateway has verified.
type oauthMethod struct {
	verify VerifyToken
	names  identity.Names // strict
}

// authenticate takes the user from the token. A client that names another user in its message
// wants to act for that user, which no user of a gateway may.
func (m oauthMethod) authenticate(ctx context.Context, l Login) (Identity, error) {
	name, expires, err := m.verify(ctx, l.Token)
	if err != nil {
		return Identity{}, classifyError(err)
	}
	user, err := m.names.Canonicalize(name)
	if err != nil {
		return Identity{}, fmt.Errorf("name in the token: %w: %w", ErrDenied, err)
	}
	if !l.User.IsZero() && l.User != user {
		return Identity{}, fmt.Errorf("token belongs to another user: %w", ErrDenied)
	}
	return Identity{user: user, token: l.Token, expires: expires}, nil
}

// classifyError maps a source's error to ErrDenied or ErrUnavailable.
func classifyError(err error) error {
	if errors.Is(err, ErrDenied) || errors.Is(err, ErrUnavailable) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, err)
}

// addMethod opens one method of the operator's list.
func (a *Authenticator) addMethod(name string, cfg Config, sources Sources, log *zap.Logger) error {
	if err := a.checkMethodOrder(name); err != nil {
		return &SettingError{"methods", err}
	}
	m, err := a.newMethod(name, cfg, sources, log)
	switch {
	case err != nil && name == File:
		return &SettingError{"file.path", err}
	case err != nil:
		return &SettingError{"methods", err}
	}
	a.methods = append(a.methods, namedMethod{m, name})
	return nil
}

// checkMethodOrder returns why a method has no use after those already added, or nil.
func (a *Authenticator) checkMethodOrder(name string) error {
	if a.hasMethod(name) {
		return fmt.Errorf("method %q is named twice", name)
	}
	if n := len(a.methods); n > 0 && a.methods[n-1].name == Passthrough {
		return fmt.Errorf("method %q would never be used: passthrough has to be last", name)
	}
	if (name == File || name == Redis) && a.hasMethod(HTTP) {
		return fmt.Errorf("method %q would never be used: http decides about every password", name)
	}
	return nil
}

// newMethod opens one method.
func (a *Authenticator) newMethod(name string, cfg Config, sources Sources, log *zap.Logger) (method, error) {
	switch name {
	case Passthrough:
		return passthroughMethod{}, nil
	case File:
		f, err := openPasswdFile(cfg.File.Path, cfg.NameRules, log)
		if err != nil {
			return nil, err
		}
		a.file = f
		return storedPasswords{f, a.verifier}, nil
	case Redis:
		if sources.Redis == nil {
			return nil, errors.New("method redis needs Redis")
		}
		return storedPasswords{&lookupSource{lookUpHash: sources.Redis, histogram: histogram{halveAt: lookupHalveAt}}, a.verifier}, nil
	case HTTP:
		if sources.HTTP == nil {
			return nil, errors.New("method http needs an authentication server")
		}
		return authServerMethod{sources.HTTP}, nil
	case OAuth:
		if sources.OAuth == nil {
			return nil, errors.New("method oauth needs a provider of tokens")
		}
		return oauthMethod{sources.OAuth, cfg.NameRules.Strict()}, nil
	}
	return nil, fmt.Errorf("method %q is not one of passthrough, file, redis, http, oauth", name)
}
