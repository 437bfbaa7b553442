package proxy

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"go.uber.org/zap"

	"imapgate/internal/audit"
	"imapgate/internal/event"
	"imapgate/internal/limit"
	"imapgate/internal/parking"
	"imapgate/proxy/relay"
)

// byeTimeout bounds the write of a BYE to a client that may not read.
const byeTimeout = time.Second

func loginResult(err error) event.Result {
	if err != nil {
		return event.ResultAbandoned
	}
	return event.ResultAccepted
}

// close ends a connection that did not log in: BYE, socket, records.
func (c *connection) close(ctx context.Context, err error) {
	e := c.closeErrorOf(ctx, err)
	c.closeWithBye(e)
	c.releasePreauthSlot()
	if c.client.Limits != nil {
		c.client.Limits.Close()
	}
	c.server.removeConnection()
	if c.overLimit {
		c.overLimit = false
		<-c.server.refusalSlots
	}
	c.recordEnd(e)
}

// closeWithBye sends the BYE, if any, and closes the connection within byeTimeout.
func (c *connection) closeWithBye(e *closeError) {
	timer := time.AfterFunc(byeTimeout, func() { _ = c.socket.Close() }) // crypto/tls would wait five seconds to send close_notify
	defer timer.Stop()
	if e.bye != "" && (c.tls != nil || c.listener.TLS != ImplicitTLS) { // without TLS the client cannot read a BYE
		c.conn.WriteFinal(byeTimeout, "* BYE "+e.bye+"\r\n")
	}
	if e.bye != "" && e.reason != event.TooManyConnections && e.reason != event.Overload || e.reason == event.ClientLogout {
		parking.Linger(c.conn.NetConn())
	}
	_ = c.conn.Close()
}

// recordEnd records the end of a connection that did not log in.
func (c *connection) recordEnd(e *closeError) {
	took, addr := time.Since(c.acceptedAt), c.client.Addr().Addr()
	if probe := c.probeType(e); probe != "" {
		c.listener.probeCounters[probe].Inc()
		if containsPeer(c.listener.ProxyProtocol.networks(), c.client.Addr()) || containsPeer(c.listener.TrustedNetworks, c.client.Addr()) {
			c.server.deps.Audit.ProbeEnded(&c.client.Record, probe, e.reason, took)
			return
		}
	}
	detail := ""
	level, fields := zap.InfoLevel, []zap.Field{
		zap.String("session", c.client.Record.Session), zap.String("listener", c.listener.Name), zap.Stringer("address", addr),
		zap.String("reason", string(e.reason)), zap.Duration("dur", took),
	}
	if e.err != nil {
		detail = e.err.Error()
		fields = append(fields, zap.Error(e.err))
	}
	_ = c.server.deps.Audit.ConnectionRefused(&c.client.Record, e.reason, detail, took) // a lost record is counted
	if c.isAlreadyLogged(e) {
		level = zap.DebugLevel
	}
	c.server.endedLog.Write(level, "connection refused", addr, e.reason, fields)
}

// isAlreadyLogged reports whether other log lines already explain why a connection ended
// without a login: a limit, or refused logins.
func (c *connection) isAlreadyLogged(e *closeError) bool {
	var limitErr *limit.Refusal
	switch e.reason {
	case event.ClientClosed, event.ClientLogout, event.LoginAttempts:
		return c.client.Attempts() > 0
	}
	return errors.As(e.err, &limitErr)
}

// probeType returns the probe type of a connection that ended in good order without a login
// attempt, such as a balancer's health check. It is "" for all others.
func (c *connection) probeType(e *closeError) event.Probe {
	sentNothing := errors.Is(e.err, errNoProxyHeader) || e.reason == event.HandshakeFailed && c.serverCert == nil
	switch {
	case c.sentOtherCommand || c.client.Attempts() > 0 || c.badCommands > 0 || c.conn.Buffered() > 0:
		return ""
	case e.reason != event.ClientClosed && e.reason != event.ClientLogout && !(sentNothing && isClosed(e.err)):
		return ""
	case c.proxyLocal:
		return event.ProbeLocal
	case c.sentProbeCommand:
		return event.ProbeIMAP
	case c.client.Record.TLSVersion != 0:
		return event.ProbeTLS
	}
	return event.ProbeConnect
}

// errorField is the last field of a session's log line; it is present without an error too.
func errorField(err error) zap.Field {
	if err == nil {
		return zap.String("err", "")
	}
	return zap.String("err", err.Error())
}

// loginTimeoutText is the BYE of a connection whose deadline before the login has passed.
const loginTimeoutText = "Login took too long."

// closeErrorOf returns why a connection ended.
func (c *connection) closeErrorOf(ctx context.Context, err error) *closeError {
	var e *closeError
	switch {
	case ctx.Err() != nil:
		return &closeError{reason: event.Shutdown, bye: "[UNAVAILABLE] Server is going down."}
	case errors.As(err, &e):
		return e
	case isTimeout(err):
		return &closeError{reason: event.PreauthTimeout, bye: loginTimeoutText}
	case isClosed(err):
		return &closeError{reason: event.ClientClosed}
	}
	return &closeError{reason: event.ClientError, err: err}
}

// recoverPanic ends the client whose goroutine panicked, and only that one. The stack
// contains no secrets: identity.Secret does not print them.
func (c *connection) recoverPanic() {
	value := recover()
	if value == nil {
		return
	}
	c.server.deps.Log.Error("panic recovered", zap.String("session", c.client.Record.Session), zap.String("fault", fmt.Sprintf("%T", value)),
		zap.ByteString("stack", debug.Stack()))
	c.close(context.Background(), &closeError{reason: event.InternalError})
}

// session holds the data of a relayed client for the records of its end.
type session struct {
	server *Server
	limits *limit.Conn
	client audit.Client
	live   *relay.Session
}

// end records the end of a session and releases its slots. It is called once.
func (s *session) end(r relay.Result) {
	srv, live := s.server, s.live.Info()
	record := audit.Session{
		User: live.User, Backend: live.Backend, Mode: live.Mode, Commands: r.Commands, Duration: time.Since(live.StartedAt),
		BytesIn: uint64(r.Up), BytesOut: uint64(r.Down), // never negative
	}
	s.limits.Close()
	srv.removeConnection()
	_ = srv.deps.Audit.SessionEnded(&s.client, &record, r.Reason)
	srv.deps.Metrics.EndSession(live.Mode, r.Reason)
	srv.deps.Log.Info("session", zap.String("session", live.ID), zap.Stringer("user", live.User),
		zap.String("backend", live.Backend), zap.String("mode", string(live.Mode)), zap.String("reason", string(r.Reason)),
		zap.Int64("bytes", r.Up+r.Down), zap.Duration("dur", record.Duration), errorField(r.Err))
}
