package tlsconf

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"sync"
)

// Dial connects with the configuration that tlsConfig returns. If that has no server name, the
// certificate must be valid for the host in address. The dialer's timeout covers connection and
// handshake together.
func Dial(ctx context.Context, d *net.Dialer, address string, tlsConfig func() *tls.Config) (net.Conn, error) {
	cfg := tlsConfig()
	nc, err := (&tls.Dialer{NetDialer: d, Config: cfg}).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, ExplainError(err, cfg)
	}
	return explainedConn{nc.(*tls.Conn), cfg}, nil
}

// Transport is an http.RoundTripper whose files can change. A new generation has its own
// connections, and idle ones of the old generation are closed.
type Transport struct {
	// Set once.
	tlsConfig    func() *tls.Config
	newTransport func(*tls.Config) *http.Transport

	mu sync.Mutex
	// Guarded by mu.
	usedConfig *tls.Config
	transport  *http.Transport
}

// NewTransport returns a Transport. It calls newTransport for each generation of tlsConfig,
// with a copy that newTransport owns. A nil tlsConfig means net/http's default.
func NewTransport(tlsConfig func() *tls.Config, newTransport func(*tls.Config) *http.Transport) *Transport {
	if tlsConfig == nil {
		tlsConfig = func() *tls.Config { return nil }
	}
	return &Transport{tlsConfig: tlsConfig, newTransport: newTransport}
}

// RoundTrip implements http.RoundTripper.
func (t *Transport) RoundTrip(r *http.Request) (*http.Response, error) {
	transport, cfg := t.currentTransport()
	res, err := transport.RoundTrip(r)
	if err != nil {
		err = ExplainError(err, cfg)
	}
	return res, err
}

// CloseIdleConnections closes idle connections.
func (t *Transport) CloseIdleConnections() {
	transport, _ := t.currentTransport()
	transport.CloseIdleConnections()
}

// currentTransport returns the transport of the current generation.
func (t *Transport) currentTransport() (*http.Transport, *tls.Config) {
	cfg := t.tlsConfig()
	t.mu.Lock()
	old := t.transport
	if old != nil && t.usedConfig == cfg {
		defer t.mu.Unlock()
		return old, cfg
	}
	t.usedConfig, t.transport = cfg, t.newTransport(cfg.Clone())
	transport := t.transport
	t.mu.Unlock()
	if old != nil {
		old.CloseIdleConnections()
	}
	return transport, cfg
}
