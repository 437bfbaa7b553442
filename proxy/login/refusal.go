package login

import (
	"cmp"
	"context"
	"errors"
	"time"

	"go.uber.org/zap"

	"imapgate/auth"
	"imapgate/internal/audit"
	"imapgate/internal/event"
	"imapgate/internal/identity"
	"imapgate/internal/limit"
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
	// A client verified without a password whose backend needs one.
	errNoCredential = errors.New("backend needs the user's password, and the client sent none")
	errWrongUser    = errors.New("upstream belongs to another user")
	// A login refused before verification after too many failures.
	ErrTooManyFailures = errors.New("too many failed logins")
	// A right login of a user with too many sessions.
	errTooManySessions = errors.New("too many sessions")
	// A right login whose audit record could not be written.
	ErrNotRecorded = errors.New("login not recorded in the audit log")
	// A client that cancelled an exchange after the server's proof. The client then knows that
	// the password is right.
	ErrProofCancelled = errors.New("client cancelled after the server's proof")
	// A client that did not reply to the server's proof.
	ErrProofUnanswered = errors.New("client did not answer the server's proof")
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
	switch {
	case errors.Is(err, ErrProofUnanswered):
		return Refusal{result: event.ResultAbandoned, reason: event.ClientAbortedAfterProof}
	case errors.Is(err, ErrProofCancelled):
		return Refusal{Reply: "BAD Cancelled.", result: event.ResultRefused, reason: event.ClientAbortedAfterProof}
	case errors.Is(err, errMasked) && errors.Is(err, routing.ErrBlocked): // the client cannot distinguish it from an unavailable account
		return Refusal{Reply: replyUnavailable(err), result: event.ResultRefused, reason: event.UserBlocked}
	case errors.Is(err, errMasked):
		return Refusal{Reply: replyUnavailable(err), result: event.ResultRefused, reason: event.NoRoute}
	case errors.As(err, new(*upstream.MaintenanceError)):
		return Refusal{Reply: replyUnavailable(err), result: event.ResultUnavailable, reason: event.Maintenance}
	case errors.Is(err, errBackendDisagrees), errors.Is(err, errNoVerdict):
		return unavailableRefusal(event.BackendRefused)
	case errors.Is(err, auth.ErrTooLong):
		return Refusal{Reply: TooLongReply, result: event.ResultRefused, reason: event.BadExchange}
	case errors.Is(err, errTooManySessions):
		return Refusal{Reply: tooManySessionsReply, result: event.ResultLimited, reason: event.LimitReached}
	case errors.Is(err, ErrTooManyFailures):
		return Refusal{Reply: unavailableReply, result: event.ResultLimited, reason: event.LimitReached}
	case errors.Is(err, identity.ErrName):
		return denial(event.BadName)
	case errors.Is(err, routing.ErrBlocked): // also if auth denies for that reason
		return denial(event.UserBlocked)
	case errors.Is(err, auth.ErrDenied), errors.Is(err, upstream.ErrDenied):
		return denial(event.BadCredentials)
	case errors.Is(err, routing.ErrNoUser):
		return denial(event.NoRoute)
	case errors.As(err, &backendRefusal):
		return Refusal{
			Untagged: string(upstream.OK{Alerts: backendRefusal.Alerts}.AppendUntagged(nil)), Reply: "NO [" + backendRefusal.Code + "] " + backendRefusal.Text,
			result: event.ResultRefused, reason: event.BackendRefused,
		}
	}
	return unavailableRefusal(unavailableReason(err))
}

// replyUnavailable returns the reply to an error that is not the client's fault: the operator's
// text during maintenance.
func replyUnavailable(err error) string {
	var maintenance *upstream.MaintenanceError
	if errors.As(err, &maintenance) {
		return "NO [UNAVAILABLE] " + maintenance.Text
	}
	return unavailableReply
}

func denial(reason event.Reason) Refusal {
	return Refusal{Reply: authFailedReply, result: event.ResultRefused, reason: reason, IsDenial: true}
}

func unavailableRefusal(reason event.Reason) Refusal {
	return Refusal{Reply: unavailableReply, result: event.ResultUnavailable, reason: reason}
}

// unavailableReason returns the operator's reason for an error that is not the client's fault.
func unavailableReason(err error) event.Reason {
	for _, r := range unavailableReasons {
		if errors.Is(err, r.err) {
			return r.reason
		}
	}
	return cmp.Or(backendReasons[upstream.ResultOf(context.Background(), err)], event.BackendDown)
}

// unavailableReasons are the reasons of errors outside backends; the first that matches applies.
var unavailableReasons = []struct {
	err    error
	reason event.Reason
}{
	{context.Canceled, event.Shutdown},
	{audit.ErrUnavailable, event.AuditUnavailable},
	{auth.ErrBusy, event.Overload},
	{auth.ErrUnavailable, event.AuthUnavailable},
	{routing.ErrPaused, event.UserPaused},
	{routing.ErrMoved, event.Moved},
	{routing.ErrUnavailable, event.RoutingUnavailable},
	{errWrongUser, event.IdentityViolation},
	{errUnverified, event.NotAuthorized},
	{errNoCredential, event.NoPassword},
}

// backendReasons are the reasons of failed logins at a backend; BackendDown for all others.
var backendReasons = map[event.ConnectResult]event.Reason{
	event.ConnectLoop:        event.ForwardingLoop,
	event.ConnectTLS:         event.BackendTLS,
	event.ConnectTimeout:     event.BackendTimeout,
	event.ConnectProtocol:    event.BackendProtocol,
	event.ConnectBusy:        event.Overload,
	event.ConnectDenied:      event.BackendRefused,
	event.ConnectRefused:     event.BackendRefused,
	event.ConnectNotAccepted: event.BackendRefused,
}

// auditLogin returns the audit record of the attempt.
func (a *Attempt) auditLogin() *audit.Login {
	r := &audit.Login{
		User: cmp.Or(a.Login.User, a.Presented.User), Mechanism: a.Login.Mechanism, Method: a.authMethod,
		Backend: a.Route.Backend, RouteSource: string(a.Route.Origin), RouteAge: a.Route.Age,
		ConnectResult: a.upstreamResult, ConnectTime: a.upstreamTime - a.queueTime, Delay: a.delay + a.queueTime, Duration: time.Since(a.ReceivedAt),
	}
	if a.Login.Client != nil {
		r.Attempt = a.Login.Client.Attempt
	}
	if a.Route.Login != a.Login.User.String() {
		r.UpstreamUser = a.Route.Login
	}
	return r
}

// RecordInvalid records an attempt that was not a login in good order, and has its answer.
func (c *Connector) RecordInvalid(client *Client, a *Attempt, result event.Result, reason event.Reason) {
	c.recordRefusal(client, a, Refusal{result: result, reason: reason}, nil)
}

// recordRefusal records a failed login in the audit log, the metrics and the log, where
// failures of the gateway or a backend are warnings. A name that no account can have
// appears only in the audit log: it may be a password.
func (c *Connector) recordRefusal(client *Client, a *Attempt, r Refusal, cause error) {
	deps := &c.deps
	entry := a.auditLogin()
	if r.reason == event.BadName { // otherwise the name may be a misplaced password
		entry.ClaimedName = a.Presented.ClaimedName
	}
	if a.Presented.NameIsSecret && !a.verifiedHere {
		entry.User = identity.User{}
	}
	// If the record cannot be written, the next login is blocked; this one is over.
	_ = deps.Audit.LoginRefused(&client.Record, entry, r.reason)
	deps.Metrics.CountLogin(r.result, a.Login.Mechanism, time.Since(a.ReceivedAt))
	addr := client.Addr().Addr()
	level, lines, fields := zap.InfoLevel, c.refusedLog, []zap.Field{
		zap.String("session", client.Record.Session), zap.String("listener", client.Listener), zap.Stringer("address", addr),
		zap.Stringer("user", entry.User), zap.String("mechanism", a.Login.Mechanism), zap.String("backend", a.Route.Backend),
		zap.String("reason", string(r.reason)),
	}
	if limitErr := (*limit.Refusal)(nil); errors.As(cause, &limitErr) {
		fields = append(fields, zap.String("limit", string(limitErr.Reason)))
	}
	if r.result == event.ResultUnavailable || r.reason == event.BackendRefused {
		level, lines, fields = zap.WarnLevel, c.unavailableLog, append(fields, zap.Error(cause))
	}
	lines.Write(level, "login refused", addr, r.reason, fields)
}

// RecordPanic records a login that panics, and panics again. It is deferred.
func (c *Connector) RecordPanic(client *Client, a *Attempt) {
	if value := recover(); value != nil {
		c.recordRefusal(client, a, unavailableRefusal(event.InternalError), nil)
		panic(value) // the connection logs the original stack
	}
}

// RecordLimit records a refusal by a limit in the metrics and the audit log.
func (c *Connector) RecordLimit(client *Client, err error, user identity.User) {
	var r *limit.Refusal
	if !errors.As(err, &r) {
		return // its time ran out
	}
	subject := user.String()
	if r.Net.IsValid() {
		subject = r.Net.String()
	}
	c.deps.Metrics.Limits.CountRefusal(r.Reason)
	_ = c.deps.Audit.LimitHit(&client.Record, &audit.LimitHit{Limit: r.Reason, Subject: subject, Result: event.ResultRefused})
}
