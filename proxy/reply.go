package proxy

import (
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"syscall"

	"imapgate/auth"
	"imapgate/internal/audit"
	"imapgate/internal/identity"
	"imapgate/internal/imap"
	"imapgate/internal/metrics"
	"imapgate/proxy/upstream"
	"imapgate/routing"
)

// Replies to clients. They are constant and reveal no internal error.
const (
	authFailedReply      = "NO [AUTHENTICATIONFAILED] Authentication failed."
	unavailableReply     = "NO [UNAVAILABLE] Account is temporarily unavailable."
	tooManySessionsReply = "NO [LIMIT] Too many connections." // only after a right login
	tooLongReply         = "NO [LIMIT] Credentials are longer than the server takes."
)

const resultRefused = metrics.Refused

// Reasons of the gateway itself to refuse a login.
var (
	// A backend with a master login accepts any user that the gateway names, so the gateway
	// must have verified the password.
	errUnverified       = errors.New("password not verified, and the backend uses a master login")
	errBackendDisagrees = errors.New("backend denied a user that the gateway has verified")
	errNoVerdict        = errors.New("backend could not verify the credentials")
	errWrongUser        = errors.New("upstream belongs to another user")
	// A login refused before verification after too many failures.
	errTooManyFailures = errors.New("too many failed logins")
	// A right login of a user with too many sessions.
	errTooManySessions = errors.New("too many sessions")
	// A right login whose audit record could not be written.
	errNotRecorded = errors.New("login not recorded in the audit log")
)

// closeError ends a connection before its login, with a reason and the text of the BYE, ""
// for none.
type closeError struct {
	reason audit.Reason
	bye    string
	err    error
}

func (e *closeError) Error() string {
	if e.err != nil {
		return string(e.reason) + ": " + e.err.Error()
	}
	return string(e.reason)
}

func (e *closeError) Unwrap() error { return e.err }

// refusal is the answer to a failed login.
type refusal struct {
	untagged string // untagged responses with their CRLF, "" for none
	reply    string // text after the tag
	result   string // metrics label
	reason   audit.Reason
	isDenial bool // caused by the client's credentials
}

// refusalOf is the only place where an error becomes a reply to a login. Any error not
// clearly the client's fault becomes UNAVAILABLE, because clients discard a password that
// is reported wrong.
func refusalOf(err error) refusal {
	var backendRefusal *upstream.RefusedError
	denial := refusal{reply: authFailedReply, result: resultRefused, isDenial: true}
	switch {
	case errors.Is(err, errProofUnanswered):
		return refusal{result: metrics.Abandoned, reason: audit.ProvedAndLeft}
	case errors.Is(err, errProofCancelled):
		return refusal{reply: "BAD Cancelled.", result: resultRefused, reason: audit.ProvedAndLeft}
	case errors.Is(err, errMasked):
		return refusal{reply: unavailableReply, result: resultRefused, reason: maskedReason(err)}
	case errors.Is(err, errBackendDisagrees), errors.Is(err, errNoVerdict):
		return unavailableRefusal(audit.BackendRefused)
	case errors.Is(err, auth.ErrTooLong):
		return refusal{reply: tooLongReply, result: resultRefused, reason: audit.BadExchange}
	case errors.Is(err, errTooManySessions):
		return refusal{reply: tooManySessionsReply, result: metrics.Limited, reason: audit.LimitReached}
	case errors.Is(err, errTooManyFailures):
		return refusal{reply: unavailableReply, result: metrics.Limited, reason: audit.LimitReached}
	case errors.Is(err, identity.ErrName):
		denial.reason = audit.BadName
		return denial
	case errors.Is(err, routing.ErrBlocked): // also if auth denies for that reason
		denial.reason = audit.UserBlocked
		return denial
	case errors.Is(err, auth.ErrDenied), errors.Is(err, upstream.ErrDenied):
		denial.reason = audit.BadCredentials
		return denial
	case errors.Is(err, routing.ErrNoUser):
		denial.reason = audit.NoRoute
		return denial
	case errors.As(err, &backendRefusal):
		return refusal{
			untagged: string(upstream.AppendAlerts(nil, backendRefusal.Alerts)), reply: "NO [" + backendRefusal.Code + "] " + backendRefusal.Text,
			result: resultRefused, reason: audit.BackendRefused,
		}
	}
	return unavailableRefusal(unavailableReason(err))
}

// maskedReason returns the operator's reason for a masked denial, which the client cannot
// distinguish from an unavailable account.
func maskedReason(err error) audit.Reason {
	if errors.Is(err, routing.ErrBlocked) {
		return audit.UserBlocked
	}
	return audit.NoRoute
}

func unavailableRefusal(reason audit.Reason) refusal {
	return refusal{reply: unavailableReply, result: metrics.Unavailable, reason: reason}
}

func unavailableReason(err error) audit.Reason {
	switch {
	case errors.Is(err, context.Canceled):
		return audit.GatewayStopping
	case errors.Is(err, audit.ErrUnavailable):
		return audit.AuditAway
	case errors.Is(err, auth.ErrBusy):
		return audit.Overload
	case errors.Is(err, auth.ErrUnavailable):
		return audit.AuthAway
	case errors.Is(err, routing.ErrPaused):
		return audit.UserPaused
	case errors.Is(err, routing.ErrMoved):
		return audit.Moved
	case errors.Is(err, routing.ErrUnavailable):
		return audit.RoutesAway
	case errors.Is(err, errWrongUser):
		return audit.IdentityMismatch
	case errors.Is(err, errUnverified):
		return audit.NotAuthorized
	case errors.Is(err, errNoCredential):
		return audit.NothingToShow
	}
	switch upstream.ResultOf(err) {
	case upstream.ResultLoop:
		return audit.ForwardingLoop
	case upstream.ResultTLS:
		return audit.BackendTLS
	case upstream.ResultTimeout:
		return audit.BackendTimeout
	case upstream.ResultProtocol:
		return audit.BackendProtocol
	case upstream.ResultBusy:
		return audit.Overload
	case upstream.ResultDenied, upstream.ResultRefused, upstream.ResultNotAccepted:
		return audit.BackendRefused
	}
	return audit.BackendDown
}

// welcome sends the tagged OK of the login, last of all, with the capabilities of the
// backend in this mode. They are in a response code, and untagged too for a client that has
// sent CAPABILITY and may ignore response codes.
func (c *connection) welcome(a *attempt, up backendLogin, offered imap.Caps) error {
	caps := offered.String()
	c.outBuf = c.outBuf[:0]
	if c.preauth.repeatCaps && caps != "" {
		c.outBuf = append(append(append(c.outBuf, "* CAPABILITY "...), caps...), "\r\n"...)
	}
	c.outBuf = up.OK().AppendUntagged(c.outBuf)
	c.outBuf = append(append(c.outBuf, a.tag...), " OK "...)
	if caps != "" {
		c.outBuf = append(append(append(c.outBuf, "[CAPABILITY "...), caps...), "] "...)
	}
	c.outBuf = append(c.outBuf, "Logged in.\r\n"...)
	_, err := c.conn.Write(c.outBuf)
	return err
}

// isGatewayCapability reports whether clients must not use a capability of the backend. TLS
// and logins belong to the gateway, and UNAUTHENTICATE (RFC 8437) would allow a second
// login without it.
func isGatewayCapability(capability string) bool {
	return capability == "STARTTLS" || capability == "LOGINDISABLED" || capability == "UNAUTHENTICATE" ||
		strings.HasPrefix(capability, "AUTH=")
}

func isTimeout(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }

func isClosed(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}
