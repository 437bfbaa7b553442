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
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"

	"imapgate/internal/breaker"
	"imapgate/internal/identity"
)

// maxKept bounds the answers that are kept; of about 200 bytes each.
const maxKept = 50_000

// asker asks the provider about tokens (RFC 7662).
type asker struct {
	// Set once.
	url    string
	id     string
	secret identity.Secret
	web    *http.Client
	ttl    time.Duration
	read   func(claims, time.Time) (Subject, error)
	mac    [sha256.Size]byte // key under which answers are found

	// good guards itself. A no is never kept: a token may become good, and
	// nobody gets in by a mistake that is asked about again.
	good *lru.Cache[[sha256.Size]byte, answer] // at most maxKept

	// Guarded by mu.
	mu      sync.Mutex
	breaker breaker.Breaker
}

var (
	errAway     = errors.New("the provider has given no answer for a while")
	errNoObject = errors.New("the answer is no object")
)

// answer is a yes of the provider's, and how long it is believed.
type answer struct {
	who   Subject
	until time.Time
}

func newAsker(cfg Config, web bounded, read func(claims, time.Time) (Subject, error)) *asker {
	a := &asker{
		url: cfg.IntrospectionURL, id: cfg.ClientID, secret: cfg.ClientSecret, ttl: cfg.CacheTTL, read: read,
		web: &http.Client{Transport: web, CheckRedirect: stay, Timeout: askTime},
	}
	_, _ = rand.Read(a.mac[:])                              // never fails (crypto/rand)
	a.good, _ = lru.New[[sha256.Size]byte, answer](maxKept) // fails only on a size of 0
	return a
}

// ask says whose a token is, from memory where it was asked lately.
func (a *asker) ask(ctx context.Context, token string) (Subject, error) {
	key := a.key(token)
	if kept, ok := a.good.Get(key); ok && time.Now().Before(kept.until) {
		return kept.who, nil
	}
	said, err := a.question(ctx, token)
	if err != nil {
		return Subject{}, err
	}
	if !said.flag("active") {
		return Subject{}, invalid("the provider says that it is not active")
	}
	now := time.Now()
	who, err := a.read(said, now)
	if err != nil {
		return Subject{}, err
	}
	until := now.Add(a.ttl)
	if !who.Expires.IsZero() && who.Expires.Before(until) {
		until = who.Expires
	}
	if until.After(now) {
		a.good.Add(key, answer{who, until})
	}
	return who, nil
}

// key finds a token's answer. The token itself is not kept.
func (a *asker) key(token string) (sum [sha256.Size]byte) {
	h := hmac.New(sha256.New, a.mac[:])
	h.Write([]byte(token))
	h.Sum(sum[:0])
	return sum
}

// question asks, unless the provider has given no answer for a while.
func (a *asker) question(ctx context.Context, token string) (claims, error) {
	a.mu.Lock()
	allowed := a.breaker.Allow(time.Now())
	a.mu.Unlock()
	if !allowed {
		return nil, away(ctx, errAway)
	}
	ask, err := a.request(ctx, token)
	if err != nil {
		return nil, away(ctx, err)
	}
	var said claims
	err = exchange(a.web, ask, &said, maxAnswer)
	if err == nil && said == nil {
		err = away(ctx, errNoObject)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case err == nil:
		a.breaker.Answered()
	case ctx.Err() == nil: // or the caller's haste says nothing about the provider
		a.breaker.Failed(time.Now())
	}
	return said, err
}

// request is the question (RFC 7662 §2.1), with the gateway's own credentials
// as RFC 6749 §2.3.1 encodes them.
func (a *asker) request(ctx context.Context, token string) (*http.Request, error) {
	form := url.Values{"token": {token}, "token_type_hint": {"access_token"}}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, a.url, strings.NewReader(form.Encode()))
	if err != nil {
		return nil, err
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	if a.id != "" {
		r.SetBasicAuth(url.QueryEscape(a.id), url.QueryEscape(a.secret.Reveal()))
	}
	return r, nil
}
