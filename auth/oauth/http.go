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

	"imapgate/internal/sanitize"
	"imapgate/tlsconf"
)

const (
	// requestTimeout bounds one request to the provider, from connecting to the last byte of
	// the response.
	requestTimeout = 5 * time.Second
	// maxDocument bounds a document in bytes, maxResponse an introspection response.
	maxDocument = 1 << 20
	maxResponse = 64 << 10
	// maxConns bounds the connections to one host. Further requests wait within their
	// requestTimeout.
	maxConns = 32
	// maxReason bounds a reason in a log, in bytes: it may contain text of the provider.
	maxReason = 200
)

// boundedTransport reads no more than maxDocument of any response body.
type boundedTransport struct{ http.RoundTripper }

// newTransport returns the transport of all requests. TLS certificates are always verified.
func newTransport(tlsConfig func() *tls.Config) boundedTransport {
	return boundedTransport{tlsconf.NewTransport(tlsConfig, func(cfg *tls.Config) *http.Transport {
		return &http.Transport{
			Proxy:                  http.ProxyFromEnvironment,
			TLSClientConfig:        cfg,
			ForceAttemptHTTP2:      true,
			MaxConnsPerHost:        maxConns,
			MaxIdleConnsPerHost:    maxConns,
			IdleConnTimeout:        90 * time.Second,
			MaxResponseHeaderBytes: maxResponse,
		}
	})}
}

// RoundTrip implements http.RoundTripper.
func (t boundedTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	res, err := t.RoundTripper.RoundTrip(r)
	if err == nil {
		res.Body = http.MaxBytesReader(nil, res.Body, maxDocument)
	}
	return res, err
}

// redirectToSameHost is the redirect policy for documents: at most three redirects, all to the
// scheme and host of the first request.
func redirectToSameHost(next *http.Request, via []*http.Request) error {
	if first := via[0].URL; len(via) > 3 || next.URL.Scheme != first.Scheme || next.URL.Host != first.Host {
		return errors.New("redirected to another host, or too often")
	}
	return nil
}

// refuseRedirect is the redirect policy for introspection, whose request contains a token.
func refuseRedirect(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// noResponse is the reason why there was no HTTP response at all.
type noResponse struct{ error }

// Unwrap returns the error made by unavailable.
func (n noResponse) Unwrap() error { return n.error }

// doJSON sends a request and decodes the JSON of a 200 into answer. Without any HTTP response
// the error is a noResponse.
func doJSON(client *http.Client, req *http.Request, answer any, limit int64) error {
	req.Header.Set("Accept", "application/json")
	res, err := client.Do(req)
	if err != nil {
		return noResponse{unavailable(req.Context(), sanitizeError(err))}
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return &statusError{req.URL.Host, res.StatusCode, parseRetryAfter(res.Header.Get("Retry-After"))}
	}
	body, err := io.ReadAll(io.LimitReader(res.Body, limit+1))
	switch {
	case err != nil:
		return unavailable(req.Context(), sanitizeError(err))
	case int64(len(body)) > limit:
		return fmt.Errorf("%w: %s answers with more than %d bytes", ErrUnavailable, req.URL.Host, limit)
	}
	if json.Unmarshal(body, answer) != nil {
		return fmt.Errorf("%w: %s did not answer with the expected JSON", ErrUnavailable, req.URL.Host)
	}
	return nil
}

// statusError is an HTTP response with a status other than 200.
type statusError struct {
	host       string
	status     int
	retryAfter time.Duration // delay that the provider asks for; 0: none
}

// Error implements error.
func (s *statusError) Error() string {
	return fmt.Sprintf("%v: %s answers %d", ErrUnavailable, s.host, s.status)
}

// Unwrap returns ErrUnavailable.
func (s *statusError) Unwrap() error { return ErrUnavailable }

// parseRetryAfter returns the delay in Retry-After (RFC 9110 §10.2.3) if it is a number of
// seconds, at most maxRetryAfter. A date would require the provider's clock.
func parseRetryAfter(text string) time.Duration {
	if text == "" || strings.Trim(text, "0123456789") != "" {
		return 0
	}
	seconds, err := strconv.ParseUint(text, 10, 32)
	if err != nil { // only a number that is too long remains
		return maxRetryAfter
	}
	return min(time.Duration(seconds)*time.Second, maxRetryAfter)
}

// retryDelay returns the delay that the provider asks for before the next request: with 429
// (RFC 6585 §4) and 503.
func retryDelay(err error) time.Duration {
	var s *statusError
	if errors.As(err, &s) && (s.status == http.StatusTooManyRequests || s.status == http.StatusServiceUnavailable) {
		return s.retryAfter
	}
	return 0
}

// unavailable wraps the reason for a missing response. If the caller stopped waiting, errors.Is
// finds its cause.
func unavailable(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); errors.Is(cause, context.Canceled) {
		return fmt.Errorf("%w: %w", ErrUnavailable, cause)
	}
	return fmt.Errorf("%w: %s", ErrUnavailable, sanitize.ASCII(err.Error(), maxReason))
}

// sanitizeError returns why there was no response, without any text of the other side: it may
// have echoed the request, which contains the token.
func sanitizeError(err error) error {
	var (
		timeout   net.Error
		netErr    *net.OpError
		verifyErr *tls.CertificateVerificationError
		certErr   *tlsconf.CertificateError
	)
	switch {
	case errors.As(err, &certErr):
		return certErr
	case errors.As(err, &timeout) && timeout.Timeout():
		return errors.New("no answer in time")
	case errors.As(err, &netErr):
		return netErr
	case errors.As(err, &verifyErr):
		return verifyErr
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return io.ErrUnexpectedEOF
	}
	return errors.New("the response is not HTTP, was redirected, or is too long")
}

// CheckURL returns an error for a URL that requests may not go to. Tokens, and the keys that
// verify them, go over TLS or stay on this machine.
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
