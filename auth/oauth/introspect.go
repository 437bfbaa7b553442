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
	"imapgate/internal/identity"
)

const (
	// maxCached bounds the answers that are kept; of about 200 bytes each.
	maxCached = 50_000
	// maxBackoffs bounds the tokens about which the provider wants not to be asked for
	// a while, and maxRetryAfter that while.
	maxBackoffs   = 4_096
	maxRetryAfter = 30 * time.Second
)

// introspector asks the provider about tokens (RFC 7662).
type introspector struct {
	// Set once.
	url          string
	clientID     string
	clientSecret identity.Secret
	client       *http.Client
	ttl          time.Duration
	checkClaims  func(claims, time.Time) (Subject, error)
	macKey       [sha256.Size]byte // key under which answers are found

	// cache guards itself. A no is never kept: a token may become good, and
	// nobody gets in by a mistake that is asked about again.
	cache *lru.Cache[[sha256.Size]byte, cachedSubject] // at most maxCached
	// backoffs guards itself. It keeps until when the provider wants not to be asked
	// about a token again.
	backoffs *lru.Cache[[sha256.Size]byte, time.Time] // at most maxBackoffs
	breaker  *breaker.Monitor
}

var (
	errBreakerOpen = errors.New("the provider has given no answer for a while")
	errNotObject   = errors.New("the answer is no object")
	errBackoff     = errors.New("the provider asks for a pause before this token is asked about again")
)

// cachedSubject is a yes of the provider's, and how long it is believed.
type cachedSubject struct {
	subject Subject
	until   time.Time
}

func newIntrospector(cfg Config, transport boundedTransport, checkClaims func(claims, time.Time) (Subject, error), log *zap.Logger) *introspector {
	a := &introspector{
		url: cfg.IntrospectionURL, clientID: cfg.ClientID, clientSecret: cfg.ClientSecret, ttl: cfg.CacheTTL, checkClaims: checkClaims,
		client: &http.Client{Transport: transport, CheckRedirect: refuseRedirect, Timeout: requestTimeout},
	}
	_, _ = rand.Read(a.macKey[:])                                     // never fails (crypto/rand)
	a.cache, _ = lru.New[[sha256.Size]byte, cachedSubject](maxCached) // fails only on a size of 0
	a.backoffs, _ = lru.New[[sha256.Size]byte, time.Time](maxBackoffs)
	a.breaker = breaker.NewMonitor(a.probeProvider, requestTimeout, func(open bool, lastErr error) {
		if open {
			log.Warn("token provider gives no answers", zap.String("url", a.url), zap.Error(lastErr))
		} else {
			log.Info("token provider answers again", zap.String("url", a.url))
		}
	})
	return a
}

// verify says whose a token is, from memory where it was asked lately.
func (a *introspector) verify(ctx context.Context, token string) (Subject, error) {
	key := a.cacheKey(token)
	if cached, ok := a.cache.Get(key); ok && time.Now().Before(cached.until) {
		return cached.subject, nil
	}
	c, err := a.introspect(ctx, key, token)
	if err != nil {
		return Subject{}, err
	}
	if !c.boolClaim("active") {
		return Subject{}, invalidToken("the provider says that it is not active")
	}
	now := time.Now()
	subject, err := a.checkClaims(c, now)
	if err != nil {
		return Subject{}, err
	}
	until := now.Add(a.ttl)
	if !subject.Expires.IsZero() && subject.Expires.Before(until) {
		until = subject.Expires
	}
	if until.After(now) {
		a.cache.Add(key, cachedSubject{subject, until})
	}
	return subject, nil
}

// cacheKey finds a token's answer. The token itself is not kept.
func (a *introspector) cacheKey(token string) (sum [sha256.Size]byte) {
	h := hmac.New(sha256.New, a.macKey[:])
	h.Write([]byte(token))
	h.Sum(sum[:0])
	return sum
}

// introspect asks, unless the provider is left alone. Every HTTP response is an
// answer: anybody can send a token to which the provider answers 400, 429 or
// 500, and the next token is another's.
func (a *introspector) introspect(ctx context.Context, key [sha256.Size]byte, token string) (claims, error) {
	if until, ok := a.backoffs.Get(key); ok && time.Now().Before(until) {
		return nil, unavailable(ctx, errBackoff)
	}
	if !a.breaker.Allow(ctx) && !a.breaker.AwaitTrial(ctx) {
		return nil, unavailable(ctx, errBreakerOpen)
	}
	req, err := a.newRequest(ctx, token)
	if err != nil {
		return nil, unavailable(ctx, err)
	}
	var c claims
	err = doJSON(a.client, req, &c, maxResponse)
	if err == nil && c == nil {
		err = unavailable(ctx, errNotObject)
	}
	var noResp noResponse
	switch {
	case !errors.As(err, &noResp):
		a.breaker.RecordSuccess()
	case ctx.Err() == nil: // or the caller's haste says nothing about the provider
		a.breaker.RecordFailure()
	}
	if delay := retryDelay(err); delay > 0 {
		a.backoffs.Add(key, time.Now().Add(delay))
	}
	return c, err
}

// probeProvider is the gateway's own question: about a token of which nothing is known
// but that no client has sent it.
func (a *introspector) probeProvider(ctx context.Context) error {
	req, err := a.newRequest(ctx, rand.Text())
	if err != nil {
		return err
	}
	var (
		c      claims
		noResp noResponse
	)
	if err := doJSON(a.client, req, &c, maxResponse); errors.As(err, &noResp) {
		return noResp
	}
	return nil
}

// newRequest is the question (RFC 7662 §2.1), with the gateway's own credentials
// as RFC 6749 §2.3.1 encodes them.
func (a *introspector) newRequest(ctx context.Context, token string) (*http.Request, error) {
	form := url.Values{"token": {token}, "token_type_hint": {"access_token"}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, a.url, strings.NewReader(form.Encode()))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	if a.clientID != "" {
		req.SetBasicAuth(url.QueryEscape(a.clientID), url.QueryEscape(a.clientSecret.Reveal()))
	}
	return req, nil
}
