package oauth

import (
	"context"
	"encoding/json"
	"errors"
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
	// freshTTL is how long keys are believed before they are read again, so that
	// one which the provider has withdrawn is not good for ever.
	freshTTL = 15 * time.Minute
	// staleTTL is how long they serve while the provider cannot be read.
	staleTTL = 24 * time.Hour
	// unknownKeyInterval is the least time between two readings for the sake of a key that
	// nobody knows: anybody can make one up.
	unknownKeyInterval = 10 * time.Second
	// retryInterval is the least time between two readings when the first has failed;
	// staleRetryInterval, when the keys still serve: one login waits each time.
	retryInterval      = time.Second
	staleRetryInterval = time.Minute
	// maxKeys bounds the keys that are kept, and what a token without a key's
	// name costs.
	maxKeys = 64
)

// algorithms that a signature may have. Not among them: none, and HS256 and its
// kin, for which a public key would be the secret.
var algorithms = []string{
	oidc.RS256, oidc.RS384, oidc.RS512, oidc.PS256, oidc.PS384, oidc.PS512,
	oidc.ES256, oidc.ES384, oidc.ES512, oidc.EdDSA,
}

// keyring is the provider's public keys. go-oidc's own keeps a key for as long
// as tokens come that it has signed, lets everybody who makes up a key's name
// ask the provider, and cannot say whether a token was wrong or the provider
// away.
type keyring struct {
	// Set once.
	issuer      string
	client      *http.Client
	log         *zap.Logger
	refreshLock chan struct{} // whoever is in it reads, one at a time

	// Guarded by mu.
	mu       sync.Mutex
	set      *keySet   // nil: the provider was never heard
	failedAt time.Time // when the last reading failed; zero when it did not
	lastErr  error
}

// keySet is the keys of one reading. It never changes.
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

// verifyClaims are those of a token that the provider has signed.
func (k *keyring) verifyClaims(ctx context.Context, token string) (claims, error) {
	adapter := &oidcKeySet{keyring: k}
	verifier := oidc.NewVerifier(k.issuer, adapter, &oidc.Config{
		SupportedSigningAlgs: algorithms,
		SkipClientIDCheck:    true, // there may be several: rules
		Now:                  func() time.Time { return time.Now().Add(-Leeway) },
	})
	idToken, err := verifier.Verify(ctx, token)
	switch {
	case adapter.err != nil:
		return nil, adapter.err
	case err != nil: // the text of go-oidc would repeat the claims
		return nil, invalidToken("not a JWT of this issuer, or expired")
	}
	var c claims
	if err := idToken.Claims(&c); err != nil {
		return nil, invalidToken("claims are no object")
	}
	return c, nil
}

// oidcKeySet is one token before the keyring. It keeps the error that go-oidc makes
// into text, and with which it could not be told who is to blame.
type oidcKeySet struct {
	// Set once.
	keyring *keyring
	// Owned by the caller of claims.
	err error
}

// VerifySignature implements oidc.KeySet.
func (t *oidcKeySet) VerifySignature(ctx context.Context, token string) ([]byte, error) {
	jws, err := jose.ParseSignedCompact(token, joseAlgorithms())
	if err != nil || len(jws.Signatures) != 1 {
		t.err = invalidToken("not a JWT with one signature")
		return nil, t.err
	}
	if !isAccessTokenType(jws.Signatures[0].Protected.ExtraHeaders[jose.HeaderType]) {
		t.err = invalidToken("a JWT for another purpose")
		return nil, t.err
	}
	var payload []byte
	payload, t.err = t.keyring.verifySignature(ctx, jws)
	return payload, t.err
}

func joseAlgorithms() []jose.SignatureAlgorithm {
	all := make([]jose.SignatureAlgorithm, len(algorithms))
	for i, a := range algorithms {
		all[i] = jose.SignatureAlgorithm(a)
	}
	return all
}

// isAccessTokenType says whether typ is that of a token that gives access, or of any:
// what else a provider signs (logout+jwt, dpop+jwt, secevent+jwt) must not be
// taken for one (RFC 8725 §3.11).
func isAccessTokenType(typ any) bool {
	name, ok := typ.(string)
	name = strings.TrimPrefix(strings.ToLower(name), "application/")
	return typ == nil || ok && (name == "jwt" || name == "at+jwt")
}

// verifySignature is the payload of a token that one of the keys has signed. Keys are read
// when they have grown old, or when none fits: the provider may have a new one.
func (k *keyring) verifySignature(ctx context.Context, jws *jose.JSONWebSignature) ([]byte, error) {
	set, due := k.current()
	payload, ok := set.verify(jws)
	if ok && !due {
		return payload, nil
	}
	if !ok && set != nil && time.Since(set.fetchedAt) < unknownKeyInterval {
		return nil, invalidToken("signed with no key of the provider's")
	}
	newer, err := k.refresh(ctx, set)
	switch {
	case err != nil && ok && time.Since(set.fetchedAt) < staleTTL:
		return payload, nil
	case err != nil:
		return nil, err
	}
	if payload, ok = newer.verify(jws); !ok {
		return nil, invalidToken("signed with no key of the provider's")
	}
	return payload, nil
}

// current is the last reading, and whether it is time for another: keys have
// grown old, the provider is not known to be away, and nobody is at it.
func (k *keyring) current() (set *keySet, due bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.set == nil {
		return nil, true
	}
	age := time.Since(k.set.fetchedAt)
	return k.set, age >= staleTTL || age >= freshTTL && len(k.refreshLock) == 0 && time.Since(k.failedAt) >= staleRetryInterval
}

// refresh reads the keys, unless somebody has done so since seen, or has just
// tried. Who comes meanwhile waits for the one who reads.
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
	if err != nil && ctx.Err() != nil { // the caller's haste says nothing about the provider
		return nil, err
	}
	return k.store(keys, err)
}

// store keeps the outcome of a reading.
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

// fetch asks for the discovery document, which go-oidc compares with the issuer,
// and for the keys that it points to.
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

// parseSigningKeys are the keys that may sign. One of a kind that is not known here does
// not spoil the others (RFC 7517 §5).
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
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, errNoKeys)
	}
	return keys, nil
}

var errNoKeys = errors.New("the provider publishes no key that could sign")

// verify is the payload, if one of the keys has signed it. A key is found by
// comparing its name; it is never the path to anything.
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

// discoveryURL is where OpenID Connect Discovery §4 has the document.
func discoveryURL(issuer string) string {
	return strings.TrimSuffix(issuer, "/") + "/.well-known/openid-configuration"
}
