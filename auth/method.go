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
	HTTP  Ask
	OAuth VerifyToken
}

// PasswordLookup brings the stored hash of a user, with Dovecot's {SCHEME} in
// front or as a bare crypt(3) string. ErrUnknown says that the user has none,
// ErrDenied that whatever password is said will not do.
type PasswordLookup func(ctx context.Context, u identity.User) (identity.Secret, error)

// Ask puts a login with a password before an authentication server. The error
// is ErrDenied, perhaps in a Wait, or else nobody could say.
type Ask func(ctx context.Context, l Login) (Answer, error)

// Answer is a server's word that a login is right, and what it wants of us.
type Answer struct {
	Server   netip.AddrPort  // where the user's mail is; not valid: not said
	User     string          // the name to use there; "" is the client's
	Password identity.Secret // the password to use there; zero is the client's
}

// VerifyToken says whose a token is, and until when. The error is ErrDenied or
// else nobody could say.
type VerifyToken func(ctx context.Context, token identity.Secret) (name string, expires time.Time, err error)

// source holds stored passwords: passwdFile and lookup.
type source interface {
	// password is the user's, or ErrUnknown, ErrDenied or ErrUnavailable.
	password(ctx context.Context, u identity.User) (stored, error)
	// typical is the kind that most passwords here are of; zero when not known.
	typical() kind
}

// method vouches for logins: storedPasswords, backend, asked and verified.
type method interface {
	// judges says whether it is to be asked about such a credential.
	judges(c credential) bool
	// vouch is the identity of a login, without the method's name, or ErrDenied,
	// ErrUnavailable, or ErrUnknown to have the next method asked.
	vouch(ctx context.Context, l Login) (Identity, error)
}

// named is a method as the operator called for it.
type named struct {
	method
	name string
}

// storedPasswords are those of one source.
type storedPasswords struct {
	source
	verifier *verifier
}

func (storedPasswords) judges(c credential) bool { return c == password }

func (m storedPasswords) vouch(ctx context.Context, l Login) (Identity, error) {
	hash, err := m.password(ctx, l.User)
	if err != nil {
		return Identity{}, err
	}
	right, err := m.verifier.verify(ctx, hash, l.Password)
	if err != nil {
		return Identity{}, err
	}
	if !right {
		return Identity{}, ErrDenied
	}
	return Identity{user: l.User, password: l.Password}, nil
}

// backend leaves the judgement to it: passthrough.
type backend struct{}

func (backend) judges(credential) bool { return true }

func (backend) vouch(_ context.Context, l Login) (Identity, error) {
	if l.User.IsZero() {
		return Identity{}, fmt.Errorf("token says for whom, but only to its verifier: %w", ErrDenied)
	}
	return Identity{user: l.User, password: l.Password, token: l.Token}, nil
}

// asked is an authentication server. It always decides: that it does not know
// the user and that the password is wrong are one answer.
type asked struct{ ask Ask }

func (asked) judges(c credential) bool { return c == password }

func (m asked) vouch(ctx context.Context, l Login) (Identity, error) {
	answer, err := m.ask(ctx, l)
	if err != nil {
		return Identity{}, verdict(err)
	}
	id := Identity{user: l.User, login: answer.User, password: l.Password, placed: answer.Server}
	if !answer.Password.IsZero() {
		id.password = answer.Password
	}
	return id, nil
}

// verified believes a token that was verified here.
type verified struct {
	verify VerifyToken
	names  identity.Names // Asserted
}

func (verified) judges(c credential) bool { return c == token }

// vouch takes the name from the token. A client that names another in the
// message wants to act for somebody else, which no user of a gateway may.
func (m verified) vouch(ctx context.Context, l Login) (Identity, error) {
	name, expires, err := m.verify(ctx, l.Token)
	if err != nil {
		return Identity{}, verdict(err)
	}
	user, err := m.names.Canon(name)
	if err != nil {
		return Identity{}, fmt.Errorf("name in the token: %w: %w", ErrDenied, err)
	}
	if !l.User.IsZero() && l.User != user {
		return Identity{}, fmt.Errorf("token is another user's: %w", ErrDenied)
	}
	return Identity{user: user, token: l.Token, expires: expires}, nil
}

// verdict makes a source's error one of ours: what is no denial is nobody's
// word.
func verdict(err error) error {
	if errors.Is(err, ErrDenied) || errors.Is(err, ErrUnavailable) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, err)
}

// add opens one method of the operator's list.
func (a *Authenticator) add(name string, cfg Config, from Sources, log *zap.Logger) error {
	if err := a.mayFollow(name); err != nil {
		return &SettingError{"methods", err}
	}
	made, err := a.open(name, cfg, from, log)
	switch {
	case err != nil && name == File:
		return &SettingError{"file.path", err}
	case err != nil:
		return &SettingError{"methods", err}
	}
	a.methods = append(a.methods, named{made, name})
	return nil
}

// mayFollow says why a method has no use behind those that are there.
func (a *Authenticator) mayFollow(name string) error {
	if slices.ContainsFunc(a.methods, func(m named) bool { return m.name == name }) {
		return fmt.Errorf("method %q is named twice", name)
	}
	if n := len(a.methods); n > 0 && a.methods[n-1].name == Passthrough {
		return fmt.Errorf("method %q would never be asked: passthrough has to be last", name)
	}
	if (name == File || name == Redis) && slices.ContainsFunc(a.methods, func(m named) bool { return m.name == HTTP }) {
		return fmt.Errorf("method %q would never be asked: http decides about every password", name)
	}
	return nil
}

// open makes one method.
func (a *Authenticator) open(name string, cfg Config, from Sources, log *zap.Logger) (method, error) {
	switch name {
	case Passthrough:
		return backend{}, nil
	case File:
		f, err := openPasswdFile(cfg.File, cfg.Names, log)
		if err != nil {
			return nil, err
		}
		a.file = f
		return storedPasswords{f, a.verifier}, nil
	case Redis:
		if from.Redis == nil {
			return nil, errors.New("method redis needs Redis")
		}
		return storedPasswords{newLookup(from.Redis), a.verifier}, nil
	case HTTP:
		if from.HTTP == nil {
			return nil, errors.New("method http needs an authentication server")
		}
		return asked{from.HTTP}, nil
	case OAuth:
		if from.OAuth == nil {
			return nil, errors.New("method oauth needs a provider of tokens")
		}
		return verified{from.OAuth, cfg.Names.Asserted()}, nil
	}
	return nil, fmt.Errorf("method %q is not one of passthrough, file, redis, http, oauth", name)
}
