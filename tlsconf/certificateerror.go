package tlsconf

import (
	"crypto/tls"
	"errors"
	"net"
	"slices"
	"syscall"
)

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
