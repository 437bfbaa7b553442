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

	"imapgate/internal/imap"
	"imapgate/tlsconf"
)

// What a caller branches on, besides *Refused and VerdictOf.
var (
	// ErrDenied is a login with wrong credentials, or with a name or password
	// that cannot be sent.
	ErrDenied = errors.New("login denied")
	// ErrUnavailable is everything that is not the client's fault.
	ErrUnavailable = errors.New("backend unavailable")
	// ErrLoop is a login that has passed too many gateways, or this one before.
	ErrLoop = errors.New("login goes in a circle")
)

// errUnsendable is a login that no backend was asked about.
var errUnsendable = fmt.Errorf("%w: it cannot be sent", ErrDenied)

// errNoLoginAnswer is a login whose credentials went out and got no answer.
var errNoLoginAnswer = errors.New("no answer to the credentials")

// maxText bounds a text of a backend in an answer, and that of an error, in bytes.
const maxText = 256

// Causes of ErrUnavailable that are the backend's doing.
var (
	errProtocol     = errors.New("backend broke the protocol")
	errGreeting     = fmt.Errorf("%w: no greeting", errProtocol)
	errPreauth      = fmt.Errorf("%w: it greets with a session of nobody's", errProtocol)
	errUnsolicited  = fmt.Errorf("%w: it spoke before it was asked", errProtocol)
	errWrongTag     = fmt.Errorf("%w: tagged answer to no command of ours", errProtocol)
	errContinuation = fmt.Errorf("%w: continuation request out of place", errProtocol)
	errBudget       = fmt.Errorf("%w: more before the login than is read", errProtocol)
	errAfterLogin   = fmt.Errorf("%w: answers behind the login's", errProtocol)
	errCapability   = fmt.Errorf("%w: no capability list", errProtocol)
	errNoStatus     = fmt.Errorf("%w: neither OK nor NO nor BAD", errProtocol)

	errBye               = errors.New("backend said goodbye")
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
	errBusy              = errors.New("too many logins at a time")
	errConnect           = errors.New("connect")
)

// sanitizedError is an error whose text is cut and sanitised. The error itself can still be
// asked for.
type sanitizedError struct{ err error }

func (e sanitizedError) Error() string { return sanitize(e.err.Error()) }
func (e sanitizedError) Unwrap() error { return e.err }

// sanitize makes a backend's words fit to be shown: printable ASCII, without
// braces (which could be read as a literal), at most maxText bytes.
func sanitize(text string) string {
	if len(text) > maxText {
		text = text[:maxText]
	}
	return strings.Map(func(r rune) rune {
		switch {
		case r == '{':
			return '('
		case r == '}':
			return ')'
		case r < 0x20 || r > 0x7e:
			return '?'
		}
		return r
	}, text)
}

// ResultOf names the error of a Login.
func ResultOf(err error) string { return classifyError(context.Background(), err) }

// classifyError names an error for the metrics.
func classifyError(ctx context.Context, err error) string {
	if err == nil {
		return ResultOK
	}
	var refused *RefusedError
	switch {
	case errors.Is(err, ErrDenied), errors.Is(err, errMasterDenied):
		return ResultDenied
	case errors.As(err, &refused), errors.Is(err, errOpaqueCode):
		return ResultRefused
	case errors.Is(err, errLoginBad), errors.Is(err, errNoTokenMechanism), errors.Is(err, errTokenTooLong):
		return ResultNotAccepted
	case errors.Is(err, ErrLoop):
		return ResultLoop
	case errors.Is(err, errDown):
		return ResultDown
	case ctx.Err() != nil && context.Cause(ctx) != context.DeadlineExceeded:
		return ResultCanceled
	case errors.Is(err, errBusy):
		return ResultBusy
	case isTimeout(err):
		return ResultTimeout
	case errors.Is(err, errConnect):
		return ResultUnreachable
	case isTLS(err):
		return ResultTLS
	case isClosed(err):
		return ResultClosed
	}
	return ResultProtocol
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
