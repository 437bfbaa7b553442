package oauth

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"

	"imapgate/internal/identity"
)

var (
	// ErrInvalid is a token that is forged, expired, somebody else's, or no token.
	ErrInvalid = errors.New("token is not valid")
	// ErrUnavailable means that nobody could say whether a token is valid.
	ErrUnavailable = errors.New("token cannot be checked now")
)

const (
	// Leeway is how far the clocks of the provider and of the gateway may differ: a
	// token is accepted for so long behind its end.
	Leeway = 30 * time.Second
	// DefaultClaim names the user, as it does in Dovecot (oauth2 username_attribute).
	DefaultClaim = "email"
)

// Config is one provider. Issuer or IntrospectionURL is needed.
type Config struct {
	Issuer   string   // as in the tokens' iss, to the letter; keys are found by discovery
	Audience []string // one of them must be in aud
	Parties  []string // one of them must be azp (or client_id); none: any
	Claim    string   // whose value is the user's name; "" is DefaultClaim
	Scope    string   // that a token must have; "" is none

	IntrospectionURL string
	ClientID         string // for the introspection; "" does without
	ClientSecret     identity.Secret
	CacheTTL         time.Duration // how long an introspection's yes is believed; 0: not

	TLS func() *tls.Config // for connections that begin now; nil: the system's roots
}

// Subject is whom a token was given to.
type Subject struct {
	Name    string    // the claim's value, not yet canonical
	Expires time.Time // zero: the provider does not say
}

// Verifier checks tokens of one provider.
type Verifier struct {
	// Set once.
	rules rules
	keys  *keyring // nil: tokens are not looked into
	asker *asker   // nil: the provider is not asked
	log   *zap.Logger
}

// New makes a Verifier, and asks nobody anything yet.
func New(cfg Config, log *zap.Logger) (*Verifier, error) {
	if err := cfg.check(); err != nil {
		return nil, fmt.Errorf("oauth: %w", err)
	}
	v := &Verifier{rules: cfg.rules(), log: log}
	web := newTransport(cfg.TLS)
	if cfg.Issuer != "" {
		v.keys = newKeyring(cfg.Issuer, web, log)
	}
	if cfg.IntrospectionURL != "" {
		read := v.rules.subject
		if v.keys != nil {
			read = lifetime // the signed claims have said the rest
		}
		v.asker = newAsker(cfg, web, read, log)
	}
	return v, nil
}

// check refuses a configuration that would let in whoever has any token at all:
// one that the same provider gave to another service is no key to a mailbox.
func (c Config) check() error {
	if c.Issuer == "" && c.IntrospectionURL == "" {
		return errors.New("neither issuer nor introspection_url")
	}
	if err := CheckURL(c.Issuer); c.Issuer != "" && err != nil {
		return fmt.Errorf("issuer %w", err)
	}
	if err := CheckURL(c.IntrospectionURL); c.IntrospectionURL != "" && err != nil {
		return fmt.Errorf("introspection_url %w", err)
	}
	if c.Issuer != "" && len(c.Audience) == 0 {
		return errors.New("issuer needs an audience")
	}
	if len(c.Audience) == 0 && len(c.Parties) == 0 && c.Scope == "" {
		return errors.New("introspection_url needs an audience, an authorized party or a scope")
	}
	if c.CacheTTL < 0 {
		return errors.New("cache_ttl cannot be negative")
	}
	return nil
}

// Verify says whose a token is. The error is ErrInvalid or ErrUnavailable,
// wrapped; its text has nothing of the token. Why a token is refused is logged
// for whoever sets up a provider, because clients are never told.
func (v *Verifier) Verify(ctx context.Context, token identity.Secret) (Subject, error) {
	who, err := v.verify(ctx, token.Reveal())
	if err != nil {
		v.log.Debug("token refused", zap.Error(err))
	}
	return who, err
}

func (v *Verifier) verify(ctx context.Context, raw string) (Subject, error) {
	if raw == "" || len(raw) > identity.MaxToken {
		return Subject{}, invalid("no token has this length")
	}
	if v.keys == nil {
		return v.asker.ask(ctx, raw)
	}
	said, err := v.keys.claims(ctx, raw)
	if err != nil {
		return Subject{}, err
	}
	who, err := v.rules.subject(said, time.Now())
	if err != nil || v.asker == nil {
		return who, err
	}
	live, err := v.asker.ask(ctx, raw)
	if err != nil {
		return Subject{}, err
	}
	if !live.Expires.IsZero() && live.Expires.Before(who.Expires) {
		who.Expires = live.Expires
	}
	return who, nil
}

// Configuration is the address of the provider's discovery document, for
// clients that ask where to get a token; "" without an issuer.
func (v *Verifier) Configuration() string {
	if v.keys == nil {
		return ""
	}
	return wellKnown(v.keys.issuer)
}

// Scope is what a token must have; "" is none.
func (v *Verifier) Scope() string { return v.rules.scope }

func invalid(why string) error { return fmt.Errorf("%w: %s", ErrInvalid, why) }
