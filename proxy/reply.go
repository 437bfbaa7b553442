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

// What a client is told. Constant: nothing that failed inside shows.
const (
	authFailedReply      = "NO [AUTHENTICATIONFAILED] Authentication failed."
	unavailableReply     = "NO [UNAVAILABLE] Account is temporarily unavailable."
	tooManySessionsReply = "NO [LIMIT] Too many connections." // behind a right login only
	tooLongReply         = "NO [LIMIT] Credentials are longer than the server takes."
)

const resultRefused = metrics.Refused

// Our own reasons to refuse a login.
var (
	// A backend with a master login lets everybody in whom we name, so somebody
	// else must have checked the password.
	errUnverified       = errors.New("nobody checked the password of a user whose backend takes the gateway's word")
	errBackendDisagrees = errors.New("backend denied a user whose password was right here")
	errNoVerdict        = errors.New("backend could not check the credentials")
	errWrongUser        = errors.New("upstream belongs to another user")
	// A login that was not tried, because too many have failed.
	errTooManyFailures = errors.New("too many failed logins")
	// A login that was right, of somebody who has too many sessions.
	errTooManySessions = errors.New("too many sessions")
	// A login that had its place when the audit log did not take it.
	errNotRecorded = errors.New("turned back at the door")
)

// closeError ends a connection before its login: why, and the words of the BYE, ""
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
	reply    string // behind the tag
	result   string // for the metrics
	reason   audit.Reason
	isDenial bool // the client's fault
}

// refusalOf is the one place where an error becomes an answer. Whatever is not
// plainly the client's fault is UNAVAILABLE, because clients throw a password
// away that is called wrong.
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
	case errors.Is(err, routing.ErrBlocked): // also where auth denies for that reason
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

// maskedReason is what the operator is told of a user whom the client cannot tell
// from one with an unavailable account.
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

// welcome is the tagged OK of the login, which goes out last: with what the
// backend can do in the session's mode, as a code, and untagged too for a client that has asked
// before and may not look at codes.
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

// isGatewayCapability names what a backend may list and a client behind a gateway must
// not use: TLS and logins are the gateway's, and UNAUTHENTICATE (RFC 8437)
// would let a client log in again past it.
func isGatewayCapability(capability string) bool {
	return capability == "STARTTLS" || capability == "LOGINDISABLED" || capability == "UNAUTHENTICATE" ||
		strings.HasPrefix(capability, "AUTH=")
}

func isTimeout(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }

func isClosed(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}
