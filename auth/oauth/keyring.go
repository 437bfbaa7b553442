package oauth

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/go-jose/go-jose/v4"
	"go.uber.org/zap"
)

const (
	// freshTTL is the age at which keys are fetched again, so that a key that the provider has
	// withdrawn does not stay valid.
	freshTTL = 15 * time.Minute
	// staleTTL is the age up to which keys are used while the provider is unavailable.
	staleTTL = 24 * time.Hour
	// unknownKeyInterval is the least time between two fetches for an unknown key: any client
	// can make up a key ID.
	unknownKeyInterval = 10 * time.Second
	// retryInterval is the least time between two fetches after the first has failed. If the
	// keys are still usable, it is staleRetryInterval, because one login waits for each fetch.
	retryInterval      = time.Second
	staleRetryInterval = time.Minute
	// maxKeys bounds the stored keys, and the cost of a token without a key ID.
	maxKeys = 64
)

// algorithms lists the accepted signature algorithms. It excludes none, and HS256 and its
// relatives, for which a public key would be the secret.
var algorithms = []string{
	oidc.RS256, oidc.RS384, oidc.RS512, oidc.PS256, oidc.PS384, oidc.PS512,
	oidc.ES256, oidc.ES384, oidc.ES512, oidc.EdDSA,
}

// keyring holds the provider's public keys. go-oidc's own key set keeps a key for as long as
// tokens signed with it arrive. It sends a request for every made-up key ID, and its errors do
// not distinguish an invalid token from an unavailable provider.
type keyring struct {
	// Set once.
	issuer      string
	client      *http.Client
	log         *zap.Logger
	refreshLock chan struct{} // held by the goroutine that fetches; capacity 1

	// Guarded by mu.
	mu       sync.Mutex
	set      *keySet   // nil: never fetched
	failedAt time.Time // time of the last fetch if it failed; zero otherwise
	lastErr  error
}

// keySet holds the keys of one fetch. It never changes.
type keySet struct {
	keys      []jose.JSONWebKey // at most maxKeys
	fetchedAt time.Time
}

func newKeyring(issuer string, transport boundedTransport, log *zap.Logger) *keyring {
	return &keyring{
		issuer: issuer, log: log, refreshLock: make(chan struct{}, 1),
		client: &http.Client{Transport: transport, CheckRedirect: redirectToSameHost, Timeout: requestTimeout},
	}
}

// verifyClaims returns the claims of a token that the provider has signed.
func (k *keyring) verifyClaims(ctx context.Context, token string) (claims, error) {
	adapter := &oidcKeySet{keyring: k}
	verifier := oidc.NewVerifier(k.issuer, adapter, &oidc.Config{
		SupportedSigningAlgs: algorithms,
		SkipClientIDCheck:    true, // claimRules allows several
		Now:                  func() time.Time { return time.Now().Add(-Leeway) },
	})
	idToken, err := verifier.Verify(ctx, token)
	switch {
	case adapter.err != nil:
		return nil, adapter.err
	case err != nil: // go-oidc's text quotes the claims
		return nil, invalidToken("not a JWT of this issuer, or expired")
	}
	var c claims
	if err := idToken.Claims(&c); err != nil {
		return nil, invalidToken("claims are not a JSON object")
	}
	return c, nil
}

// oidcKeySet adapts the keyring for one token. It stores the error, because go-oidc keeps only
// its text, which does not distinguish an invalid token from an unavailable provider.
type oidcKeySet struct {
	// Set once.
	keyring *keyring
	// Owned by verifyClaims.
	err error
}

// VerifySignature implements oidc.KeySet.
func (s *oidcKeySet) VerifySignature(ctx context.Context, token string) ([]byte, error) {
	jws, err := jose.ParseSignedCompact(token, joseAlgorithms())
	if err != nil || len(jws.Signatures) != 1 {
		s.err = invalidToken("not a JWT with one signature")
		return nil, s.err
	}
	if !isAccessTokenType(jws.Signatures[0].Protected.ExtraHeaders[jose.HeaderType]) {
		s.err = invalidToken("a JWT for another purpose")
		return nil, s.err
	}
	var payload []byte
	payload, s.err = s.keyring.verifySignature(ctx, jws)
	return payload, s.err
}

func joseAlgorithms() []jose.SignatureAlgorithm {
	all := make([]jose.SignatureAlgorithm, len(algorithms))
	for i, a := range algorithms {
		all[i] = jose.SignatureAlgorithm(a)
	}
	return all
}

// isAccessTokenType reports whether typ is absent or that of an access token. Other JWTs that a
// provider signs (logout+jwt, dpop+jwt, secevent+jwt) must not be accepted (RFC 8725 §3.11).
func isAccessTokenType(typ any) bool {
	name, ok := typ.(string)
	name = strings.TrimPrefix(strings.ToLower(name), "application/")
	return typ == nil || ok && (name == "jwt" || name == "at+jwt")
}

// verifySignature returns the payload of a token signed with one of the keys. It fetches the
// keys if they are old, or if none matches, because the provider may have a new one.
func (k *keyring) verifySignature(ctx context.Context, jws *jose.JSONWebSignature) ([]byte, error) {
	set, due := k.current()
	payload, ok := set.verify(jws)
	if ok && !due {
		return payload, nil
	}
	if !ok && set != nil && time.Since(set.fetchedAt) < unknownKeyInterval {
		return nil, invalidToken("not signed with a key of the provider")
	}
	newer, err := k.refresh(ctx, set)
	switch {
	case err != nil && ok && time.Since(set.fetchedAt) < staleTTL:
		return payload, nil
	case err != nil:
		return nil, err
	}
	if payload, ok = newer.verify(jws); !ok {
		return nil, invalidToken("not signed with a key of the provider")
	}
	return payload, nil
}

// current returns the last key set and whether a fetch is due. It is due if the keys are old,
// no fetch is in progress, and the last one has not just failed.
func (k *keyring) current() (set *keySet, due bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.set == nil {
		return nil, true
	}
	age := time.Since(k.set.fetchedAt)
	return k.set, age >= staleTTL || age >= freshTTL && len(k.refreshLock) == 0 && time.Since(k.failedAt) >= staleRetryInterval
}

// refresh fetches the keys, unless they have been fetched since old, or a fetch has just
// failed. A concurrent caller waits for the one that fetches.
func (k *keyring) refresh(ctx context.Context, old *keySet) (*keySet, error) {
	select {
	case k.refreshLock <- struct{}{}:
		defer func() { <-k.refreshLock }()
	case <-ctx.Done():
		return nil, unavailable(ctx, context.Cause(ctx))
	}
	k.mu.Lock()
	set, failedAt, lastErr := k.set, k.failedAt, k.lastErr
	k.mu.Unlock()
	if set != old {
		return set, nil
	}
	if time.Since(failedAt) < retryInterval {
		return nil, lastErr
	}
	keys, err := k.fetch(ctx)
	if err != nil && ctx.Err() != nil { // a caller that gave up says nothing about the provider
		return nil, err
	}
	return k.store(keys, err)
}

// store records the outcome of a fetch.
func (k *keyring) store(keys []jose.JSONWebKey, err error) (*keySet, error) {
	now := time.Now()
	k.mu.Lock()
	wasFailing := !k.failedAt.IsZero()
	k.failedAt, k.lastErr = time.Time{}, nil
	if err != nil {
		k.failedAt, k.lastErr = now, err
	} else {
		k.set = &keySet{keys: keys, fetchedAt: now}
	}
	set := k.set
	k.mu.Unlock()
	switch {
	case err != nil && !wasFailing:
		k.log.Warn("keys of the token issuer cannot be read", zap.String("issuer", k.issuer), zap.Error(err))
	case err == nil && wasFailing:
		k.log.Info("keys of the token issuer are read again", zap.String("issuer", k.issuer), zap.Int("keys", len(keys)))
	}
	return set, err
}

// fetch requests the discovery document, which go-oidc compares with the issuer, and the keys
// that the document names.
func (k *keyring) fetch(ctx context.Context) ([]jose.JSONWebKey, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	provider, err := oidc.NewProvider(oidc.ClientContext(ctx, k.client), k.issuer)
	if err != nil {
		return nil, fmt.Errorf("discovery: %w", unavailable(ctx, err))
	}
	var document struct {
		Keys string `json:"jwks_uri"`
	}
	if err := provider.Claims(&document); err != nil {
		return nil, fmt.Errorf("discovery: %w", unavailable(ctx, err))
	}
	if err := CheckURL(document.Keys); err != nil {
		return nil, fmt.Errorf("%w: jwks_uri %w", ErrUnavailable, err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, document.Keys, nil)
	if err != nil {
		return nil, unavailable(ctx, err)
	}
	var published struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := doJSON(k.client, req, &published, maxDocument); err != nil {
		return nil, fmt.Errorf("keys: %w", err)
	}
	return parseSigningKeys(published.Keys)
}

// parseSigningKeys returns the keys that may sign. A key of an unknown type is skipped (RFC
// 7517 §5).
func parseSigningKeys(published []json.RawMessage) ([]jose.JSONWebKey, error) {
	var keys []jose.JSONWebKey
	for _, text := range published {
		var key jose.JSONWebKey
		if json.Unmarshal(text, &key) != nil || !key.IsPublic() || key.Use != "" && key.Use != "sig" {
			continue
		}
		if keys = append(keys, key); len(keys) == maxKeys {
			break
		}
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("%w: the provider publishes no signing key", ErrUnavailable)
	}
	return keys, nil
}

// verify returns the payload if one of the keys has signed it. A key ID is only compared; it is
// never used as a path.
func (s *keySet) verify(jws *jose.JSONWebSignature) (payload []byte, ok bool) {
	if s == nil {
		return nil, false
	}
	head := jws.Signatures[0].Protected
	i := slices.IndexFunc(s.keys, func(key jose.JSONWebKey) bool {
		if head.KeyID != "" && key.KeyID != head.KeyID || key.Algorithm != "" && key.Algorithm != head.Algorithm {
			return false
		}
		text, err := jws.Verify(key)
		payload = text
		return err == nil
	})
	return payload, i >= 0
}
