package login

import (
	"cmp"
	"errors"
	"imapgate/internal/audit"
	"imapgate/internal/event"
	"imapgate/internal/identity"
	"imapgate/internal/limit"
	"time"

	"go.uber.org/zap"
)

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

// claimedName returns the name of a login refused because of it, as the client sent it. In
// logins refused for another reason the name may be a misplaced password.
func (a *Attempt) claimedName(reason event.Reason) string {
	if reason != event.BadName {
		return ""
	}
	return a.Presented.ClaimedName
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
	entry.ClaimedName = a.claimedName(r.reason)
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
