package proxy

import (
	"context"
	"errors"
	"io"
	"os"
	"syscall"

	"imapgate/auth"
	"imapgate/internal/audit"
	"imapgate/internal/event"
	"imapgate/internal/identity"
	"imapgate/internal/imap"
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
	reason event.Reason
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
	result   event.Result
	reason   event.Reason
	isDenial bool // caused by the client's credentials
}

// refusalOf is the only place where an error becomes a reply to a login. Any error not
// clearly the client's fault becomes UNAVAILABLE, because clients discard a password that
// is reported wrong.
func refusalOf(err error) refusal {
	var backendRefusal *upstream.RefusedError
	denial := refusal{reply: authFailedReply, result: event.ResultRefused, isDenial: true}
	switch {
	case errors.Is(err, errProofUnanswered):
		return refusal{result: event.ResultAbandoned, reason: event.ClientAbortedAfterProof}
	case errors.Is(err, errProofCancelled):
		return refusal{reply: "BAD Cancelled.", result: event.ResultRefused, reason: event.ClientAbortedAfterProof}
	case errors.Is(err, errMasked):
		return refusal{reply: unavailableReply, result: event.ResultRefused, reason: maskedReason(err)}
	case errors.Is(err, errBackendDisagrees), errors.Is(err, errNoVerdict):
		return unavailableRefusal(event.BackendRefused)
	case errors.Is(err, auth.ErrTooLong):
		return refusal{reply: tooLongReply, result: event.ResultRefused, reason: event.BadExchange}
	case errors.Is(err, errTooManySessions):
		return refusal{reply: tooManySessionsReply, result: event.ResultLimited, reason: event.LimitReached}
	case errors.Is(err, errTooManyFailures):
		return refusal{reply: unavailableReply, result: event.ResultLimited, reason: event.LimitReached}
	case errors.Is(err, identity.ErrName):
		denial.reason = event.BadName
		return denial
	case errors.Is(err, routing.ErrBlocked): // also if auth denies for that reason
		denial.reason = event.UserBlocked
		return denial
	case errors.Is(err, auth.ErrDenied), errors.Is(err, upstream.ErrDenied):
		denial.reason = event.BadCredentials
		return denial
	case errors.Is(err, routing.ErrNoUser):
		denial.reason = event.NoRoute
		return denial
	case errors.As(err, &backendRefusal):
		return refusal{
			untagged: string(upstream.AppendAlerts(nil, backendRefusal.Alerts)), reply: "NO [" + backendRefusal.Code + "] " + backendRefusal.Text,
			result: event.ResultRefused, reason: event.BackendRefused,
		}
	}
	return unavailableRefusal(unavailableReason(err))
}

// maskedReason returns the operator's reason for a masked denial, which the client cannot
// distinguish from an unavailable account.
func maskedReason(err error) event.Reason {
	if errors.Is(err, routing.ErrBlocked) {
		return event.UserBlocked
	}
	return event.NoRoute
}

func unavailableRefusal(reason event.Reason) refusal {
	return refusal{reply: unavailableReply, result: event.ResultUnavailable, reason: reason}
}

func unavailableReason(err error) event.Reason {
	switch {
	case errors.Is(err, context.Canceled):
		return event.Shutdown
	case errors.Is(err, audit.ErrUnavailable):
		return event.AuditUnavailable
	case errors.Is(err, auth.ErrBusy):
		return event.Overload
	case errors.Is(err, auth.ErrUnavailable):
		return event.AuthUnavailable
	case errors.Is(err, routing.ErrPaused):
		return event.UserPaused
	case errors.Is(err, routing.ErrMoved):
		return event.Moved
	case errors.Is(err, routing.ErrUnavailable):
		return event.RoutingUnavailable
	case errors.Is(err, errWrongUser):
		return event.IdentityViolation
	case errors.Is(err, errUnverified):
		return event.NotAuthorized
	case errors.Is(err, errNoCredential):
		return event.NoPassword
	}
	switch upstream.ResultOf(err) {
	case event.ConnectLoop:
		return event.ForwardingLoop
	case event.ConnectTLS:
		return event.BackendTLS
	case event.ConnectTimeout:
		return event.BackendTimeout
	case event.ConnectProtocol:
		return event.BackendProtocol
	case event.ConnectBusy:
		return event.Overload
	case event.ConnectDenied, event.ConnectRefused, event.ConnectNotAccepted:
		return event.BackendRefused
	}
	return event.BackendDown
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

func isTimeout(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }

func isClosed(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}
