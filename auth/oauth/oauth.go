package oauth

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"strings"
	"time"

	"go.uber.org/zap"

	"imapgate/internal/identity"
)

var (
	// ErrInvalid means that the token is forged, expired, issued for another service, or
	// malformed.
	ErrInvalid = errors.New("token is not valid")
	// ErrUnavailable means that the token could not be verified.
	ErrUnavailable = errors.New("token cannot be verified now")
)

// Leeway is how far the clocks of the provider and of the gateway may differ: a token is
// accepted for that long after its end.
const Leeway = 30 * time.Second

// Config is the configuration of a Verifier.
type Config struct {
	Settings
	TLS func() *tls.Config // for new connections; nil: the system's roots
}

// Subject is the user that a token was issued to.
type Subject struct {
	Name    string    // the claim's value, not yet canonical
	Expires time.Time // zero: unknown
}

// Verifier verifies tokens of one provider.
type Verifier struct {
	// Set once.
	settings     Settings
	keyring      *keyring      // nil: signatures are not verified
	introspector *introspector // nil: no introspection
	log          *zap.Logger
}

// New returns a Verifier. It sends no request yet.
func New(cfg Config, log *zap.Logger) (*Verifier, error) {
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("oauth: %w", err)
	}
	v := &Verifier{settings: cfg.Settings, log: log}
	transport := newTransport(cfg.TLS)
	if cfg.Issuer != "" {
		v.keyring = newKeyring(cfg.Issuer, transport, log)
	}
	if cfg.IntrospectionURL != "" {
		v.introspector = newIntrospector(cfg.Settings, transport, log)
	}
	return v, nil
}

// validate refuses a configuration that would accept every token of the provider: a token
// issued for another service must not open a mailbox.
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
	if len(c.Audience) == 0 && len(c.AuthorizedParty) == 0 && c.Scope == "" {
		return errors.New("introspection_url needs an audience, an authorized party or a scope")
	}
	if c.CacheTTL < 0 {
		return errors.New("cache_ttl cannot be negative")
	}
	return nil
}

// Verify returns the subject of a token. The error wraps ErrInvalid or ErrUnavailable, and its
// text contains nothing of the token. The reason for a refusal is logged for operators; clients
// never see it.
func (v *Verifier) Verify(ctx context.Context, token identity.Secret) (Subject, error) {
	subject, err := v.verify(ctx, token.Reveal())
	if err != nil {
		v.log.Debug("token refused", zap.Error(err))
	}
	return subject, err
}

func (v *Verifier) verify(ctx context.Context, raw string) (Subject, error) {
	if raw == "" || len(raw) > identity.MaxToken {
		return Subject{}, invalidToken("invalid length")
	}
	if v.keyring == nil {
		return v.introspector.verify(ctx, raw)
	}
	c, err := v.keyring.verifyClaims(ctx, raw)
	if err != nil {
		return Subject{}, err
	}
	subject, err := v.settings.checkClaims(c, time.Now())
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

// DiscoveryURL returns the URL of the provider's discovery document (OpenID Connect Discovery
// §4), for clients that need a token; "" without an issuer.
func (v *Verifier) DiscoveryURL() string {
	if v.keyring == nil {
		return ""
	}
	return strings.TrimSuffix(v.settings.Issuer, "/") + "/.well-known/openid-configuration"
}

// Scope returns the scope that a token must have; "" means any.
func (v *Verifier) Scope() string { return v.settings.Scope }

func invalidToken(reason string) error { return fmt.Errorf("%w: %s", ErrInvalid, reason) }
