package tlsconf

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"sync"
)

// Dial connects with what current gives. Where that has no server name, the
// certificate must be for the host in address. The dialer's time limit is for
// connection and handshake together.
func Dial(ctx context.Context, d *net.Dialer, address string, current func() *tls.Config) (net.Conn, error) {
	cfg := current()
	nc, err := (&tls.Dialer{NetDialer: d, Config: cfg}).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, Explain(err, cfg)
	}
	return explained{nc.(*tls.Conn), cfg}, nil
}

// Transport is an http.RoundTripper with the current files: a new generation has
// connections of its own, and the old one's are closed when nobody uses them.
type Transport struct {
	// Set once.
	current func() *tls.Config
	make    func(*tls.Config) *http.Transport

	mu sync.Mutex
	// Guarded by mu.
	of   *tls.Config
	made *http.Transport
}

// NewTransport makes a Transport. For each generation of current, make gives what it
// goes through; the configuration that make gets is its own. A nil current is
// net/http's default.
func NewTransport(current func() *tls.Config, make func(*tls.Config) *http.Transport) *Transport {
	if current == nil {
		current = func() *tls.Config { return nil }
	}
	return &Transport{current: current, make: make}
}

// RoundTrip implements http.RoundTripper.
func (t *Transport) RoundTrip(r *http.Request) (*http.Response, error) {
	now, cfg := t.now()
	res, err := now.RoundTrip(r)
	if err != nil {
		err = Explain(err, cfg)
	}
	return res, err
}

// CloseIdleConnections gives idle connections up.
func (t *Transport) CloseIdleConnections() {
	now, _ := t.now()
	now.CloseIdleConnections()
}

// now is the transport of the current generation.
func (t *Transport) now() (*http.Transport, *tls.Config) {
	cfg := t.current()
	t.mu.Lock()
	old := t.made
	if old != nil && t.of == cfg {
		defer t.mu.Unlock()
		return old, cfg
	}
	t.of, t.made = cfg, t.make(cfg.Clone())
	made := t.made
	t.mu.Unlock()
	if old != nil {
		old.CloseIdleConnections()
	}
	return made, cfg
}
