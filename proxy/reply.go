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
	deniedReply      = "NO [AUTHENTICATIONFAILED] Authentication failed."
	unavailableReply = "NO [UNAVAILABLE] Account is temporarily unavailable."
	fullReply        = "NO [LIMIT] Too many connections." // behind a right login only
	tooLongReply     = "NO [LIMIT] Credentials are longer than the server takes."
)

const refused = metrics.Refused

// Our own reasons to refuse a login.
var (
	// A backend with a master login lets everybody in whom we name, so somebody
	// else must have checked the password.
	errNobodyDecides    = errors.New("nobody checked the password of a user whose backend takes the gateway's word")
	errBackendDisagrees = errors.New("backend denied a user whose password was right here")
	errUnchecked        = errors.New("backend could not check the credentials")
	errForeign          = errors.New("upstream belongs to another user")
	// A login that was not tried, because too many have failed.
	errTooOften = errors.New("too many failed logins")
	// A login that was right, of somebody who has too many sessions.
	errFull = errors.New("too many sessions")
	// A login that had its place when the audit log did not take it.
	errTurnedBack = errors.New("turned back at the door")
)

// ending ends a connection before its login: why, and the words of the BYE, ""
// for none.
type ending struct {
	reason audit.Reason
	bye    string
	err    error
}

func (e *ending) Error() string {
	if e.err != nil {
		return string(e.reason) + ": " + e.err.Error()
	}
	return string(e.reason)
}

func (e *ending) Unwrap() error { return e.err }

// refusal is the answer to a failed login.
type refusal struct {
	before string // untagged responses with their CRLF, "" for none
	reply  string // behind the tag
	result string // for the metrics
	reason audit.Reason
	denied bool // the client's fault
}

// refusalOf is the one place where an error becomes an answer. Whatever is not
// plainly the client's fault is UNAVAILABLE, because clients throw a password
// away that is called wrong.
func refusalOf(err error) refusal {
	var own *upstream.Refused
	denied := refusal{reply: deniedReply, result: refused, denied: true}
	switch {
	case errors.Is(err, errSilent):
		return refusal{result: metrics.Abandoned, reason: audit.ProvedAndLeft}
	case errors.Is(err, errCancelled):
		return refusal{reply: "BAD Cancelled.", result: refused, reason: audit.ProvedAndLeft}
	case errors.Is(err, errAsOthers):
		return refusal{reply: unavailableReply, result: refused, reason: asOthersReason(err)}
	case errors.Is(err, errBackendDisagrees), errors.Is(err, errUnchecked):
		return unavailable(audit.BackendRefused)
	case errors.Is(err, auth.ErrTooLong):
		return refusal{reply: tooLongReply, result: refused, reason: audit.BadExchange}
	case errors.Is(err, errFull):
		return refusal{reply: fullReply, result: metrics.Limited, reason: audit.LimitReached}
	case errors.Is(err, errTooOften):
		return refusal{reply: unavailableReply, result: metrics.Limited, reason: audit.LimitReached}
	case errors.Is(err, identity.ErrName):
		denied.reason = audit.BadName
		return denied
	case errors.Is(err, routing.ErrBlocked): // also where auth denies for that reason
		denied.reason = audit.UserBlocked
		return denied
	case errors.Is(err, auth.ErrDenied), errors.Is(err, upstream.ErrDenied):
		denied.reason = audit.BadCredentials
		return denied
	case errors.Is(err, routing.ErrNoUser):
		denied.reason = audit.NoRoute
		return denied
	case errors.As(err, &own):
		return refusal{
			before: string(upstream.AppendAlerts(nil, own.Alerts)), reply: "NO [" + own.Code + "] " + own.Text,
			result: refused, reason: audit.BackendRefused,
		}
	}
	return unavailable(unavailableReason(err))
}

// asOthersReason is what the operator is told of a user whom the client cannot tell
// from one with an unavailable account.
func asOthersReason(err error) audit.Reason {
	if errors.Is(err, routing.ErrBlocked) {
		return audit.UserBlocked
	}
	return audit.NoRoute
}

func unavailable(why audit.Reason) refusal {
	return refusal{reply: unavailableReply, result: metrics.Unavailable, reason: why}
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
	case errors.Is(err, errForeign):
		return audit.IdentityMismatch
	case errors.Is(err, errNobodyDecides):
		return audit.NotAuthorized
	case errors.Is(err, errNothingToShow):
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
	case upstream.ResultDenied, upstream.ResultRefused, upstream.ResultNotTaken:
		return audit.BackendRefused
	}
	return audit.BackendDown
}

// welcome is the tagged OK of the login, which goes out last: with what the
// backend can do in the session's mode, as a code, and untagged too for a client that has asked
// before and may not look at codes.
func (s *session) welcome(a *attempt, up admitted, offered imap.Caps) error {
	caps := offered.String()
	s.out = s.out[:0]
	if s.said.askedCaps && caps != "" {
		s.out = append(append(append(s.out, "* CAPABILITY "...), caps...), "\r\n"...)
	}
	s.out = up.OK().AppendUntagged(s.out)
	s.out = append(append(s.out, a.tag...), " OK "...)
	if caps != "" {
		s.out = append(append(append(s.out, "[CAPABILITY "...), caps...), "] "...)
	}
	s.out = append(s.out, "Logged in.\r\n"...)
	_, err := s.conn.Write(s.out)
	return err
}

// notOffered names what a backend may list and a client behind a gateway must
// not use: TLS and logins are the gateway's, and UNAUTHENTICATE (RFC 8437)
// would let a client log in again past it.
func notOffered(capability string) bool {
	return capability == "STARTTLS" || capability == "LOGINDISABLED" || capability == "UNAUTHENTICATE" ||
		strings.HasPrefix(capability, "AUTH=")
}

func isTimeout(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }

func isClosed(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}
