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
	// ErrUnanswered comes wrapped with ErrUnavailable: an auth server was sent the
	// question, so that no answer may be one to a wrong password.
	ErrUnanswered = errors.New("an auth server was asked")
)

// MaxURLs bounds the auth servers of one Asker.
const MaxURLs = 16

const (
	defaultTimeout = 5 * time.Second
	maxHeader      = 8 << 10  // bytes of a response before its body; nginx reads 1 KiB
	maxBody        = 64 << 10 // bytes of a response's body that are thrown away to keep the connection
	maxConns       = 128      // connections to one auth server; more questions wait
	maxIdle        = 32       // of these, kept while nobody asks
	idleFor        = 55 * time.Second
	maxWaits       = 3                      // times a question is asked again because of WAIT
	drainFor       = 250 * time.Millisecond // for a body that nobody needs
)

// Config says whom to ask, and how.
type Config struct {
	URLs        []string                   // http or https; asked in this order
	Timeout     time.Duration              // for the answer of one of them; 0 is 5 s
	Headers     map[string]identity.Secret // sent with every question
	TLS         func() *tls.Config         // for https connections that begin now; nil trusts the system's roots
	ClientCerts bool                       // clients are asked for certificates, so each question says whether there was one
	PassCert    bool                       // a client's certificate is sent too
}

// Asker asks auth servers. It is safe for concurrent use.
type Asker struct {
	// Set once.
	servers   []*server
	timeout   time.Duration
	extra     map[string]identity.Secret
	verify    bool
	passCert  bool
	transport *tlsconf.Transport
	log       *zap.Logger
}

// server is one of the URLs.
type server struct {
	// Set once.
	url     *url.URL
	host    string // of the Host header: as nginx, without a port
	breaker *breaker.Probed
}

// New makes an Asker. It connects to nobody yet.
func New(cfg Config, log *zap.Logger) (*Asker, error) {
	if len(cfg.URLs) == 0 || len(cfg.URLs) > MaxURLs {
		return nil, fmt.Errorf("auth servers: 1 to %d are needed, not %d", MaxURLs, len(cfg.URLs))
	}
	a := &Asker{timeout: cfg.Timeout, extra: cfg.Headers, verify: cfg.ClientCerts, passCert: cfg.PassCert, log: log}
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
func (a *Asker) newTransport(secured *tls.Config) *http.Transport {
	return &http.Transport{
		DialContext:            (&net.Dialer{Timeout: a.timeout}).DialContext,
		TLSClientConfig:        secured,
		TLSHandshakeTimeout:    a.timeout,
		DisableCompression:     true,
		MaxConnsPerHost:        maxConns,
		MaxIdleConnsPerHost:    maxIdle,
		IdleConnTimeout:        idleFor,
		MaxResponseHeaderBytes: maxHeader,
	}
}

func (a *Asker) newServer(raw string) (*server, error) {
	u, err := ParseURL(raw)
	if err != nil {
		return nil, err
	}
	host := u.Hostname()
	if u.Host[0] == '[' {
		host = "[" + host + "]"
	}
	s := &server{url: u, host: host}
	s.breaker = breaker.NewProbed(func(ctx context.Context) error { return a.probe(ctx, s) }, a.timeout, func(open bool, why error) {
		if open {
			a.log.Warn("auth server gives no answers", zap.String("server", u.Host), zap.Error(why))
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
func (a *Asker) Close() { a.transport.CloseIdleConnections() }

// Ask asks about one login. The error is ErrDenied (a *Denial) or ErrUnavailable,
// wrapped. It ends with ctx, or when each server had its time-out, after up to
// three delays that a server may ask for.
func (a *Asker) Ask(ctx context.Context, q Question) (Answer, error) {
	header := a.header(q)
	for range 1 + maxWaits {
		r, err := a.round(ctx, header)
		switch {
		case err != nil:
			return Answer{}, err
		case r.denial != nil:
			return Answer{}, r.denial
		case r.again == 0:
			return r.answer, nil
		}
		// As nginx: after WAIT the same question is asked again.
		if err := sleep(ctx, r.again); err != nil {
			return Answer{}, fmt.Errorf("%w: %w: told to wait: %w", ErrUnavailable, ErrUnanswered, err)
		}
	}
	return Answer{}, fmt.Errorf("%w: %w: told to wait %d times", ErrUnavailable, ErrUnanswered, 1+maxWaits)
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

// round asks the servers in order until one has given a usable answer. A server
// that has failed again and again is left out. Where all are, and one is being tried,
// its outcome is waited for, as long as for one answer.
func (a *Asker) round(ctx context.Context, header http.Header) (reply, error) {
	r, err := a.first(ctx, header, func(s *server) bool { return s.breaker.Allow(ctx) })
	if errors.Is(err, errLeftAlone) {
		soon, cancel := context.WithTimeout(ctx, a.timeout)
		defer cancel()
		r, err = a.first(ctx, header, func(s *server) bool { return s.breaker.Await(soon) })
	}
	if err != nil {
		return reply{}, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return r, nil
}

var errLeftAlone = errors.New("all are left alone for a moment after failures")

// first is the first usable answer of those servers that are ready. errLeftAlone: none is.
func (a *Asker) first(ctx context.Context, header http.Header, ready func(*server) bool) (reply, error) {
	err, wasAsked := errLeftAlone, false
	for _, s := range a.servers {
		if !ready(s) {
			continue
		}
		var r reply
		if r, err = a.ask(ctx, s, header); err == nil {
			return r, nil
		}
		wasAsked = wasAsked || errors.Is(err, ErrUnanswered)
		err = fmt.Errorf("%s: %w", s.url.Host, err)
		if ctx.Err() != nil {
			break
		}
	}
	if wasAsked && !errors.Is(err, ErrUnanswered) {
		err = fmt.Errorf("%w: %w", ErrUnanswered, err)
	}
	return reply{}, err
}

// ask asks one server. For the breaker every HTTP response is an answer: one
// user's broken record must not keep the others from being asked about.
func (a *Asker) ask(ctx context.Context, s *server, header http.Header) (reply, error) {
	asking, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	response, err := a.send(asking, s, header)
	if err != nil {
		if ctx.Err() == nil {
			s.breaker.Failed()
		}
		return reply{}, err
	}
	defer drop(response, cancel)
	s.breaker.Answered()
	r, err := read(response.Header)
	if err != nil {
		err = fmt.Errorf("%w: %w", ErrUnanswered, err)
	}
	return r, err
}

// send puts a question to one server. The error has ErrUnanswered when the server may
// have seen it.
func (a *Asker) send(ctx context.Context, s *server, header http.Header) (*http.Response, error) {
	request := &http.Request{Method: http.MethodGet, URL: s.url, Host: s.host, Header: header}
	var sent atomic.Bool // RoundTrip writes in a goroutine of its own
	traced := httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{WroteHeaders: func() { sent.Store(true) }})
	response, err := a.transport.RoundTrip(request.WithContext(traced))
	if err == nil {
		return response, nil
	}
	err = cause(err)
	if sent.Load() {
		err = fmt.Errorf("%w: %w", ErrUnanswered, err)
	}
	return nil, err
}

// probe is the gateway's own question to a server: about nobody, with the method
// by which nginx asks where there is no login.
func (a *Asker) probe(ctx context.Context, s *server) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	response, err := a.send(ctx, s, a.header(Question{Method: none, Attempt: 1}))
	if err == nil {
		drop(response, cancel)
	}
	return err
}

// drop throws a body away. Reading it to its end keeps the connection for the
// next question; a body that is long or slow is not worth that.
func drop(response *http.Response, cancel context.CancelFunc) {
	if !response.Close {
		late := time.AfterFunc(drainFor, cancel)
		defer late.Stop()
		_, _ = io.CopyN(io.Discard, response.Body, maxBody) // whatever happens, the answer is known
	}
	_ = response.Body.Close()
}

// cause is why there was no response, without a word of the server's: it might
// have sent our question back, which has the password in it.
func cause(err error) error {
	var (
		network *net.OpError
		verify  *tls.CertificateVerificationError
		record  tls.RecordHeaderError
		refused *tlsconf.CertificateError
	)
	switch {
	case errors.As(err, &refused):
		return refused
	case errors.Is(err, context.DeadlineExceeded):
		return errors.New("no answer in time")
	case errors.Is(err, context.Canceled):
		return context.Canceled
	case errors.As(err, &network):
		return network
	case errors.As(err, &verify):
		return verify
	case errors.As(err, &record):
		return errors.New("it does not speak TLS")
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return io.ErrUnexpectedEOF
	}
	return errors.New("the answer is not HTTP, or too long")
}
