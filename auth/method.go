package auth

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"go.uber.org/zap"

	"imapgate/internal/identity"
)

// The methods, as the operator names them, and External, which is none of them:
// there the word is a certificate authority's.
const (
	Passthrough = "passthrough"
	File        = "file"
	Redis       = "redis"
	HTTP        = "http"
	OAuth       = "oauth"
	External    = "external"
)

// Sources are where the methods look that keep nothing here. Whoever wires them
// translates what they say into this room's words. One may be nil when its
// method is not asked for.
type Sources struct {
	Redis PasswordLookup
	HTTP  VerifyLogin
	OAuth VerifyToken
}

// PasswordLookup brings the stored hash of a user, with Dovecot's {SCHEME} in
// front or as a bare crypt(3) string. ErrUnknown says that the user has none,
// ErrDenied that whatever password is said will not do.
type PasswordLookup func(ctx context.Context, u identity.User) (identity.Secret, error)

// VerifyLogin puts a login with a password before an authentication server. The error
// is ErrDenied, perhaps in a Wait, or else nobody could say.
type VerifyLogin func(ctx context.Context, l Login) (ServerResponse, error)

// ServerResponse is a server's word that a login is right, and what it wants of us.
type ServerResponse struct {
	BackendAddr netip.AddrPort  // where the user's mail is; not valid: not said
	LoginName   string          // the name to use there; "" is the client's
	Password    identity.Secret // the password to use there; zero is the client's
}

// VerifyToken says whose a token is, and until when. The error is ErrDenied or
// else nobody could say.
type VerifyToken func(ctx context.Context, token identity.Secret) (name string, expires time.Time, err error)

// passwordSource holds stored passwords: passwdFile and lookup.
type passwordSource interface {
	// lookUp is the user's, or ErrUnknown, ErrDenied or ErrUnavailable.
	lookUp(ctx context.Context, u identity.User) (storedHash, error)
	// typicalParams is the kind that most passwords here are of; zero when not known.
	typicalParams() hashParams
}

// method vouches for logins: storedPasswords, backend, asked and verified.
type method interface {
	// canVerify says whether it is to be asked about such a credential.
	canVerify(c credentialType) bool
	// authenticate is the identity of a login, without the method's name, or ErrDenied,
	// ErrUnavailable, or ErrUnknown to have the next method asked.
	authenticate(ctx context.Context, l Login) (Identity, error)
}

// namedMethod is a method as the operator called for it.
type namedMethod struct {
	method
	name string
}

// storedPasswords are those of one source.
type storedPasswords struct {
	passwordSource
	verifier *verifier
}

func (storedPasswords) canVerify(c credentialType) bool { return c == passwordCredential }

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

// passthroughMethod leaves the judgement to it: passthrough.
type passthroughMethod struct{}

func (passthroughMethod) canVerify(credentialType) bool { return true }

func (passthroughMethod) authenticate(_ context.Context, l Login) (Identity, error) {
	if l.User.IsZero() {
		return Identity{}, fmt.Errorf("token says for whom, but only to its verifier: %w", ErrDenied)
	}
	return Identity{user: l.User, password: l.Password, token: l.Token}, nil
}

// authServerMethod is an authentication server. It always decides: that it does not know
// the user and that the password is wrong are one answer.
type authServerMethod struct{ verify VerifyLogin }

func (authServerMethod) canVerify(c credentialType) bool { return c == passwordCredential }

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

// oauthMethod believes a token that was verified here.
type oauthMethod struct {
	verify VerifyToken
	names  identity.Names // Asserted
}

func (oauthMethod) canVerify(c credentialType) bool { return c == tokenCredential }

// authenticate takes the name from the token. A client that names another in the
// message wants to act for somebody else, which no user of a gateway may.
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
		return Identity{}, fmt.Errorf("token is another user's: %w", ErrDenied)
	}
	return Identity{user: user, token: l.Token, expires: expires}, nil
}

// classifyError makes a source's error one of ours: what is no denial is nobody's
// word.
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

// checkMethodOrder says why a method has no use behind those that are there.
func (a *Authenticator) checkMethodOrder(name string) error {
	if slices.ContainsFunc(a.methods, func(m namedMethod) bool { return m.name == name }) {
		return fmt.Errorf("method %q is named twice", name)
	}
	if n := len(a.methods); n > 0 && a.methods[n-1].name == Passthrough {
		return fmt.Errorf("method %q would never be asked: passthrough has to be last", name)
	}
	if (name == File || name == Redis) && slices.ContainsFunc(a.methods, func(m namedMethod) bool { return m.name == HTTP }) {
		return fmt.Errorf("method %q would never be asked: http decides about every password", name)
	}
	return nil
}

// newMethod makes one method.
func (a *Authenticator) newMethod(name string, cfg Config, sources Sources, log *zap.Logger) (method, error) {
	switch name {
	case Passthrough:
		return passthroughMethod{}, nil
	case File:
		f, err := openPasswdFile(cfg.PasswdFile, cfg.Names, log)
		if err != nil {
			return nil, err
		}
		a.file = f
		return storedPasswords{f, a.verifier}, nil
	case Redis:
		if sources.Redis == nil {
			return nil, errors.New("method redis needs Redis")
		}
		return storedPasswords{newLookupSource(sources.Redis), a.verifier}, nil
	case HTTP:
		if sources.HTTP == nil {
			return nil, errors.New("method http needs an authentication server")
		}
		return authServerMethod{sources.HTTP}, nil
	case OAuth:
		if sources.OAuth == nil {
			return nil, errors.New("method oauth needs a provider of tokens")
		}
		return oauthMethod{sources.OAuth, cfg.Names.Strict()}, nil
	}
	return nil, fmt.Errorf("method %q is not one of passthrough, file, redis, http, oauth", name)
}
