package upstream

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"

	"imapgate/internal/event"
	"imapgate/internal/imap"
	"imapgate/internal/sanitize"
	"imapgate/tlsconf"
)

// Errors that callers branch on, besides *RefusedError and VerdictOf.
var (
	// ErrDenied means that the credentials are wrong, or that a name or password cannot be
	// sent.
	ErrDenied = errors.New("login denied")
	// ErrUnavailable is any error that is not the client's fault.
	ErrUnavailable = errors.New("backend unavailable")
	// ErrLoop means that the login has passed too many gateways, or this one before.
	ErrLoop = errors.New("login loop")
)

// MaintenanceError refuses a login because of Settings.Maintenance. It is an ErrUnavailable.
type MaintenanceError struct{ Text string }

func (e *MaintenanceError) Error() string { return "maintenance: " + e.Text }

// errUnsendable means that the credentials were sent to no backend.
var errUnsendable = fmt.Errorf("%w: the user name or credential cannot be sent", ErrDenied)

// errNoLoginAnswer means that the credentials were sent and not answered.
var errNoLoginAnswer = errors.New("no answer to the credentials")

// maxText bounds a backend's text in an answer, and the text of an error, in bytes.
const maxText = 256

// Causes of ErrUnavailable on the backend's side.
var (
	errProtocol     = errors.New("backend broke the protocol")
	errGreeting     = fmt.Errorf("%w: no greeting", errProtocol)
	errPreauth      = fmt.Errorf("%w: it sent PREAUTH", errProtocol)
	errUnsolicited  = fmt.Errorf("%w: it sent data before it was requested", errProtocol)
	errWrongTag     = fmt.Errorf("%w: tagged response to an unknown command", errProtocol)
	errContinuation = fmt.Errorf("%w: unexpected continuation request", errProtocol)
	errBudget       = fmt.Errorf("%w: too much data before the login", errProtocol)
	errAfterLogin   = fmt.Errorf("%w: unexpected responses after the login", errProtocol)
	errCapability   = fmt.Errorf("%w: no capability list", errProtocol)
	errNoStatus     = fmt.Errorf("%w: neither OK nor NO nor BAD", errProtocol)

	errBye               = errors.New("backend sent BYE")
	errNoStartTLS        = errors.New("backend does not offer STARTTLS")
	errStartTLS          = errors.New("backend refused STARTTLS")
	errTLS               = errors.New("TLS")
	errClientCertificate = fmt.Errorf("%w: the backend demands a client certificate that it trusts (see client_certificate)", errTLS)
	errMechanism         = errors.New("backend offers no way to log in")
	errNoTokenMechanism  = fmt.Errorf("%w with a token: neither AUTH=OAUTHBEARER nor AUTH=XOAUTH2", errMechanism)
	errLoginBad          = errors.New("backend did not understand the login")
	errMasterDenied      = errors.New("backend denied the master login")
	errOpaqueCode        = errors.New("backend refused the login with an answer that is not forwarded")
	errDown              = errors.New("backend is marked down")
	errNoAddress         = errors.New("no address of the backend takes new logins")
	errBusy              = errors.New("too many concurrent logins")
	errFull              = errors.New("every address of the backend has max_sessions connections")
	errConnect           = errors.New("connect")
)

// publicError maps an error to those that callers branch on.
func publicError(err error) error {
	var refused *RefusedError
	if errors.Is(err, ErrDenied) || errors.Is(err, ErrLoop) || errors.As(err, &refused) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, rewordedError{sanitizeText(err.Error()), err})
}

// rewordedError is an error with a text that is safe to show. It unwraps to the original.
type rewordedError struct {
	text string
	err  error
}

func (e rewordedError) Error() string { return e.text }
func (e rewordedError) Unwrap() error { return e.err }

// sanitizeText makes a backend's text safe to show: printable ASCII, without braces (which could
// be read as a literal), at most maxText bytes.
func sanitizeText(text string) string {
	return withoutBraces.Replace(sanitize.ASCII(text, maxText))
}

// withoutBraces replaces braces. Constant.
var withoutBraces = strings.NewReplacer("{", "(", "}", ")")

// ResultOf returns the result for an error of Login. ctx is the caller's.
func ResultOf(ctx context.Context, err error) event.ConnectResult {
	if err == nil {
		return event.ConnectOK
	}
	var refused *RefusedError
	switch {
	case errors.Is(err, ErrDenied), errors.Is(err, errMasterDenied):
		return event.ConnectDenied
	case errors.As(err, &refused), errors.Is(err, errOpaqueCode):
		return event.ConnectRefused
	case errors.Is(err, errLoginBad), errors.Is(err, errNoTokenMechanism), errors.Is(err, errTokenTooLong):
		return event.ConnectNotAccepted
	case errors.Is(err, ErrLoop):
		return event.ConnectLoop
	case errors.As(err, new(*MaintenanceError)):
		return event.ConnectMaintenance
	case errors.Is(err, errDown), errors.Is(err, errNoAddress):
		return event.ConnectDown
	case ctx.Err() != nil && context.Cause(ctx) != context.DeadlineExceeded:
		return event.ConnectCanceled
	case errors.Is(err, errBusy), errors.Is(err, errFull):
		return event.ConnectBusy
	case isTimeout(err):
		return event.ConnectTimeout
	case errors.Is(err, errConnect):
		return event.ConnectUnreachable
	case isTLS(err):
		return event.ConnectTLS
	case isClosed(err):
		return event.ConnectClosed
	}
	return event.ConnectProtocol
}

func isTimeout(err error) bool {
	var timeout net.Error
	return errors.Is(err, os.ErrDeadlineExceeded) || errors.As(err, &timeout) && timeout.Timeout()
}

func isTLS(err error) bool {
	var record tls.RecordHeaderError
	var cert *tls.CertificateVerificationError
	var unknown x509.UnknownAuthorityError
	return errors.Is(err, errTLS) || tlsconf.IsAlert(err) || errors.Is(err, errNoStartTLS) || errors.Is(err, errStartTLS) ||
		errors.Is(err, imap.ErrInjected) || errors.As(err, &record) || errors.As(err, &cert) || errors.As(err, &unknown)
}

func isClosed(err error) bool {
	return errors.Is(err, errBye) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// unsupportedVersion is the prefix of an error of crypto/tls that ends in a number.
const unsupportedVersion = "tls: server selected unsupported protocol version "

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
