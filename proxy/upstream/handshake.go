package upstream

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"strings"

	"imapgate/tlsconf"
)

// unsupportedVersion begins an error of crypto/tls that ends in a number alone.
const unsupportedVersion = "tls: server selected unsupported protocol version "

// reworded is an error with a text of the gateway's own. The error itself can still
// be asked for.
type reworded struct {
	text string
	err  error
}

func (r reworded) Error() string { return r.text }
func (r reworded) Unwrap() error { return r.err }

// handshakeCause is why a handshake failed, without a word from the certificate:
// its names are the backend's to choose, and this goes to the log.
func handshakeCause(err error, name string) error {
	var (
		otherName x509.HostnameError
		authority x509.UnknownAuthorityError
		invalid   x509.CertificateInvalidError
		record    tls.RecordHeaderError
		network   net.Error
		refused   *tlsconf.CertificateError
	)
	switch {
	case errors.As(err, &refused):
		return err
	case errors.As(err, &otherName):
		return reworded{"the certificate is not for " + name, err}
	case errors.As(err, &authority):
		return reworded{"the certificate was issued by no authority that is trusted", err}
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return reworded{"the certificate has expired or is not yet valid", err}
	case errors.As(err, &invalid):
		return reworded{"the certificate is not valid for a server", err}
	case errors.As(err, &network), errors.As(err, &record), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF),
		strings.HasPrefix(err.Error(), unsupportedVersion):
		return err
	}
	return reworded{"the backend's part of it cannot be used", err}
}
