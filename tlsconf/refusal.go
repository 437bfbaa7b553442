package tlsconf

import (
	"crypto/tls"
	"errors"
	"net"
	"slices"
)

// CertificateError is a server that ends the connection because of the certificate
// that it was shown, or because it was shown none.
type CertificateError struct {
	text string
	err  error
}

func (e *CertificateError) Error() string { return e.text }
func (e *CertificateError) Unwrap() error { return e.err }

// The alerts by which servers refuse a client's certificate, in crypto/tls's words
// (RFC 8446 §6.2); its type for them is not exported.
var certificateAlerts = []string{"tls: certificate required", "tls: bad certificate", "tls: unsupported certificate",
	"tls: revoked certificate", "tls: expired certificate", "tls: unknown certificate",
	"tls: unknown certificate authority", "tls: access denied"}

// handshakeFailure is the alert of an OpenSSL that is shown no certificate in TLS 1.2,
// and of any server that shares no cipher suite.
const handshakeFailure = "tls: handshake failure"

// Explain gives a *CertificateError for an error of a connection under cfg that is the
// server's refusal of a certificate or of none, and any other error as it is. With
// TLS 1.3 the refusal comes behind the handshake, with the first read.
func Explain(err error, cfg *tls.Config) error {
	if already := (*CertificateError)(nil); errors.As(err, &already) {
		return err
	}
	alert := alertOf(err)
	shown := cfg != nil && cfg.GetClientCertificate != nil
	switch {
	case slices.Contains(certificateAlerts, alert) && shown:
		return &CertificateError{"the server does not accept the client certificate that it was shown (see client_certificate): " + alert, err}
	case slices.Contains(certificateAlerts, alert):
		return &CertificateError{"the server demands a client certificate, and none is configured (see client_certificate): " + alert, err}
	case alert == handshakeFailure && !shown:
		return &CertificateError{"the server shares no cipher suite, or demands a client certificate, and none is configured (see client_certificate): " + alert, err}
	}
	return err
}

// IsAlert reports whether err is the other side's end of a TLS connection by an alert.
func IsAlert(err error) bool { return alertOf(err) != "" }

func alertOf(err error) string {
	var op *net.OpError
	if !errors.As(err, &op) || op.Op != "remote error" {
		return ""
	}
	return op.Err.Error()
}

// explained is a client's connection whose errors are explained.
type explained struct {
	*tls.Conn
	cfg *tls.Config
}

func (c explained) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if err != nil {
		err = Explain(err, c.cfg)
	}
	return n, err
}
