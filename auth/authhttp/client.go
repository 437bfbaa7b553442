// Package authhttp asks an auth server over HTTP whether a login is right and
// where the user's mailbox lives, in the protocol of nginx's mail proxy
// (auth_http), so that a server written for nginx keeps working.
//
// It does not know IMAP, the gateway's backends, or what is done with an answer:
// whether the address in it may be connected to is for its caller to say. An
// Asker owns the HTTP connections to the auth servers.
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
	"imapgate/tlsconf"
)

var (
	// ErrDenied: an auth server has refused the login. The error is a *Denial.
	ErrDenied = errors.New("the auth server refuses the login")
	// ErrUnavailable: no auth server gave an answer that can be used.
	ErrUnavailable = errors.New("no auth server gave a usable answer")
	// ErrNoResponse comes wrapped with ErrUnavailable: an auth server was sent the
	// question, so that no answer may be one to a wrong password.
	ErrNoResponse = errors.New("an auth server was asked")
)

// MaxURLs bounds the auth servers of one Asker.
const MaxURLs = 16

const (
	defaultTimeout = 5 * time.Second
	maxHeader      = 8 << 10  // bytes of a response before its body; nginx reads 1 KiB
	maxBody        = 64 << 10 // bytes of a response's body that are thrown away to keep the connection
	maxConns       = 128      // connections to one auth server; more questions wait
	maxIdleConns   = 32       // of these, kept while nobody asks
	idleTimeout    = 55 * time.Second
	maxRetries     = 3                      // times a question is asked again because of WAIT
	discardTimeout = 250 * time.Millisecond // for a body that nobody needs
)

// Config says whom to ask, and how.
type Config struct {
	URLs           []string                   // http or https; asked in this order
	Timeout        time.Duration              // for the answer of one of them; 0 is 5 s
	Headers        map[string]identity.Secret // sent with every question
	TLS            func() *tls.Config         // for https connections that begin now; nil trusts the system's roots
	ClientCerts    bool                       // clients are asked for certificates, so each question says whether there was one
	PassClientCert bool                       // a client's certificate is sent too
}

// Client asks auth servers. It is safe for concurrent use.
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
	host    string // of the Host header: as nginx, without a port
	breaker *breaker.Monitor
}

// New makes an Asker. It connects to nobody yet.
func New(cfg Config, log *zap.Logger) (*Client, error) {
	if len(cfg.URLs) == 0 || len(cfg.URLs) > MaxURLs {
		return nil, fmt.Errorf("auth servers: 1 to %d are needed, not %d", MaxURLs, len(cfg.URLs))
	}
	a := &Client{timeout: cfg.Timeout, headers: cfg.Headers, reportCertificates: cfg.ClientCerts, passClientCert: cfg.PassClientCert, log: log}
	if a.timeout <= 0 {
		a.timeout = defaultTimeout
	}
	for _, raw := range cfg.URLs {
		s, err := a.newServer(raw)
		if err != nil {
			return nil, fmt.Errorf("auth server: %w", err)
		}
		a.servers = append(a.servers, s)
	}
	for name, value := range cfg.Headers {
		if err := CheckHeader(name, value.Reveal()); err != nil {
			return nil, fmt.Errorf("auth server: header %q %w", name, err)
		}
	}
	// RoundTrip of a transport, not a http.Client: no redirects, no cookies, and
	// no proxy from the environment.
	a.transport = tlsconf.NewTransport(cfg.TLS, a.newTransport)
	return a, nil
}

// newTransport makes what questions go through.
func (a *Client) newTransport(cfg *tls.Config) *http.Transport {
	return &http.Transport{
		DialContext:            (&net.Dialer{Timeout: a.timeout}).DialContext,
		TLSClientConfig:        cfg,
		TLSHandshakeTimeout:    a.timeout,
		DisableCompression:     true,
		MaxConnsPerHost:        maxConns,
		MaxIdleConnsPerHost:    maxIdleConns,
		IdleConnTimeout:        idleTimeout,
		MaxResponseHeaderBytes: maxHeader,
	}
}

func (a *Client) newServer(raw string) (*endpoint, error) {
	u, err := ParseURL(raw)
	if err != nil {
		return nil, err
	}
	host := u.Hostname()
	if u.Host[0] == '[' {
		host = "[" + host + "]"
	}
	s := &endpoint{url: u, host: host}
	s.breaker = breaker.NewMonitor(func(ctx context.Context) error { return a.probeServer(ctx, s) }, a.timeout, func(open bool, lastErr error) {
		if open {
			a.log.Warn("auth server gives no answers", zap.String("server", u.Host), zap.Error(lastErr))
		} else {
			a.log.Info("auth server answers again", zap.String("server", u.Host))
		}
	})
	return s, nil
}

// ParseURL reads the URL of an auth server. A password in it is refused: it
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

// Close gives idle connections up. Questions under way go on.
func (a *Client) Close() { a.transport.CloseIdleConnections() }

// Authenticate asks about one login. The error is ErrDenied (a *Denial) or ErrUnavailable,
// wrapped. It ends with ctx, or when each server had its time-out, after up to
// three delays that a server may ask for.
func (a *Client) Authenticate(ctx context.Context, req Request) (Response, error) {
	header := a.newHeader(req)
	for range 1 + maxRetries {
		r, err := a.tryServers(ctx, header)
		switch {
		case err != nil:
			return Response{}, err
		case r.denial != nil:
			return Response{}, r.denial
		case r.retryAfter == 0:
			return r.response, nil
		}
		// As nginx: after WAIT the same question is asked again.
		if err := sleep(ctx, r.retryAfter); err != nil {
			return Response{}, fmt.Errorf("%w: %w: told to wait: %w", ErrUnavailable, ErrNoResponse, err)
		}
	}
	return Response{}, fmt.Errorf("%w: %w: told to wait %d times", ErrUnavailable, ErrNoResponse, 1+maxRetries)
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// tryServers asks the servers in order until one has given a usable answer. A server
// that has failed again and again is left out. Where all are, and one is being tried,
// its outcome is waited for, as long as for one answer.
func (a *Client) tryServers(ctx context.Context, header http.Header) (result, error) {
	r, err := a.firstResult(ctx, header, func(s *endpoint) bool { return s.breaker.Allow(ctx) })
	if errors.Is(err, errBreakersOpen) {
		awaitCtx, cancel := context.WithTimeout(ctx, a.timeout)
		defer cancel()
		r, err = a.firstResult(ctx, header, func(s *endpoint) bool { return s.breaker.AwaitTrial(awaitCtx) })
	}
	if err != nil {
		return result{}, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return r, nil
}

var errBreakersOpen = errors.New("all are left alone for a moment after failures")

// firstResult is the first usable answer of those servers that are ready. errBreakersOpen: none is.
func (a *Client) firstResult(ctx context.Context, header http.Header, isReady func(*endpoint) bool) (result, error) {
	err, wasSent := errBreakersOpen, false
	for _, s := range a.servers {
		if !isReady(s) {
			continue
		}
		var r result
		if r, err = a.query(ctx, s, header); err == nil {
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

// query asks one server. For the breaker every HTTP response is an answer: one
// user's broken record must not keep the others from being asked about.
func (a *Client) query(ctx context.Context, s *endpoint, header http.Header) (result, error) {
	queryCtx, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	resp, err := a.sendRequest(queryCtx, s, header)
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

// sendRequest puts a question to one server. The error has ErrNoResponse when the server may
// have seen it.
func (a *Client) sendRequest(ctx context.Context, s *endpoint, header http.Header) (*http.Response, error) {
	httpReq := &http.Request{Method: http.MethodGet, URL: s.url, Host: s.host, Header: header}
	var isSent atomic.Bool // RoundTrip writes in a goroutine of its own
	traceCtx := httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{WroteHeaders: func() { isSent.Store(true) }})
	resp, err := a.transport.RoundTrip(httpReq.WithContext(traceCtx))
	if err == nil {
		return resp, nil
	}
	err = sanitizeError(err)
	if isSent.Load() {
		err = fmt.Errorf("%w: %w", ErrNoResponse, err)
	}
	return nil, err
}

// probeServer is the gateway's own question to a server: about nobody, with the method
// by which nginx asks where there is no login.
func (a *Client) probeServer(ctx context.Context, s *endpoint) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	resp, err := a.sendRequest(ctx, s, a.newHeader(Request{Method: methodNone, Attempt: 1}))
	if err == nil {
		discardBody(resp, cancel)
	}
	return err
}

// discardBody throws a body away. Reading it to its end keeps the connection for the
// next question; a body that is long or slow is not worth that.
func discardBody(resp *http.Response, cancel context.CancelFunc) {
	if !resp.Close {
		timer := time.AfterFunc(discardTimeout, cancel)
		defer timer.Stop()
		_, _ = io.CopyN(io.Discard, resp.Body, maxBody) // whatever happens, the answer is known
	}
	_ = resp.Body.Close()
}

// sanitizeError is why there was no response, without a word of the server's: it might
// have sent our question back, which has the password in it.
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
		return errors.New("it does not speak TLS")
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return io.ErrUnexpectedEOF
	}
	return errors.New("the answer is not HTTP, or too long")
}
