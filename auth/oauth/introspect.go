package oauth

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"go.uber.org/zap"

	"imapgate/internal/breaker"
)

const (
	// maxCached bounds the cached responses, of about 200 bytes each.
	maxCached = 50_000
	// maxBackoffs bounds the tokens with a pending Retry-After, maxRetryAfter its length.
	maxBackoffs   = 4_096
	maxRetryAfter = 30 * time.Second
)

// introspector verifies tokens by introspection (RFC 7662).
type introspector struct {
	// Set once.
	settings Settings
	client   *http.Client
	macKey   [sha256.Size]byte // key of the hashes that index the caches

	// cache has its own lock. It holds no negative results: a token may become valid, and
	// repeating the request cannot accept a wrong one.
	cache *lru.Cache[[sha256.Size]byte, cachedSubject] // at most maxCached
	// backoffs has its own lock. It maps a token to the time of the next request about it.
	backoffs *lru.Cache[[sha256.Size]byte, time.Time] // at most maxBackoffs
	breaker  *breaker.Monitor
}

var (
	errBreakerOpen = errors.New("the circuit breaker of the provider is open after failures")
	errNotObject   = errors.New("the response is not a JSON object")
	errBackoff     = errors.New("the provider asked to wait before the next request about this token")
)

// cachedSubject is a positive result and the end of its validity.
type cachedSubject struct {
	subject Subject
	until   time.Time
}

func newIntrospector(s Settings, transport boundedTransport, log *zap.Logger) *introspector {
	i := &introspector{settings: s, client: &http.Client{Transport: transport, CheckRedirect: refuseRedirect, Timeout: requestTimeout}}
	_, _ = rand.Read(i.macKey[:])                                     // never fails (crypto/rand)
	i.cache, _ = lru.New[[sha256.Size]byte, cachedSubject](maxCached) // fails only on a size of 0
	i.backoffs, _ = lru.New[[sha256.Size]byte, time.Time](maxBackoffs)
	i.breaker = breaker.NewMonitor(i.probeProvider, requestTimeout, func(open bool, lastErr error) {
		if open {
			log.Warn("token provider gives no answers", zap.String("url", s.IntrospectionURL), zap.Error(lastErr))
		} else {
			log.Info("token provider answers again", zap.String("url", s.IntrospectionURL))
		}
	})
	return i
}

// verify returns the subject of a token, from the cache if it was introspected recently.
func (i *introspector) verify(ctx context.Context, token string) (Subject, error) {
	key := i.cacheKey(token)
	if cached, ok := i.cache.Get(key); ok && time.Now().Before(cached.until) {
		return cached.subject, nil
	}
	c, err := i.introspect(ctx, key, token)
	if err != nil {
		return Subject{}, err
	}
	if !c.boolClaim("active") {
		return Subject{}, invalidToken("the provider reports that it is not active")
	}
	now := time.Now()
	check := i.settings.checkClaims
	if i.settings.Issuer != "" { // the signed claims are checked against the other rules
		check = checkLifetime
	}
	subject, err := check(c, now)
	if err != nil {
		return Subject{}, err
	}
	until := now.Add(i.settings.CacheTTL)
	if !subject.Expires.IsZero() && subject.Expires.Before(until) {
		until = subject.Expires
	}
	if until.After(now) {
		i.cache.Add(key, cachedSubject{subject, until})
	}
	return subject, nil
}

// cacheKey returns the index of a token in the caches. The token itself is not stored.
func (i *introspector) cacheKey(token string) (sum [sha256.Size]byte) {
	h := hmac.New(sha256.New, i.macKey[:])
	h.Write([]byte(token))
	h.Sum(sum[:0])
	return sum
}

// introspect sends a request about a token unless a breaker or a Retry-After forbids it. For
// the breaker every HTTP response is a success. Any client can send a token that the provider
// answers with 400, 429 or 500, and the next token belongs to another user.
func (i *introspector) introspect(ctx context.Context, key [sha256.Size]byte, token string) (claims, error) {
	if until, ok := i.backoffs.Get(key); ok && time.Now().Before(until) {
		return nil, unavailable(ctx, errBackoff)
	}
	if !i.breaker.Allow(ctx) && !i.breaker.AwaitTrial(ctx) {
		return nil, unavailable(ctx, errBreakerOpen)
	}
	req, err := i.newRequest(ctx, token)
	if err != nil {
		return nil, unavailable(ctx, err)
	}
	var c claims
	err = doJSON(i.client, req, &c, maxResponse)
	if err == nil && c == nil {
		err = unavailable(ctx, errNotObject)
	}
	var noResp noResponse
	switch {
	case !errors.As(err, &noResp):
		i.breaker.RecordSuccess()
	case ctx.Err() == nil: // a caller that gave up says nothing about the provider
		i.breaker.RecordFailure()
	}
	if delay := retryDelay(err); delay > 0 {
		i.backoffs.Add(key, time.Now().Add(delay))
	}
	return c, err
}

// probeProvider sends the gateway's own request, about a random token.
func (i *introspector) probeProvider(ctx context.Context) error {
	req, err := i.newRequest(ctx, rand.Text())
	if err != nil {
		return err
	}
	var (
		c      claims
		noResp noResponse
	)
	if err := doJSON(i.client, req, &c, maxResponse); errors.As(err, &noResp) {
		return noResp
	}
	return nil
}

// newRequest returns the request (RFC 7662 §2.1), with the gateway's own credentials encoded as
// in RFC 6749 §2.3.1.
func (i *introspector) newRequest(ctx context.Context, token string) (*http.Request, error) {
	form := url.Values{"token": {token}, "token_type_hint": {"access_token"}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, i.settings.IntrospectionURL, strings.NewReader(form.Encode()))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	if i.settings.ClientID != "" {
		req.SetBasicAuth(url.QueryEscape(i.settings.ClientID), url.QueryEscape(i.settings.ClientSecret.Reveal()))
	}
	return req, nil
}
