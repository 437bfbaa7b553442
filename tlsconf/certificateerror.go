package tlsconf

import (
	"crypto/tls"
	"errors"
	"net"
	"slices"
	"syscall"
)

// CertificateError is a server that ends the connection because of the certificate
// that it was shown, or because it was shown none. It does not wrap crypto/tls's error:
// go-redis would take that out.
type CertificateError struct{ text string }

func (e *CertificateError) Error() string { return e.text }

// The alerts by which servers refuse a client's certificate, in crypto/tls's words
// (RFC 8446 §6.2); its type for them is not exported.
var certificateAlerts = []string{"tls: certificate required", "tls: bad certificate", "tls: unsupported certificate",
	"tls: revoked certificate", "tls: expired certificate", "tls: unknown certificate",
	"tls: unknown certificate authority", "tls: access denied"}

// handshakeFailure is the alert of an OpenSSL that is shown no certificate in TLS 1.2,
// and of any server that shares no cipher suite.
const handshakeFailure = "tls: handshake failure"

// ExplainError gives a *CertificateError for an error of a connection under cfg that is the
// server's refusal of a certificate or of none, and any other error as it is. With
// TLS 1.3 the refusal comes behind the handshake, with the first read.
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

// IsAlert reports whether err is the other side's end of a TLS connection by an alert.
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

// explainedConn is a client's connection whose errors are explained.
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

// ExplainWriteError is Explain for an error of c that came first: a server that has refused a
// certificate is gone, and what is written then fails before its alert is read.
func ExplainWriteError(c *tls.Conn, cfg *tls.Config, err error) error {
	if errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) {
		if _, readErr := c.Read(make([]byte, 1)); IsAlert(readErr) { // the connection is over: nothing is waited for
			err = readErr
		}
	}
	return ExplainError(err, cfg)
}
