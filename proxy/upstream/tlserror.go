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

// unsupportedVersion is the prefix of an error of crypto/tls that ends in a number.
const unsupportedVersion = "tls: server selected unsupported protocol version "

// rewordedError is an error with a text of the gateway. It unwraps to the original.
type rewordedError struct {
	text string
	err  error
}

func (r rewordedError) Error() string { return r.text }
func (r rewordedError) Unwrap() error { return r.err }

// explainTLSError explains a failed handshake, without text from the certificate: the backend
// chooses its names, and the error is logged.
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
		return rewordedError{"the certificate was not issued by a trusted authority", err}
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return rewordedError{"the certificate has expired or is not yet valid", err}
	case errors.As(err, &invalid):
		return rewordedError{"the certificate is not valid for a server", err}
	case errors.As(err, &network), errors.As(err, &record), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF),
		strings.HasPrefix(err.Error(), unsupportedVersion):
		return err
	}
	return rewordedError{"the backend's part of the handshake is invalid", err}
}
