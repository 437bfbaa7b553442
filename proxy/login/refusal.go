package login

import (
	"context"
	"errors"
	"imapgate/auth"
	"imapgate/internal/audit"
	"imapgate/internal/event"
	"imapgate/internal/identity"
	"imapgate/proxy/upstream"
	"imapgate/routing"
)

// Replies to clients. They are constant and reveal no internal error.
const (
	authFailedReply      = "NO [AUTHENTICATIONFAILED] Authentication failed."
	unavailableReply     = "NO [UNAVAILABLE] Account is temporarily unavailable."
	tooManySessionsReply = "NO [LIMIT] Too many connections." // only after a right login
	TooLongReply         = "NO [LIMIT] Credentials are longer than the server takes."
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
	ErrTooManyFailures = errors.New("too many failed logins")
	// A right login of a user with too many sessions.
	errTooManySessions = errors.New("too many sessions")
	// A right login whose audit record could not be written.
	ErrNotRecorded = errors.New("login not recorded in the audit log")
)

// Refusal is the answer to a failed login.
type Refusal struct {
	Untagged string // untagged responses with their CRLF, "" for none
	Reply    string // text after the tag; "": no client waits for an answer
	IsDenial bool   // caused by the client's credentials
	Late     bool   // the deadline before the login cut its delay short
	result   event.Result
	reason   event.Reason
}

// refusalOf is the only place where an error becomes a reply to a login. Any error not
// clearly the client's fault becomes UNAVAILABLE, because clients discard a password that
// is reported wrong.
func refusalOf(err error) Refusal {
	var backendRefusal *upstream.RefusedError
	denial := Refusal{Reply: authFailedReply, result: event.ResultRefused, IsDenial: true}
	switch {
	case errors.Is(err, ErrProofUnanswered):
		return Refusal{result: event.ResultAbandoned, reason: event.ClientAbortedAfterProof}
	case errors.Is(err, ErrProofCancelled):
		return Refusal{Reply: "BAD Cancelled.", result: event.ResultRefused, reason: event.ClientAbortedAfterProof}
	case errors.Is(err, errMasked):
		return Refusal{Reply: unavailableReply, result: event.ResultRefused, reason: maskedReason(err)}
	case errors.Is(err, errBackendDisagrees), errors.Is(err, errNoVerdict):
		return unavailableRefusal(event.BackendRefused)
	case errors.Is(err, auth.ErrTooLong):
		return Refusal{Reply: TooLongReply, result: event.ResultRefused, reason: event.BadExchange}
	case errors.Is(err, errTooManySessions):
		return Refusal{Reply: tooManySessionsReply, result: event.ResultLimited, reason: event.LimitReached}
	case errors.Is(err, ErrTooManyFailures):
		return Refusal{Reply: unavailableReply, result: event.ResultLimited, reason: event.LimitReached}
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
		return Refusal{
			Untagged: string(upstream.OK{Alerts: backendRefusal.Alerts}.AppendUntagged(nil)), Reply: "NO [" + backendRefusal.Code + "] " + backendRefusal.Text,
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

func unavailableRefusal(reason event.Reason) Refusal {
	return Refusal{Reply: unavailableReply, result: event.ResultUnavailable, reason: reason}
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

var (
	// ErrProofCancelled reports a client that cancelled an exchange after the server's
	// proof. The client then knows that the password is right.
	ErrProofCancelled = errors.New("client cancelled after the server's proof")
	// ErrProofUnanswered reports a client that did not reply to the server's proof.
	ErrProofUnanswered = errors.New("client did not answer the server's proof")
)
