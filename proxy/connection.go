package proxy

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"imapgate/auth"
	"imapgate/internal/audit"
	"imapgate/internal/event"
	"imapgate/internal/imap"
	"imapgate/internal/limit"
	"imapgate/internal/parking"
	"imapgate/proxy/mux"
	"imapgate/proxy/relay"
	"imapgate/proxy/splice"
	"imapgate/proxy/upstream"
	"imapgate/routing"
)

// connection is a client from accept to the end of its login. A relay and a session then
// replace it.
type connection struct {
	// Set once.
	server     *Server
	listener   *listener
	acceptedAt time.Time
	deadline   time.Time // for everything before the login
	socket     *parking.BufferedConn
	overLimit  bool // refused for lack of a slot

	// Owned by run.
	limits *limit.Conn // nil until openLimits

	conn             *imap.Conn
	unbind           func() bool       // stops ctx from closing conn
	tls              *tls.Conn         // nil without TLS
	serverCert       *x509.Certificate // served to the client; nil without TLS
	client           audit.Client      // client details known so far
	proxiedAddr      netip.AddrPort    // client address from the PROXY header
	proxyInfo        *auth.ProxyHeader // all of the PROXY header; nil without one
	preauth          preauthState      // client state that STARTTLS clears
	proxyLocal       bool              // the PROXY header marks the connection as the balancer's own
	sentProbeCommand bool              // the client sent a command that health checks use
	sentOtherCommand bool              // the client sent any other command
	preauthReleased  bool              // releasePreauthSlot has run
	badCommands      int               // invalid or misplaced commands
	attempts         int               // login attempts
	guesses          int               // failures caused by the client's credentials or limits
	failures         int               // failed logins of any cause
	outBuf           []byte            // reused for replies
}

func (l *listener) newConnection(tcp *net.TCPConn) *connection {
	c := &connection{server: l.server, listener: l, acceptedAt: time.Now(), socket: parking.NewBufferedConn(tcp)}
	c.deadline = c.acceptedAt.Add(l.server.cfg.PreauthTimeout)
	c.client = audit.Client{Session: l.server.newSessionID(), Listener: l.Name, Peer: addrPort(tcp.RemoteAddr())}
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
	c.unbind = c.conn.BindContext(ctx)
	defer func() { c.unbind() }()
	defer c.recoverPanic()
	if err := c.serve(ctx); err != nil {
		c.close(ctx, err)
	}
}

// serve takes a client from its greeting to its relay. Each step advances the connection or
// ends it.
func (c *connection) serve(ctx context.Context) error {
	if err := c.acceptClient(); err != nil { // PROXY header, TLS
		return fmt.Errorf("accept client: %w", err)
	}
	if err := c.sendGreeting(); err != nil {
		return fmt.Errorf("greet: %w", err)
	}
	for {
		login, err := c.readLogin(ctx) // answers CAPABILITY, ID, STARTTLS on the way
		if err != nil {
			return fmt.Errorf("read login: %w", err)
		}
		up, err := c.connect(ctx, login) // auth, then routing, then upstream
		if err == nil {
			err = c.admit(ctx, login, up) // writes the audit record
		}
		if err != nil {
			if err = c.refuse(ctx, login, err); err != nil { // NO; BYE after too many
				return fmt.Errorf("refuse login: %w", err)
			}
			continue
		}
		return c.relay(login, up)
	}
}

// attempt is one login attempt of a client and its progress.
type attempt struct {
	tag            string
	login          auth.Login
	rawLogin       auth.PresentedLogin
	earlyErr       error  // failure found before verification
	finalChallenge []byte // last challenge of an accepted login; nil: none
	receivedAt     time.Time

	// Filled by connect.
	authMethod     string
	tokenExpiry    time.Time // expiry of the token; zero: unknown or no token
	route          routing.Route
	lookupRoute    routing.Route // as routing returned it
	loginFromRoute bool          // the route names the user at the backend
	mode           event.Mode
	upstreamResult event.ConnectResult // result of the login at the backend; "" if not tried
	upstreamTime   time.Duration       // duration of that login
	queueTime      time.Duration       // part of it spent waiting for the backend's limits
	delay          time.Duration       // deliberate delay of the answer
	minTime        time.Duration       // minimum answer time, to match another user's

	verifiedHere bool             // the gateway has verified the credentials
	verdict      upstream.Verdict // the backend's, if the gateway has not verified; Unclear also if an auth server did not answer
}

// connect verifies the client, resolves its route and logs in at its backend. Each value
// can only come from the step before.
func (c *connection) connect(ctx context.Context, a *attempt) (backendLogin, error) {
	defer c.recordPanic(a)
	if err := c.beginLogin(ctx, a); err != nil {
		return nil, err
	}
	if a.earlyErr != nil {
		return nil, a.earlyErr
	}
	if err := c.server.deps.Audit.Ready(); err != nil {
		return nil, err
	}
	if c.server.beforeVerify != nil {
		c.server.beforeVerify(c)
	}
	id, err := c.verify(ctx, a)
	if err != nil {
		return nil, err
	}
	up, err := c.logInUpstream(ctx, a, id)
	if err != nil {
		return nil, err
	}
	if err := c.confirmRoute(ctx, a); err != nil {
		return nil, errors.Join(err, up.Close())
	}
	c.conn.SetDeadline(laterOf(c.deadline, time.Now().Add(answerTimeout)))
	if err := c.sendServerProof(a); err != nil {
		return nil, errors.Join(err, up.Close())
	}
	return up, nil
}

// verify authenticates the client and resolves its route. It has its own timeout, whatever
// is left of the connection's deadline. A guess sent just before the deadline must not
// escape the count of failures.
func (c *connection) verify(ctx context.Context, a *attempt) (auth.Identity, error) {
	ctx, cancel := context.WithTimeout(ctx, c.server.cfg.PreauthTimeout)
	defer cancel()
	id, err := c.server.deps.Auth.Authenticate(ctx, a.login)
	if err != nil {
		if errors.Is(err, auth.ErrNoResponse) {
			a.verdict = upstream.VerdictUnclear
		}
		return auth.Identity{}, err
	}
	a.authMethod, a.login.User, a.tokenExpiry, a.verifiedHere = id.Method(), id.User(), id.Expires(), id.IsVerified()
	return id, c.resolveMaskedRoute(ctx, a, id)
}

// logInUpstream logs in at the backend of the route.
func (c *connection) logInUpstream(ctx context.Context, a *attempt, id auth.Identity) (backendLogin, error) {
	ctx, cancel := context.WithTimeout(ctx, c.server.deps.Backends[a.route.Backend].MaxLoginTime())
	defer cancel()
	a.mode = c.server.selectMode(id.User(), &a.route)
	start := time.Now()
	up, err := c.server.loginUpstream(ctx, a, id, upstream.Request{
		User: id.User(), Login: a.route.Login, Password: id.Password(), Token: id.Token(), Client: c.clientInfo(),
		WaitTime: &a.queueTime,
	})
	a.upstreamResult, a.upstreamTime = upstream.ResultOf(err), time.Since(start)
	if ctx.Err() == nil && (err != nil || isBackendAnswer(a, up)) {
		c.server.outages.recordAnswer(outageKeyOf(a, a.route.Backend), err, a.upstreamTime)
	}
	if !id.IsVerified() {
		c.recordVerdict(a, err)
	}
	var backendRefusal *upstream.RefusedError
	if !id.IsVerified() && a.verdict == upstream.VerdictNone && errors.As(err, &backendRefusal) {
		return nil, fmt.Errorf("%w: %w", errNoVerdict, err)
	}
	if errors.Is(err, upstream.ErrDenied) && id.IsVerified() && id.Token().IsZero() {
		return nil, fmt.Errorf("%w: %w", errBackendDisagrees, err)
	}
	if err != nil {
		return nil, err
	}
	if up.User() != id.User() || a.route.User != id.User() {
		c.server.deps.Metrics.IdentityViolations.Inc()
		return nil, errors.Join(errWrongUser, up.Close()) // must not happen; the last check before the relay
	}
	return up, nil
}

// isBackendAnswer reports whether the backend itself has just accepted the login. A pool
// may also accept one from memory.
func isBackendAnswer(a *attempt, up backendLogin) bool {
	return a.mode == event.ModeSplice || !up.OK().IsZero()
}

// clientInfo returns the client details for the backend.
func (c *connection) clientInfo() upstream.Client {
	return upstream.Client{
		Addr: c.clientAddr(), Local: addrPort(c.socket.LocalAddr()), Session: c.client.Session,
		PeerSession: c.preauth.parentSession, TTL: c.preauth.proxyTTL, ID: c.preauth.clientID,
	}
}

// clientAddr returns the client's own address, as far as the proxies in front are trusted.
func (c *connection) clientAddr() netip.AddrPort {
	if c.client.Addr.IsValid() {
		return c.client.Addr
	}
	return c.client.Peer
}

// admit acquires a session slot and writes the audit record, without which no login
// succeeds. Afterwards a gateway that stops waits for the session to end.
func (c *connection) admit(ctx context.Context, a *attempt, up backendLogin) error {
	if err := c.acquireSessionSlot(ctx, up); err != nil {
		return err
	}
	if !c.unbind() {
		return errors.Join(context.Cause(ctx), up.Close())
	}
	err := c.server.deps.Audit.LoginAccepted(&c.client, a.auditLogin())
	if err != nil {
		c.unbind = c.conn.BindContext(ctx)
		return fmt.Errorf("%w: %w", errNotRecorded, errors.Join(err, up.Close()))
	}
	return nil
}

// relay sends the tagged OK and starts the relay of both connections. Afterwards
// session.end handles the end of the session.
func (c *connection) relay(a *attempt, up backendLogin) error {
	c.releasePreauthSlot()
	sess := &session{server: c.server, limits: c.limits, client: c.client}
	sess.live = c.server.sessions.Add(relay.Info{
		ID: c.client.Session, User: up.User(), Backend: a.route.Backend, Login: a.route.Login, Mode: a.mode,
		Client: c.clientAddr(), StartedAt: time.Now(), ExpiresAt: c.server.tokenDeadline(a),
	}, sess.end)
	c.server.deps.Metrics.BeginSession(a.mode)
	caps := c.server.offeredCaps(a, up.Caps())
	err := c.welcome(a, up, caps)
	c.server.deps.Metrics.CountLogin(loginResult(err), a.login.Mechanism, time.Since(a.receivedAt))
	if err != nil {
		_ = c.conn.Close()
		_ = up.Close()
		sess.live.Finish(relay.Result{Reason: event.ClientError, Err: err})
		return nil
	}
	client, fromClient := c.conn.Detach()
	if c.tls == nil {
		client = c.socket.TCPConn
		fromClient = append(fromClient, c.socket.TakeBuffered()...)
	}
	switch up := up.(type) {
	case *upstream.Conn:
		backend, fromBackend := up.Detach()
		clientSide, backendSide := splice.Side{Conn: client, Buffered: fromBackend}, splice.Side{Conn: backend, Buffered: fromClient}
		if quota := sess.quota(); quota != nil {
			clientSide.Throttle, backendSide.Throttle = quota.Read, quota.Written
		}
		c.server.spliceSet.Start(sess.live, clientSide, backendSide, c.server.deps.Sockets.RemoveBackend)
	case pooledLogin:
		muxClient := mux.Client{
			Conn: client, Buffered: fromClient, AuditClient: &sess.client, Caps: caps, LoginFromRoute: a.loginFromRoute,
		}
		if quota := sess.quota(); quota != nil { // avoids a nil *quota in an interface
			muxClient.Quota = quota
		}
		c.server.hub.Start(sess.live, muxClient, up.Account)
	}
	return nil
}

// tokenDeadline returns when the session must end because of the token that opened it. Zero
// means never.
func (s *Server) tokenDeadline(a *attempt) time.Time {
	if s.cfg.TokenGrace == 0 || a.tokenExpiry.IsZero() {
		return time.Time{}
	}
	return a.tokenExpiry.Add(s.cfg.TokenGrace)
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

// laterOf returns the later of two times.
func laterOf(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// refuse answers a failed login. The answer takes a minimum time from the command on, so
// that its timing reveals nothing about the user. An error ends the connection.
func (c *connection) refuse(ctx context.Context, a *attempt, cause error) error {
	r := refusalOf(cause)
	if ctx.Err() != nil {
		r = unavailableRefusal(event.Shutdown)
	}
	inTime := c.delayRefusal(ctx, a, cause)
	c.recordRefusal(a, r, cause)
	switch {
	case ctx.Err() != nil:
		return ctx.Err() // BYE only; a NO would come too early
	case !inTime, errors.Is(cause, errTooManyFailures) && !time.Now().Before(c.deadline):
		return &closeError{event.PreauthTimeout, loginTimeoutText, nil} // also counted as a timeout
	case r.reply == "":
		return cause // no client to answer
	}
	late := !time.Now().Before(c.deadline)
	c.conn.SetDeadline(laterOf(c.deadline, time.Now().Add(answerTimeout)))
	if r.isDenial {
		if err := c.sendTokenError(a); err != nil {
			return err
		}
	}
	if err := c.sendLine(r.untagged + a.tag + " " + r.reply); err != nil {
		return err
	}
	if c.hasExhaustedAttempts() {
		return &closeError{event.LoginAttempts, "[UNAVAILABLE] Too many failed logins.", nil}
	}
	if errors.Is(cause, errNotRecorded) {
		return &closeError{event.AuditUnavailable, "[UNAVAILABLE] Try again later.", nil} // the session slot cannot be acquired twice
	}
	if late {
		return &closeError{event.PreauthTimeout, loginTimeoutText, nil}
	}
	c.conn.SetDeadline(c.deadline)
	return nil
}
