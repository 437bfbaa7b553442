package proxy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"go.uber.org/zap"

	"imapgate/internal/audit"
	"imapgate/internal/identity"
	"imapgate/internal/limit"
	"imapgate/internal/metrics"
	"imapgate/internal/quiet"
	"imapgate/proxy/mux"
	"imapgate/proxy/splice"
)

// lastWords bounds the writing of a BYE to a client that may not read.
const lastWords = time.Second

// record is the attempt as the audit log writes it down.
func (a *attempt) record() *audit.Login {
	r := &audit.Login{
		User: cmp.Or(a.login.User, a.tried.User), Mechanism: a.login.Mechanism, Method: a.method,
		Backend: a.route.Backend, Route: string(a.route.From), RouteAge: a.route.Age,
		Connect: a.upstream, Connected: a.asked - a.queued, Delay: a.waited + a.queued, Took: time.Since(a.began),
	}
	if a.login.Client != nil {
		r.Attempt = a.login.Client.Attempt
	}
	if a.route.Login != a.login.User.String() {
		r.Upstream = a.route.Login
	}
	return r
}

// claimed is the name of a login that was refused for it, as the client gave it. With
// another mistake the password may stand where the name belongs.
func (a *attempt) claimed(why audit.Reason) string {
	if why != audit.BadName {
		return ""
	}
	return a.tried.Claimed
}

// recordRefusal writes a failed login down: audit, metrics and the log, there as a warning
// what is the gateway's or a backend's trouble. A name that no account can have is in
// the audit log alone: it may be a password.
func (s *session) recordRefusal(a *attempt, r refusal, why error) {
	rooms := &s.server.rooms
	entry := a.record()
	entry.Claimed = a.claimed(r.reason)
	if a.tried.Hidden && !a.decided {
		entry.User = identity.User{}
	}
	// Without room for the record the next login is blocked; this one is over.
	_ = rooms.Audit.LoginRefused(&s.who, entry, r.reason)
	rooms.Metrics.LoginDone(r.result, a.login.Mechanism, time.Since(a.began))
	from := s.origin().Addr()
	level, lines, fields := zap.InfoLevel, s.server.refused, []zap.Field{
		zap.String("session", s.who.Session), zap.String("listener", s.listener.Name), zap.Stringer("address", from),
		zap.Stringer("user", entry.User), zap.String("mechanism", a.login.Mechanism), zap.String("backend", a.route.Backend),
		zap.String("reason", string(r.reason)),
	}
	if over := (*limit.Refusal)(nil); errors.As(why, &over) {
		fields = append(fields, zap.String("limit", string(over.Reason)))
	}
	if r.result == metrics.Unavailable || r.reason == audit.BackendRefused {
		level, lines, fields = zap.WarnLevel, s.server.unavailable, append(fields, zap.Error(why))
	}
	lines.write(level, "login refused", from, r.reason, fields)
}

func loginResult(err error) string {
	if err != nil {
		return metrics.Abandoned
	}
	return metrics.Accepted
}

// goodbye ends a connection that did not log in: a BYE where there is one to
// say, the socket, the records.
func (s *session) goodbye(ctx context.Context, err error) {
	e := s.endOf(ctx, err)
	s.hangUp(e)
	s.leaveLobby()
	if s.visit != nil {
		s.visit.Leave()
	}
	s.server.removeConnection()
	if s.refused {
		s.refused = false
		<-s.server.refusals
	}
	s.recordEnd(e)
}

// hangUp closes the connection within lastWords, whatever the client does.
func (s *session) hangUp(e *ending) {
	cut := time.AfterFunc(lastWords, func() { _ = s.socket.Close() }) // TLS gives its own last word five seconds
	defer cut.Stop()
	if e.bye != "" && (s.tls != nil || s.listener.TLS != ImplicitTLS) { // before TLS there is nobody to hear it
		s.conn.LastWords(lastWords, "* BYE "+e.bye+"\r\n")
	}
	if e.bye != "" && e.reason != audit.TooMany && e.reason != audit.Overload || e.reason == audit.ClientLogout {
		quiet.Linger(s.conn.NetConn())
	}
	_ = s.conn.Close()
}

// recordEnd writes the end of a connection down that did not log in.
func (s *session) recordEnd(e *ending) {
	took, from := time.Since(s.began), s.origin().Addr()
	if kind := s.probe(e); kind != "" {
		s.listener.probes[kind].Inc()
		if trusts(s.listener.ProxyTrusted, s.origin()) || trusts(s.listener.Trusted, s.origin()) {
			s.server.rooms.Audit.Probe(&s.who, kind, e.reason, took)
			return
		}
	}
	detail := ""
	level, fields := zap.InfoLevel, []zap.Field{
		zap.String("session", s.who.Session), zap.String("listener", s.listener.Name), zap.Stringer("address", from),
		zap.String("reason", string(e.reason)), zap.Duration("dur", took),
	}
	if e.err != nil {
		detail = e.err.Error()
		fields = append(fields, zap.Error(e.err))
	}
	_ = s.server.rooms.Audit.ConnectionRefused(&s.who, e.reason, detail, took) // else it counts as lost
	if s.isTold(e) {
		level = zap.DebugLevel
	}
	s.server.ended.write(level, "connection refused", from, e.reason, fields)
}

// isTold reports whether other lines of the log say already why a connection ended
// without a login: that a limit was hit, or that its logins were refused.
func (s *session) isTold(e *ending) bool {
	var over *limit.Refusal
	switch e.reason {
	case audit.ClientClosed, audit.ClientLogout, audit.LoginAttempts:
		return s.tried > 0
	}
	return errors.As(e.err, &over)
}

// probe is the kind of a connection that ended in good order without an attempt to log
// in, as those of a balancer's health checks; "" of every other.
func (s *session) probe(e *ending) string {
	unheard := errors.Is(e.err, errNoProxyHeader) || e.reason == audit.HandshakeFailed && s.served == nil
	switch {
	case s.spoke || s.tried > 0 || s.bad > 0 || s.conn.Buffered() > 0:
		return ""
	case e.reason != audit.ClientClosed && e.reason != audit.ClientLogout && !(unheard && isClosed(e.err)):
		return ""
	case s.local:
		return metrics.ProbeLocal
	case s.looked:
		return metrics.ProbeIMAP
	case s.who.TLSVersion != 0:
		return metrics.ProbeTLS
	}
	return metrics.ProbeConnect
}

// errorOf is the last key of a session's line, which is there without an error too.
func errorOf(err error) zap.Field {
	if err == nil {
		return zap.String("err", "")
	}
	return zap.String("err", err.Error())
}

// tookTooLong is the BYE of a connection whose deadline before the login is over.
const tookTooLong = "Login took too long."

// endOf says why a connection ended.
func (s *session) endOf(ctx context.Context, err error) *ending {
	var e *ending
	switch {
	case ctx.Err() != nil:
		return &ending{reason: audit.GatewayStopping, bye: "[UNAVAILABLE] Server is going down."}
	case errors.As(err, &e):
		return e
	case isTimeout(err):
		return &ending{reason: audit.PreauthTimeout, bye: tookTooLong}
	case isClosed(err):
		return &ending{reason: audit.ClientClosed}
	}
	return &ending{reason: audit.ClientLost, err: err}
}

// recordFault writes the login down in which we broke down.
func (s *session) recordFault(a *attempt) {
	if fault := recover(); fault != nil {
		s.recordRefusal(a, unavailable(audit.InternalMistake), nil)
		panic(fault) // for recoverFault, with the stack as it was
	}
}

// recoverFault ends a client in whose service we broke down, and nobody else.
// The stack has no secret: Secrets print as nothing.
func (s *session) recoverFault() {
	fault := recover()
	if fault == nil {
		return
	}
	s.server.rooms.Log.Error("panic recovered", zap.String("session", s.who.Session), zap.String("fault", fmt.Sprintf("%T", fault)),
		zap.ByteString("stack", debug.Stack()))
	s.goodbye(context.Background(), &ending{reason: audit.InternalMistake})
}

// loggedIn is what is kept of a client while it is relayed: what its end will
// be recorded with.
type loggedIn struct {
	server  *Server
	visit   *limit.Visit
	who     audit.Client
	session audit.Session
	began   time.Time
	login   string // at the backend, by the route
}

func (l *loggedIn) place() Place { return Place{l.session.Backend, l.login, l.session.Mode} }

// spliced and multiplexed are ended for those who relay.
func (l *loggedIn) spliced(r splice.Result) {
	l.server.rooms.Sockets.RemoveBackend() // both are closed
	l.ended(audit.Reason(r.Reason), r.Err, r.Up, r.Down)
}

func (l *loggedIn) multiplexed(r mux.Result) {
	l.session.Commands = r.Commands
	l.ended(r.Reason, r.Err, r.Up, r.Down)
}

// ended is the one end of a session, called once from wherever it is seen.
func (l *loggedIn) ended(why audit.Reason, err error, up, down int64) {
	srv := l.server
	l.session.In, l.session.Out = uint64(up), uint64(down) // counts
	l.session.Took = time.Since(l.began)
	l.visit.Leave()
	srv.registry.remove(l.session.User, l.place())
	srv.removeConnection()
	_ = srv.rooms.Audit.SessionEnded(&l.who, &l.session, why)
	srv.rooms.Metrics.SessionEnded(l.session.Mode, string(why))
	srv.rooms.Log.Info("session", zap.String("session", l.who.Session), zap.Stringer("user", l.session.User),
		zap.String("backend", l.session.Backend), zap.String("mode", l.session.Mode), zap.String("stage", string(why)),
		zap.Int64("bytes", up+down), zap.Duration("dur", l.session.Took), errorOf(err))
}
