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
	// maxKept bounds the answers that are kept; of about 200 bytes each.
	maxKept = 50_000
	// maxBusy bounds the tokens about which the provider wants not to be asked for
	// a while, and maxRetryAfter that while.
	maxBusy       = 4_096
	maxRetryAfter = 30 * time.Second
)

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
	// busy guards itself. It keeps until when the provider wants not to be asked
	// about a token again.
	busy    *lru.Cache[[sha256.Size]byte, time.Time] // at most maxBusy
	breaker *breaker.Probed
}

var (
	errAway     = errors.New("the provider has given no answer for a while")
	errNoObject = errors.New("the answer is no object")
	errBusy     = errors.New("the provider asks for a pause before this token is asked about again")
)

// answer is a yes of the provider's, and how long it is believed.
type answer struct {
	who   Subject
	until time.Time
}

func newAsker(cfg Config, web bounded, read func(claims, time.Time) (Subject, error), log *zap.Logger) *asker {
	a := &asker{
		url: cfg.IntrospectionURL, id: cfg.ClientID, secret: cfg.ClientSecret, ttl: cfg.CacheTTL, read: read,
		web: &http.Client{Transport: web, CheckRedirect: stay, Timeout: askTime},
	}
	_, _ = rand.Read(a.mac[:])                              // never fails (crypto/rand)
	a.good, _ = lru.New[[sha256.Size]byte, answer](maxKept) // fails only on a size of 0
	a.busy, _ = lru.New[[sha256.Size]byte, time.Time](maxBusy)
	a.breaker = breaker.NewProbed(a.probe, askTime, func(open bool, why error) {
		if open {
			log.Warn("token provider gives no answers", zap.String("url", a.url), zap.Error(why))
		} else {
			log.Info("token provider answers again", zap.String("url", a.url))
		}
	})
	return a
}

// ask says whose a token is, from memory where it was asked lately.
func (a *asker) ask(ctx context.Context, token string) (Subject, error) {
	key := a.key(token)
	if kept, ok := a.good.Get(key); ok && time.Now().Before(kept.until) {
		return kept.who, nil
	}
	said, err := a.question(ctx, key, token)
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

// question asks, unless the provider is left alone. Every HTTP response is an
// answer: anybody can send a token to which the provider answers 400, 429 or
// 500, and the next token is another's.
func (a *asker) question(ctx context.Context, key [sha256.Size]byte, token string) (claims, error) {
	if until, ok := a.busy.Get(key); ok && time.Now().Before(until) {
		return nil, away(ctx, errBusy)
	}
	if !a.breaker.Allow(ctx) && !a.breaker.Await(ctx) {
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
	var no silence
	switch {
	case !errors.As(err, &no):
		a.breaker.Answered()
	case ctx.Err() == nil: // or the caller's haste says nothing about the provider
		a.breaker.Failed()
	}
	if again := retryAfter(err); again > 0 {
		a.busy.Add(key, time.Now().Add(again))
	}
	return said, err
}

// probe is the gateway's own question: about a token of which nothing is known
// but that no client has sent it.
func (a *asker) probe(ctx context.Context) error {
	ask, err := a.request(ctx, rand.Text())
	if err != nil {
		return err
	}
	var (
		said claims
		no   silence
	)
	if err := exchange(a.web, ask, &said, maxAnswer); errors.As(err, &no) {
		return no
	}
	return nil
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
