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
	Issuer            string   // as in the tokens' iss, to the letter; keys are found by discovery
	Audience          []string // one of them must be in aud
	AuthorizedParties []string // one of them must be azp (or client_id); none: any
	UsernameClaim     string   // whose value is the user's name; "" is DefaultClaim
	Scope             string   // that a token must have; "" is none

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
	rules        claimRules
	keyring      *keyring      // nil: tokens are not looked into
	introspector *introspector // nil: the provider is not asked
	log          *zap.Logger
}

// New makes a Verifier, and asks nobody anything yet.
func New(cfg Config, log *zap.Logger) (*Verifier, error) {
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("oauth: %w", err)
	}
	v := &Verifier{rules: cfg.newRules(), log: log}
	transport := newTransport(cfg.TLS)
	if cfg.Issuer != "" {
		v.keyring = newKeyring(cfg.Issuer, transport, log)
	}
	if cfg.IntrospectionURL != "" {
		checkClaims := v.rules.checkClaims
		if v.keyring != nil {
			checkClaims = checkLifetime // the signed claims have said the rest
		}
		v.introspector = newIntrospector(cfg, transport, checkClaims, log)
	}
	return v, nil
}

// validate refuses a configuration that would let in whoever has any token at all:
// one that the same provider gave to another service is no key to a mailbox.
func (c Config) validate() error {
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
	if len(c.Audience) == 0 && len(c.AuthorizedParties) == 0 && c.Scope == "" {
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
	subject, err := v.verify(ctx, token.Reveal())
	if err != nil {
		v.log.Debug("token refused", zap.Error(err))
	}
	return subject, err
}

func (v *Verifier) verify(ctx context.Context, raw string) (Subject, error) {
	if raw == "" || len(raw) > identity.MaxToken {
		return Subject{}, invalidToken("no token has this length")
	}
	if v.keyring == nil {
		return v.introspector.verify(ctx, raw)
	}
	c, err := v.keyring.verifyClaims(ctx, raw)
	if err != nil {
		return Subject{}, err
	}
	subject, err := v.rules.checkClaims(c, time.Now())
	if err != nil || v.introspector == nil {
		return subject, err
	}
	introspected, err := v.introspector.verify(ctx, raw)
	if err != nil {
		return Subject{}, err
	}
	if !introspected.Expires.IsZero() && introspected.Expires.Before(subject.Expires) {
		subject.Expires = introspected.Expires
	}
	return subject, nil
}

// DiscoveryURL is the address of the provider's discovery document, for
// clients that ask where to get a token; "" without an issuer.
func (v *Verifier) DiscoveryURL() string {
	if v.keyring == nil {
		return ""
	}
	return discoveryURL(v.keyring.issuer)
}

// Scope is what a token must have; "" is none.
func (v *Verifier) Scope() string { return v.rules.scope }

func invalidToken(reason string) error { return fmt.Errorf("%w: %s", ErrInvalid, reason) }
