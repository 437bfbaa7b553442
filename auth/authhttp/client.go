// Package authhttp verifies logins with an HTTP auth server, which also returns the backend of
// the user's mailbox. The protocol is that of nginx's mail proxy (auth_http), so that a server
// written for nginx works unchanged.
//
// The package does not know IMAP or the gateway's backends. Its caller decides whether the
// address in a response may be connected to. A Client owns the HTTP connections to the auth
// servers.
package authhttp

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"imapgate/internal/breaker"
	"imapgate/internal/identity"
	"imapgate/internal/sleep"
	"imapgate/tlsconf"
)

var (
	// ErrDenied means that an auth server refused the login. The error is a *Denial.
	ErrDenied = errors.New("the auth server refuses the login")
	// ErrUnavailable means that no auth server sent a usable response.
	ErrUnavailable = errors.New("no auth server gave a usable answer")
	// ErrNoResponse is wrapped together with ErrUnavailable if an auth server may have received
	// the request. The missing response may be one to a wrong password.
	ErrNoResponse = errors.New("an auth server was sent the request")
)

// MaxURLs bounds the auth servers of one Client.
const MaxURLs = 16

const (
	maxHeader      = 8 << 10  // bytes of a response's header; nginx reads 1 KiB
	maxBody        = 64 << 10 // bytes of a response's body discarded to reuse the connection
	maxConns       = 128      // connections to one auth server; further requests wait
	maxIdleConns   = 32       // idle connections kept to one auth server
	idleTimeout    = 55 * time.Second
	maxRetries     = 3                      // retries of a request after WAIT
	discardTimeout = 250 * time.Millisecond // time to discard a body
)

// Config is the configuration of a Client.
type Config struct {
	Settings
	TLS         func() *tls.Config // for https connections that begin now; nil trusts the system's roots
	ClientCerts bool               // clients are asked for certificates, so requests report whether there was one
}

// Client sends requests to auth servers. It is safe for concurrent use.
type Client struct {
	// Set once.
	servers            []*endpoint
	timeout            time.Duration
	headers            map[string]identity.Secret
	reportCertificates bool
	passClientCert     bool
	transport          *tlsconf.Transport
	log                *zap.Logger
}

// endpoint is one of the URLs.
type endpoint struct {
	// Set once.
	url     *url.URL
	host    string // of the Host header: like nginx, without a port
	breaker *breaker.Monitor
}

// New returns a Client. It does not connect yet.
func New(cfg Config, log *zap.Logger) (*Client, error) {
	if len(cfg.URLs) == 0 || len(cfg.URLs) > MaxURLs {
		return nil, fmt.Errorf("auth servers: 1 to %d are needed, not %d", MaxURLs, len(cfg.URLs))
	}
	c := &Client{timeout: cfg.Timeout, headers: cfg.allHeaders(), reportCertificates: cfg.ClientCerts, passClientCert: cfg.PassClientCert, log: log}
	for _, raw := range cfg.URLs {
		s, err := c.newServer(raw)
		if err != nil {
			return nil, fmt.Errorf("auth server: %w", err)
		}
		c.servers = append(c.servers, s)
	}
	for name, value := range c.headers {
		if err := CheckHeader(name, value.Reveal()); err != nil {
			return nil, fmt.Errorf("auth server: header %q %w", name, err)
		}
	}
	// A transport's RoundTrip instead of an http.Client: no redirects, no cookies, and
	// no proxy from the environment.
	c.transport = tlsconf.NewTransport(cfg.TLS, c.newTransport)
	return c, nil
}

// newTransport returns the transport for one TLS configuration.
func (c *Client) newTransport(cfg *tls.Config) *http.Transport {
	return &http.Transport{
		DialContext:            (&net.Dialer{Timeout: c.timeout}).DialContext,
		TLSClientConfig:        cfg,
		TLSHandshakeTimeout:    c.timeout,
		DisableCompression:     true,
		MaxConnsPerHost:        maxConns,
		MaxIdleConnsPerHost:    maxIdleConns,
		IdleConnTimeout:        idleTimeout,
		MaxResponseHeaderBytes: maxHeader,
	}
}

func (c *Client) newServer(raw string) (*endpoint, error) {
	u, err := ParseURL(raw)
	if err != nil {
		return nil, err
	}
	host := u.Hostname()
	if u.Host[0] == '[' {
		host = "[" + host + "]"
	}
	s := &endpoint{url: u, host: host}
	s.breaker = breaker.NewMonitor(func(ctx context.Context) error { return c.probeServer(ctx, s) }, c.timeout, func(open bool, lastErr error) {
		if open {
			c.log.Warn("auth server gives no answers", zap.String("server", u.Host), zap.Error(lastErr))
		} else {
			c.log.Info("auth server answers again", zap.String("server", u.Host))
		}
	})
	return s, nil
}

// ParseURL parses the URL of an auth server. It refuses a password in the URL: a password
// belongs into a header, whose value can be read from a file.
func ParseURL(raw string) (*url.URL, error) {
	u, err := url.Parse(raw)
	switch {
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "":
		return nil, errors.New("a URL such as http://127.0.0.1:9000/auth is needed")
	case u.User != nil || u.Fragment != "":
		return nil, errors.New("the URL may have neither a user nor a fragment")
	case u.Path == "":
		u.Path = "/"
	}
	return u, nil
}

// Close closes idle connections. Requests in flight continue.
func (c *Client) Close() { c.transport.CloseIdleConnections() }

// Authenticate verifies one login. The error is a *Denial or wraps ErrUnavailable. It returns
// when ctx is done, or when each server has used its timeout, after up to three delays that a
// server may ask for.
func (c *Client) Authenticate(ctx context.Context, req Request) (Response, error) {
	header := c.newHeader(req)
	for range 1 + maxRetries {
		r, err := c.tryServers(ctx, header)
		switch {
		case err != nil:
			return Response{}, err
		case r.denial != nil:
			return Response{}, r.denial
		case r.retryAfter == 0:
			return r.response, nil
		}
		// Like nginx, it repeats the request after WAIT.
		if err := sleep.For(ctx, r.retryAfter); err != nil {
			return Response{}, fmt.Errorf("%w: %w: the server asked to wait: %w", ErrUnavailable, ErrNoResponse, err)
		}
	}
	return Response{}, fmt.Errorf("%w: %w: the server asked to wait %d times", ErrUnavailable, ErrNoResponse, 1+maxRetries)
}

// tryServers sends a request to the servers in order until one returns a usable response. It
// skips servers whose circuit breaker is open. If all are, and one is being probed, it waits
// for the outcome, up to the timeout of one request.
func (c *Client) tryServers(ctx context.Context, header http.Header) (result, error) {
	r, err := c.firstResult(ctx, header, func(s *endpoint) bool { return s.breaker.Allow(ctx) })
	if errors.Is(err, errBreakersOpen) {
		awaitCtx, cancel := context.WithTimeout(ctx, c.timeout)
		defer cancel()
		r, err = c.firstResult(ctx, header, func(s *endpoint) bool { return s.breaker.AwaitTrial(awaitCtx) })
	}
	if err != nil {
		return result{}, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return r, nil
}

var errBreakersOpen = errors.New("the circuit breakers of all auth servers are open after failures")

// firstResult returns the first usable response of the servers that are ready, or
// errBreakersOpen if there are none.
func (c *Client) firstResult(ctx context.Context, header http.Header, isReady func(*endpoint) bool) (result, error) {
	err, wasSent := errBreakersOpen, false
	for _, s := range c.servers {
		if !isReady(s) {
			continue
		}
		var r result
		if r, err = c.query(ctx, s, header); err == nil {
			return r, nil
		}
		wasSent = wasSent || errors.Is(err, ErrNoResponse)
		err = fmt.Errorf("%s: %w", s.url.Host, err)
		if ctx.Err() != nil {
			break
		}
	}
	if wasSent && !errors.Is(err, ErrNoResponse) {
		err = fmt.Errorf("%w: %w", ErrNoResponse, err)
	}
	return result{}, err
}

// query sends a request to one server. For the breaker every HTTP response is a success: one
// user's broken record must not block requests about others.
func (c *Client) query(ctx context.Context, s *endpoint, header http.Header) (result, error) {
	queryCtx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	resp, err := c.sendRequest(queryCtx, s, header)
	if err != nil {
		if ctx.Err() == nil {
			s.breaker.RecordFailure()
		}
		return result{}, err
	}
	defer discardBody(resp, cancel)
	s.breaker.RecordSuccess()
	r, err := parseHeader(resp.Header)
	if err != nil {
		err = fmt.Errorf("%w: %w", ErrNoResponse, err)
	}
	return r, err
}

// sendRequest sends a request to one server. The error wraps ErrNoResponse if the server may
// have received it.
func (c *Client) sendRequest(ctx context.Context, s *endpoint, header http.Header) (*http.Response, error) {
	httpReq := &http.Request{Method: http.MethodGet, URL: s.url, Host: s.host, Header: header}
	var isSent atomic.Bool // RoundTrip writes in a separate goroutine
	traceCtx := httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{WroteHeaders: func() { isSent.Store(true) }})
	resp, err := c.transport.RoundTrip(httpReq.WithContext(traceCtx))
	if err == nil {
		return resp, nil
	}
	err = sanitizeError(err)
	if isSent.Load() {
		err = fmt.Errorf("%w: %w", ErrNoResponse, err)
	}
	return nil, err
}

// probeServer sends the gateway's own request to a server: without a user, and with the method
// that nginx uses where there is no login.
func (c *Client) probeServer(ctx context.Context, s *endpoint) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	resp, err := c.sendRequest(ctx, s, c.newHeader(Request{Method: methodNone, Attempt: 1}))
	if err == nil {
		discardBody(resp, cancel)
	}
	return err
}

// discardBody reads a body to its end, so that the connection can be reused for the next
// request. It closes the connection if the body is long or slow.
func discardBody(resp *http.Response, cancel context.CancelFunc) {
	if !resp.Close {
		timer := time.AfterFunc(discardTimeout, cancel)
		defer timer.Stop()
		_, _ = io.CopyN(io.Discard, resp.Body, maxBody) // an error does not matter: the response is known
	}
	_ = resp.Body.Close()
}

// sanitizeError returns why there was no response, without any text of the server: the server
// may have echoed the request, which contains the password.
func sanitizeError(err error) error {
	var (
		netErr    *net.OpError
		verifyErr *tls.CertificateVerificationError
		recordErr tls.RecordHeaderError
		certErr   *tlsconf.CertificateError
	)
	switch {
	case errors.As(err, &certErr):
		return certErr
	case errors.Is(err, context.DeadlineExceeded):
		return errors.New("no answer in time")
	case errors.Is(err, context.Canceled):
		return context.Canceled
	case errors.As(err, &netErr):
		return netErr
	case errors.As(err, &verifyErr):
		return verifyErr
	case errors.As(err, &recordErr):
		return errors.New("the server does not speak TLS")
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return io.ErrUnexpectedEOF
	}
	return errors.New("the response is not HTTP, or is too long")
}
