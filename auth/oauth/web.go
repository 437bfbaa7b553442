package oauth

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	"imapgate/tlsconf"
)

const (
	// askTime bounds one question to the provider, from connecting to the last
	// byte of the answer.
	askTime = 5 * time.Second
	// maxDocument bounds what is read of a document, maxAnswer of an introspection.
	maxDocument = 1 << 20
	maxAnswer   = 64 << 10
	// maxConnections to one host; questions beyond it wait, within their askTime.
	maxConnections = 32
	// maxWhy bounds a reason in a log, in bytes: it may hold the provider's words.
	maxWhy = 200
)

// bounded reads no more than maxDocument of any answer, whoever reads it.
type bounded struct{ http.RoundTripper }

// newTransport makes what all questions go through. TLS is always verified.
func newTransport(current func() *tls.Config) bounded {
	return bounded{tlsconf.NewTransport(current, func(secured *tls.Config) *http.Transport {
		return &http.Transport{
			Proxy:                  http.ProxyFromEnvironment,
			TLSClientConfig:        secured,
			ForceAttemptHTTP2:      true,
			MaxConnsPerHost:        maxConnections,
			MaxIdleConnsPerHost:    maxConnections,
			IdleConnTimeout:        90 * time.Second,
			MaxResponseHeaderBytes: maxAnswer,
		}
	})}
}

// RoundTrip implements http.RoundTripper.
func (b bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	res, err := b.RoundTripper.RoundTrip(r)
	if err == nil {
		res.Body = http.MaxBytesReader(nil, res.Body, maxDocument)
	}
	return res, err
}

// sameHost is the redirect policy of documents: whoever answers in the
// provider's name is the provider.
func sameHost(next *http.Request, via []*http.Request) error {
	if first := via[0].URL; len(via) > 3 || next.URL.Scheme != first.Scheme || next.URL.Host != first.Host {
		return errors.New("redirected elsewhere")
	}
	return nil
}

// stay is the redirect policy of an introspection, which has a token in it.
func stay(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// silence is why there was no HTTP response at all.
type silence struct{ error }

// Unwrap returns what away made of the reason.
func (s silence) Unwrap() error { return s.error }

// exchange sends a question and decodes the JSON of a 200 into answer. Without
// any HTTP response the error is a silence.
func exchange(web *http.Client, question *http.Request, answer any, most int64) error {
	question.Header.Set("Accept", "application/json")
	res, err := web.Do(question)
	if err != nil {
		return silence{away(question.Context(), cause(err))}
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return &badStatus{question.URL.Host, res.StatusCode, waitOf(res.Header.Get("Retry-After"))}
	}
	body, err := io.ReadAll(io.LimitReader(res.Body, most+1))
	switch {
	case err != nil:
		return away(question.Context(), cause(err))
	case int64(len(body)) > most:
		return fmt.Errorf("%w: %s answers with more than %d bytes", ErrUnavailable, question.URL.Host, most)
	}
	if json.Unmarshal(body, answer) != nil {
		return fmt.Errorf("%w: %s answers with something else than was asked for", ErrUnavailable, question.URL.Host)
	}
	return nil
}

// badStatus is an HTTP response that is not the answer.
type badStatus struct {
	host   string
	status int
	wait   time.Duration // that the provider asks for; 0: none
}

// Error implements error.
func (s *badStatus) Error() string {
	return fmt.Sprintf("%v: %s answers %d", ErrUnavailable, s.host, s.status)
}

// Unwrap is ErrUnavailable.
func (s *badStatus) Unwrap() error { return ErrUnavailable }

// waitOf is the time in Retry-After (RFC 9110 §10.2.3) where it is a number of
// seconds, at most maxRetryAfter. A date would need the provider's clock.
func waitOf(text string) time.Duration {
	if text == "" || strings.Trim(text, "0123456789") != "" {
		return 0
	}
	seconds, err := strconv.ParseUint(text, 10, 32)
	if err != nil { // only too long a number is left
		return maxRetryAfter
	}
	return min(time.Duration(seconds)*time.Second, maxRetryAfter)
}

// retryAfter is the time for which the provider wants not to be asked again:
// with 429 (RFC 6585 §4) and 503.
func retryAfter(err error) time.Duration {
	var s *badStatus
	if errors.As(err, &s) && (s.status == http.StatusTooManyRequests || s.status == http.StatusServiceUnavailable) {
		return s.wait
	}
	return 0
}

// away is why there is no answer. When it was the caller that stopped waiting,
// its reason can be asked for.
func away(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); errors.Is(cause, context.Canceled) {
		return fmt.Errorf("%w: %w", ErrUnavailable, cause)
	}
	return fmt.Errorf("%w: %s", ErrUnavailable, brief(err))
}

// cause is why there was no answer, without a word of the other side's: it might
// have sent our question back, which has the token in it.
func cause(err error) error {
	var (
		patience net.Error
		network  *net.OpError
		verify   *tls.CertificateVerificationError
		refused  *tlsconf.CertificateError
	)
	switch {
	case errors.As(err, &refused):
		return refused
	case errors.As(err, &patience) && patience.Timeout():
		return errors.New("no answer in time")
	case errors.As(err, &network):
		return network
	case errors.As(err, &verify):
		return verify
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return io.ErrUnexpectedEOF
	}
	return errors.New("the answer is not HTTP, comes from elsewhere, or is too long")
}

// brief is an error fit for a log: it may hold the words of somebody else.
func brief(err error) string {
	text := strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, err.Error())
	return text[:min(len(text), maxWhy)]
}

// CheckURL says whether an address may be asked: tokens, and the keys that make
// them believed, go over TLS, or do not leave the machine.
func CheckURL(address string) error {
	u, err := url.Parse(address)
	if err != nil || u.Host == "" || u.User != nil || u.Fragment != "" {
		return errors.New("is not a URL such as https://id.example.org/, without a user and a fragment")
	}
	if u.Scheme == "https" {
		return nil
	}
	host, err := netip.ParseAddr(u.Hostname())
	if u.Scheme == "http" && (u.Hostname() == "localhost" || err == nil && host.IsLoopback()) {
		return nil
	}
	return errors.New("is neither https nor on this machine")
}
