package tlsconf

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"slices"
	"sync"
	"syscall"
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

// CertificateError means that a server ended the connection because of the client certificate,
// or because there was none. It does not wrap crypto/tls's error, because go-redis would unwrap
// it.
type CertificateError struct{ text string }

func (e *CertificateError) Error() string { return e.text }

// certificateAlerts lists the alerts by which servers refuse a client's certificate, in
// crypto/tls's text (RFC 8446 §6.2); its alert type is not exported.
var certificateAlerts = []string{"tls: certificate required", "tls: bad certificate", "tls: unsupported certificate",
	"tls: revoked certificate", "tls: expired certificate", "tls: unknown certificate",
	"tls: unknown certificate authority", "tls: access denied"}

// handshakeFailure is the alert of OpenSSL for a missing certificate in TLS 1.2, and of any
// server without a common cipher suite.
const handshakeFailure = "tls: handshake failure"

// ExplainError returns a *CertificateError if err is a server's refusal of a client
// certificate, or of a missing one; otherwise err. cfg is the configuration of the connection.
// With TLS 1.3 the refusal arrives after the handshake, with the first read.
func ExplainError(err error, cfg *tls.Config) error {
	alert := alertText(err)
	isShown := cfg != nil && cfg.GetClientCertificate != nil
	switch {
	case slices.Contains(certificateAlerts, alert) && isShown:
		return &CertificateError{"the server does not accept the client certificate that it was shown (see client_certificate): " + alert}
	case slices.Contains(certificateAlerts, alert):
		return &CertificateError{"the server demands a client certificate, and none is configured (see client_certificate): " + alert}
	case alert == handshakeFailure && !isShown:
		return &CertificateError{"the server shares no cipher suite, or demands a client certificate, and none is configured (see client_certificate): " + alert}
	}
	return err
}

// IsAlert reports whether the other side ended a TLS connection with an alert.
func IsAlert(err error) bool {
	var certErr *CertificateError
	return errors.As(err, &certErr) || alertText(err) != ""
}

func alertText(err error) string {
	var op *net.OpError
	if !errors.As(err, &op) || op.Op != "remote error" {
		return ""
	}
	return op.Err.Error()
}

// explainedConn is a client's connection whose errors ExplainError has processed.
type explainedConn struct {
	*tls.Conn
	cfg *tls.Config
}

func (c explainedConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	return n, ExplainError(err, c.cfg)
}

func (c explainedConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	return n, ExplainWriteError(c.Conn, c.cfg, err)
}

// ExplainWriteError is ExplainError for a write error. A server that refuses a certificate
// closes the connection, and the write fails before its alert is read.
func ExplainWriteError(c *tls.Conn, cfg *tls.Config, err error) error {
	if errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) {
		if _, readErr := c.Read(make([]byte, 1)); IsAlert(readErr) { // does not block: the connection is closed
			err = readErr
		}
	}
	return ExplainError(err, cfg)
}
