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

// rewordedError is an error with a text of the gateway's own. The error itself can still
// be asked for.
type rewordedError struct {
	text string
	err  error
}

func (r rewordedError) Error() string { return r.text }
func (r rewordedError) Unwrap() error { return r.err }

// explainTLSError is why a handshake failed, without a word from the certificate:
// its names are the backend's to choose, and this goes to the log.
func explainTLSError(err error, name string) error {
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
		return rewordedError{"the certificate is not for " + name, err}
	case errors.As(err, &authority):
		return rewordedError{"the certificate was issued by no authority that is trusted", err}
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return rewordedError{"the certificate has expired or is not yet valid", err}
	case errors.As(err, &invalid):
		return rewordedError{"the certificate is not valid for a server", err}
	case errors.As(err, &network), errors.As(err, &record), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF),
		strings.HasPrefix(err.Error(), unsupportedVersion):
		return err
	}
	return rewordedError{"the backend's part of it cannot be used", err}
}
