package proxy

import (
	"context"
	"errors"
	"io"
	"os"
	"syscall"
	"time"

	"go.uber.org/zap"

	"imapgate/internal/event"
	"imapgate/internal/limit"
	"imapgate/internal/parking"
	"imapgate/proxy/relay"
)

// byeTimeout bounds the write of a BYE to a client that may not read.
const byeTimeout = time.Second

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
func (c *connection) closeWithBye(e *relay.CloseError) {
	timer := time.AfterFunc(byeTimeout, func() { _ = c.socket.Close() }) // crypto/tls would wait five seconds to send close_notify
	defer timer.Stop()
	if e.Bye != "" && (c.tls != nil || c.listener.TLS != event.ImplicitTLS) { // without TLS the client cannot read a BYE
		c.conn.WriteFinal(byeTimeout, "* BYE "+e.Bye+"\r\n")
	}
	if e.Bye != "" && e.Reason != event.TooManyConnections && e.Reason != event.Overload || e.Reason == event.ClientLogout {
		parking.Linger(c.conn.NetConn())
	}
	_ = c.conn.Close()
}

// recordEnd records the end of a connection that did not log in.
func (c *connection) recordEnd(e *relay.CloseError) {
	took, addr := time.Since(c.acceptedAt), c.client.Addr().Addr()
	if probe := c.probeType(e); probe != "" {
		c.listener.probeCounters[probe].Inc()
		if containsPeer(c.listener.balancers, c.client.Addr()) || containsPeer(c.listener.TrustedNetworks, c.client.Addr()) {
			c.server.deps.Audit.ProbeEnded(&c.client.Record, probe, e.Reason, took)
			return
		}
	}
	detail := ""
	level, fields := zap.InfoLevel, []zap.Field{
		zap.String("session", c.client.Record.Session), zap.String("listener", c.listener.Name), zap.Stringer("address", addr),
		zap.String("reason", string(e.Reason)), zap.Duration("dur", took),
	}
	if e.Err != nil {
		detail = e.Err.Error()
		fields = append(fields, zap.Error(e.Err))
	}
	_ = c.server.deps.Audit.ConnectionRefused(&c.client.Record, e.Reason, detail, took) // a lost record is counted
	if c.isAlreadyLogged(e) {
		level = zap.DebugLevel
	}
	c.server.endedLog.Write(level, "connection refused", addr, e.Reason, fields)
}

// isAlreadyLogged reports whether other log lines already explain why a connection ended
// without a login: a limit, or refused logins.
func (c *connection) isAlreadyLogged(e *relay.CloseError) bool {
	var limitErr *limit.Refusal
	switch e.Reason {
	case event.ClientClosed, event.ClientLogout, event.LoginAttempts:
		return c.client.Attempts() > 0
	}
	return errors.As(e.Err, &limitErr)
}

// probeType returns the probe type of a connection that ended in good order without a login
// attempt, such as a balancer's health check. It is "" for all others.
func (c *connection) probeType(e *relay.CloseError) event.Probe {
	sentNothing := errors.Is(e.Err, errNoProxyHeader) || e.Reason == event.HandshakeFailed && c.serverCert == nil
	switch {
	case c.sentOtherCommand || c.client.Attempts() > 0 || c.badCommands > 0 || c.conn.Buffered() > 0:
		return ""
	case e.Reason != event.ClientClosed && e.Reason != event.ClientLogout && !(sentNothing && isClosed(e.Err)):
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

// loginTimeoutText is the BYE of a connection whose deadline before the login has passed.
const loginTimeoutText = "Login took too long."

// closeErrorOf returns why a connection ended.
func (c *connection) closeErrorOf(ctx context.Context, err error) *relay.CloseError {
	var e *relay.CloseError
	switch {
	case ctx.Err() != nil:
		return &relay.CloseError{Reason: event.Shutdown, Bye: "[UNAVAILABLE] Server is going down."}
	case errors.As(err, &e):
		return e
	case isTimeout(err):
		return &relay.CloseError{Reason: event.PreauthTimeout, Bye: loginTimeoutText}
	case isClosed(err):
		return &relay.CloseError{Reason: event.ClientClosed}
	}
	return &relay.CloseError{Reason: event.ClientError, Err: err}
}

func isTimeout(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }

func isClosed(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}
