package proxy

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime/debug"
	"strconv"
	"time"

	"go.uber.org/zap"

	"imapgate/auth"
	"imapgate/internal/audit"
	"imapgate/internal/event"
	"imapgate/internal/imap"
	"imapgate/internal/parking"
	"imapgate/proxy/login"
	"imapgate/proxy/relay"
	"imapgate/proxy/relay/mux"
	"imapgate/proxy/relay/splice"
	"imapgate/proxy/upstream"
)

// connection is a client from accept to the end of its login. A relay and a session then
// replace it.
type connection struct {
	// Set once.
	server     *Server
	listener   *listener
	acceptedAt time.Time
	socket     *parking.BufferedConn
	overLimit  bool // refused for lack of a slot

	// Owned by run.
	client           login.Client // what is known of the client; also its deadline and its limits
	conn             *imap.Conn
	releaseCtx       func() bool       // ends the effect of ctx on conn
	tls              *tls.Conn         // nil without TLS
	serverCert       *x509.Certificate // served to the client; nil without TLS
	proxiedAddr      netip.AddrPort    // client address from the PROXY header
	proxyInfo        *auth.ProxyHeader // all of the PROXY header; nil without one
	preauth          preauthState      // client state that STARTTLS clears
	proxyLocal       bool              // the PROXY header marks the connection as the balancer's own
	sentProbeCommand bool              // the client sent a command that health checks use
	sentOtherCommand bool              // the client sent any other command
	preauthReleased  bool              // releasePreauthSlot has run
	badCommands      int               // invalid or misplaced commands
	up               login.Upstream    // logged in, and not a relay's yet; nil otherwise
	relayed          *relayedClient    // registered; its end returns the limits. nil before
	outBuf           []byte            // reused for replies
}

func (l *listener) newConnection(tcp *net.TCPConn) *connection {
	c := &connection{server: l.server, listener: l, acceptedAt: time.Now(), socket: parking.NewBufferedConn(tcp)}
	c.client = login.Client{
		Listener: l.Name, Deadline: c.acceptedAt.Add(l.server.cfg.PreauthTimeout),
		Record: audit.Client{Session: l.server.cfg.Instance + "-" + strconv.FormatUint(l.server.lastSessionID.Add(1), 36), Listener: l.Name, Peer: addrPort(tcp.RemoteAddr())},
	}
	c.conn = imap.NewConn(c.socket, imap.Commands, imap.MaxLongLine)
	c.conn.TryReadFunc = parking.ReadAvailable
	return c
}

func addrPort(a net.Addr) netip.AddrPort {
	if tcp, ok := a.(*net.TCPAddr); ok {
		ap := tcp.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	}
	return netip.AddrPort{}
}

// run serves the connection in its own goroutine. It returns when the client is logged in
// and relayed, or gone. A panic ends only this client.
func (c *connection) run(ctx context.Context) {
	srv := c.server
	defer srv.wg.Done()
	srv.deps.Metrics.PreauthConnections.Inc()
	defer srv.deps.Metrics.PreauthConnections.Dec()
	c.releaseCtx = c.conn.BindContext(ctx)
	defer func() { c.releaseCtx() }()
	defer c.recoverPanic()
	if err := c.serve(ctx); err != nil {
		c.close(ctx, err)
	}
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
	c.closeUpstream()
	if c.relayed != nil {
		_ = c.socket.Close()
		c.relayed.live.Finish(relay.Result{Reason: event.InternalError})
		return
	}
	c.close(context.Background(), &relay.CloseError{Reason: event.InternalError})
}

// serve takes a client from accept to its relay. Each step advances the connection or
// ends it.
func (c *connection) serve(ctx context.Context) error {
	if err := c.acceptClient(); err != nil { // PROXY header, TLS
		return fmt.Errorf("accept client: %w", err)
	}
	if err := c.sendLine("* OK [CAPABILITY " + c.capabilities() + "] IMAP ready."); err != nil {
		return fmt.Errorf("greet: %w", err)
	}
	for {
		attempt, err := c.readLogin(ctx) // answers CAPABILITY, ID, STARTTLS on the way
		if err != nil {
			return fmt.Errorf("read login: %w", err)
		}
		err = c.connect(ctx, attempt) // auth, then routing, then upstream
		if err == nil {
			err = c.admit(ctx, attempt) // writes the audit record
		}
		if err != nil {
			c.closeUpstream()
			if err = c.refuse(ctx, attempt, err); err != nil { // NO; BYE after too many
				return fmt.Errorf("refuse login: %w", err)
			}
			continue
		}
		c.relay(attempt)
		return nil
	}
}

// connect verifies the client, finds its backend and logs in there. The mechanism's proof is
// sent only when both the gateway and the backend have accepted the login.
func (c *connection) connect(ctx context.Context, a *login.Attempt) (err error) {
	logins := c.server.logins
	defer logins.RecordPanic(&c.client, a)
	c.up, err = logins.Connect(ctx, &c.client, a, upstream.Client{
		Addr: c.client.Addr(), Local: addrPort(c.socket.LocalAddr()), Session: c.client.Record.Session,
		PeerSession: c.preauth.parentSession, TTL: c.preauth.proxyTTL, ID: c.preauth.clientID,
	})
	if err != nil {
		return err
	}
	c.extendDeadline()
	return c.sendServerProof(a)
}

// closeUpstream closes a connection to the backend that no relay has got.
func (c *connection) closeUpstream() {
	if up := c.up; up != nil {
		c.up = nil
		_ = up.Close()
	}
}

// admit acquires a session slot and writes the audit record, without which no login
// succeeds. Afterwards a gateway that stops waits for the session to end.
func (c *connection) admit(ctx context.Context, a *login.Attempt) error {
	if err := c.server.logins.CountSession(ctx, &c.client, c.up.User()); err != nil {
		return err
	}
	if !c.releaseCtx() {
		return context.Cause(ctx)
	}
	if err := c.server.logins.RecordAccepted(&c.client, a); err != nil {
		c.releaseCtx = c.conn.BindContext(ctx)
		return err
	}
	return nil
}

// relay registers the session, sends the tagged OK and starts the relay. Afterwards
// relayedClient.OnEnd handles the end of the session.
func (c *connection) relay(a *login.Attempt) {
	c.releasePreauthSlot()
	result := event.ResultAbandoned
	defer func() {
		c.server.deps.Metrics.CountLogin(result, a.Login.Mechanism, time.Since(a.ReceivedAt))
	}()
	c.register(a)
	caps := c.up.Caps().Without(imap.IsGatewayCapability)
	if a.Mode != event.ModeSplice {
		caps = c.server.hub.OfferedCaps(a.Route.Backend, c.up.Caps())
	}
	if err := c.welcome(a, caps); err != nil {
		_ = c.conn.Close()
		c.closeUpstream()
		c.relayed.live.Finish(relay.Result{Reason: event.ClientError, Err: err})
		return
	}
	result = event.ResultAccepted
	c.startRelay(a, caps)
}

// startRelay hands both connections to a relay.
func (c *connection) startRelay(a *login.Attempt, caps imap.Caps) {
	client, fromClient := c.conn.Detach()
	if c.tls == nil {
		client = c.socket.TCPConn
		fromClient = append(fromClient, c.socket.TakeBuffered()...)
	}
	quota, up := c.relayed.quota(), c.up
	c.up = nil // the relay's from here on
	switch up := up.(type) {
	case *upstream.Conn:
		backend, fromBackend, hold := up.Detach()
		clientSide, backendSide := splice.Side{Conn: client, SendFirst: fromBackend}, splice.Side{Conn: backend, SendFirst: fromClient}
		if quota != nil {
			clientSide.Throttle, backendSide.Throttle = quota.Read, quota.Written
		}
		c.server.spliceSet.Start(c.relayed.live, clientSide, backendSide, hold.Release)
	case login.Pooled:
		muxClient := mux.Client{
			Conn: client, Buffered: fromClient, AuditClient: &c.relayed.client, Caps: caps, LoginFromRoute: a.LoginFromRoute,
		}
		if quota != nil { // avoids a nil *quota in an interface
			muxClient.Quota = quota
		}
		c.server.hub.Start(c.relayed.live, muxClient, up.Account)
	}
}

// register adds the client to the live sessions. The token of its login bounds its time if
// Config.SessionGrace is set.
func (c *connection) register(a *login.Attempt) {
	var expiresAt time.Time // zero: never
	if c.server.cfg.SessionGrace > 0 && !a.TokenExpiry.IsZero() {
		expiresAt = a.TokenExpiry.Add(c.server.cfg.SessionGrace)
	}
	address := ""
	if conn, ok := c.up.(*upstream.Conn); ok { // an account of a pool may have no connection yet
		address = conn.Address()
	}
	r := &relayedClient{server: c.server, limits: c.client.Limits, client: c.client.Record, mechanism: a.Login.Mechanism}
	r.live = c.server.sessions.Add(relay.Info{
		ID: c.client.Record.Session, User: c.up.User(), Backend: a.Route.Backend, Address: address, Login: a.Route.Login, Mode: a.Mode,
		Client: c.client.Addr(), StartedAt: time.Now(), ExpiresAt: expiresAt,
	}, r)
	if !c.server.logins.Blocks.Until(c.up.User()).IsZero() { // since the route was looked up
		r.live.End(event.Kicked)
	}
	c.relayed = r
	c.server.deps.Metrics.BeginSession(a.Mode)
}

// welcome sends the tagged OK of the login, last of all, with the capabilities of the
// backend in this mode. They are in a response code, and untagged too for a client that has
// sent CAPABILITY and may ignore response codes.
func (c *connection) welcome(a *login.Attempt, offered imap.Caps) error {
	caps := offered.String()
	c.outBuf = c.outBuf[:0]
	if c.preauth.repeatCaps && caps != "" {
		c.outBuf = append(append(append(c.outBuf, "* CAPABILITY "...), caps...), "\r\n"...)
	}
	c.outBuf = c.up.OK().AppendUntagged(c.outBuf)
	c.outBuf = append(append(c.outBuf, a.Tag...), " OK "...)
	if caps != "" {
		c.outBuf = append(append(append(c.outBuf, "[CAPABILITY "...), caps...), "] "...)
	}
	c.outBuf = append(c.outBuf, "Logged in.\r\n"...)
	_, err := c.conn.Write(c.outBuf)
	return err
}

// releasePreauthSlot frees the connection's pre-login slot. It is idempotent.
func (c *connection) releasePreauthSlot() {
	if !c.preauthReleased {
		c.preauthReleased = true
		c.server.preauthConns.Add(-1)
	}
}

// answerTimeout bounds the answer to a login that has outlasted the connection's deadline,
// and the client's reply to it where the mechanism has one.
const answerTimeout = 5 * time.Second

// extendDeadline gives the client at least answerTimeout.
func (c *connection) extendDeadline() {
	deadline := time.Now().Add(answerTimeout)
	if deadline.Before(c.client.Deadline) {
		deadline = c.client.Deadline
	}
	c.conn.SetDeadline(deadline)
}

// refuse answers a failed login. The answer takes a minimum time from the command on, so
// that its timing reveals nothing about the user. An error ends the connection.
func (c *connection) refuse(ctx context.Context, a *login.Attempt, cause error) error {
	r := c.server.logins.Refuse(ctx, &c.client, a, cause)
	isPast := !time.Now().Before(c.client.Deadline)
	switch {
	case ctx.Err() != nil:
		return ctx.Err() // BYE only; a NO would come too early
	case r.Late, errors.Is(cause, login.ErrTooManyFailures) && isPast:
		return &relay.CloseError{Reason: event.PreauthTimeout, Bye: loginTimeoutText} // also counted as a timeout
	case r.Reply == "":
		return cause // no client to answer
	}
	c.extendDeadline()
	if r.IsDenial {
		if err := c.sendTokenError(a); err != nil {
			return err
		}
	}
	if err := c.sendLine(r.Untagged + a.Tag + " " + r.Reply); err != nil {
		return err
	}
	switch {
	case c.server.logins.HasExhaustedAttempts(&c.client):
		return &relay.CloseError{Reason: event.LoginAttempts, Bye: "[UNAVAILABLE] Too many failed logins."}
	case errors.Is(cause, login.ErrNotRecorded):
		return &relay.CloseError{Reason: event.AuditUnavailable, Bye: "[UNAVAILABLE] Try again later."} // the session slot cannot be acquired twice
	case isPast:
		return &relay.CloseError{Reason: event.PreauthTimeout, Bye: loginTimeoutText}
	}
	c.conn.SetDeadline(c.client.Deadline)
	return nil
}
