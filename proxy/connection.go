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
	"imapgate/internal/imap"
	"imapgate/internal/limit"
	"imapgate/internal/parking"
	"imapgate/proxy/mux"
	"imapgate/proxy/splice"
	"imapgate/proxy/upstream"
	"imapgate/routing"
)

// connection is one client from accept to the login. What goes on after that is
// a splice.Relay and a session; nothing of the session stays.
type connection struct {
	// Set once.
	server     *Server
	listener   *listener
	acceptedAt time.Time
	deadline   time.Time // of everything before the login
	socket     *parking.BufferedConn
	overLimit  bool // there is no place for it

	// Owned by run.
	limits *limit.Conn // its place among the others; nil before it has one

	conn             *imap.Conn
	unbind           func() bool       // lets ctx go, which would end conn
	tls              *tls.Conn         // nil in the clear
	serverCert       *x509.Certificate // to the client, with tls
	client           audit.Client      // as far as it is known
	proxiedAddr      netip.AddrPort    // the client's address by a PROXY header
	proxyInfo        *auth.ProxyHeader // all that header says; nil without one
	preauth          preauthState      // what the client told us; STARTTLS forgets it
	proxyLocal       bool              // a PROXY header says that the connection is the balancer's own
	sentProbeCommand bool              // has sent a command that health checks send
	sentOtherCommand bool              // has sent another one
	preauthReleased  bool              // has left the places of strangers
	badCommands      int               // commands that were none
	attempts         int               // logins
	guesses          int               // of them, by the client's doing
	failures         int               // of them, whatever the cause
	outBuf           []byte            // scratch for answers
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

// run is the goroutine of a session; it ends when the client is logged in and
// relayed, or gone. A fault of ours ends this client alone.
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

// serve is one client's life, greeting to goodbye. Each step moves the
// connection one stage on or ends it.
func (c *connection) serve(ctx context.Context) error {
	if err := c.acceptClient(); err != nil { // PROXY header, TLS
		return fmt.Errorf("arrive: %w", err)
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
			err = c.admit(ctx, login, up) // the login is on record
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

// attempt is one login that a client tries, and where it got to.
type attempt struct {
	tag            string
	login          auth.Login
	rawLogin       auth.PresentedLogin
	earlyErr       error  // why it failed before anybody was asked
	finalChallenge []byte // challenge for a client whose login was accepted; nil: none
	receivedAt     time.Time

	// Filled by connect.
	authMethod     string
	tokenExpiry    time.Time // the token; zero: nobody knows, or there is none
	route          routing.Route
	lookupRoute    routing.Route // as routing gave it
	loginFromRoute bool          // the name for the backend is the route's
	mode           string
	upstreamResult string        // how the login at the backend ended; "" when it was not tried
	upstreamTime   time.Duration // how long that took
	queueTime      time.Duration // of it, until the backend's limits let it in
	delay          time.Duration // on purpose
	minTime        time.Duration // that the answer takes, where it must take as long as another's

	verifiedHere bool             // by the gateway: the credentials are right
	verdict      upstream.Verdict // of the backend, where nobody else has judged; Unclear also of an auth server
}

// connect finds out who the client is and where its mailbox lives, and logs in
// there. Each value can only come from the step before.
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

// verify finds out who the client is and where its mailbox lives. A login has its
// own time from here on, whatever is left before the connection's deadline: whoever
// sends a guess in the last moment must not get away before it is judged.
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
		return nil, errors.Join(errWrongUser, up.Close()) // never to happen: the tripwire of all tripwires
	}
	return up, nil
}

// isBackendAnswer reports whether a login that was accepted has asked the backend now,
// and not been believed from memory.
func isBackendAnswer(a *attempt, up backendLogin) bool {
	return a.mode == spliceMode || !up.OK().IsZero()
}

// clientInfo is how the backend is told who the client is.
func (c *connection) clientInfo() upstream.Client {
	return upstream.Client{
		Addr: c.clientAddr(), Local: addrPort(c.socket.LocalAddr()), Session: c.client.Session,
		PeerSession: c.preauth.parentSession, TTL: c.preauth.proxyTTL, ID: c.preauth.clientID,
	}
}

// clientAddr is the client's own address, as far as those in front are trusted.
func (c *connection) clientAddr() netip.AddrPort {
	if c.client.Addr.IsValid() {
		return c.client.Addr
	}
	return c.client.Peer
}

// admit finds the session a place among those of its user, and puts the login on
// record, without which nobody gets in. From here on a gateway that stops waits
// for the session to end.
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

// relay welcomes the client and hands both connections on. From here on the
// session's end is session.end's.
func (c *connection) relay(a *attempt, up backendLogin) error {
	c.releasePreauthSlot()
	sess := &session{
		server: c.server, limits: c.limits, client: c.client, startedAt: time.Now(),
		record:    audit.Session{User: up.User(), Backend: a.route.Backend, Mode: a.mode},
		loginName: a.route.Login,
	}
	c.server.sessions.add(up.User(), sess.route())
	c.server.deps.Metrics.BeginSession(a.mode)
	caps := c.server.offeredCaps(a, up.Caps())
	err := c.welcome(a, up, caps)
	c.server.deps.Metrics.CountLogin(loginResult(err), a.login.Mechanism, time.Since(a.receivedAt))
	if err != nil {
		_ = c.conn.Close()
		_ = up.Close()
		sess.end(audit.ClientLost, err, 0, 0)
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
		c.server.spliceSet.Start(clientSide, backendSide, c.server.tokenDeadline(a), sess.endSpliced)
	case pooledLogin:
		muxClient := mux.Client{
			Conn: client, Buffered: fromClient, AuditClient: &sess.client, Mode: mux.Mode(a.mode), Caps: caps,
			LoginFromRoute: a.loginFromRoute, ExpiresAt: c.server.tokenDeadline(a),
		}
		if quota := sess.quota(); quota != nil { // not a nil one in an interface
			muxClient.Quota = quota
		}
		c.server.hub.Start(muxClient, a.route.Backend, up.Account, sess.endMux)
	}
	return nil
}

// tokenDeadline is when a session has to end because of the token that opened it; zero:
// never.
func (s *Server) tokenDeadline(a *attempt) time.Time {
	if s.cfg.TokenGrace == 0 || a.tokenExpiry.IsZero() {
		return time.Time{}
	}
	return a.tokenExpiry.Add(s.cfg.TokenGrace)
}

// releasePreauthSlot gives the place of those who have not logged in to somebody else,
// once.
func (c *connection) releasePreauthSlot() {
	if !c.preauthReleased {
		c.preauthReleased = true
		c.server.preauthConns.Add(-1)
	}
}

// answerTimeout is the time for an answer, and for what the mechanism has the client say
// to it, where a login has outlasted the connection's deadline.
const answerTimeout = 5 * time.Second

// laterOf is the later of two times.
func laterOf(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// refuse answers a failed login. The answer comes no sooner than a fixed while
// after the command, so that its time says nothing about the user; the error
// returned ends the connection.
func (c *connection) refuse(ctx context.Context, a *attempt, cause error) error {
	r := refusalOf(cause)
	if ctx.Err() != nil {
		r = unavailableRefusal(audit.GatewayStopping)
	}
	inTime := c.delayRefusal(ctx, a, cause)
	c.recordRefusal(a, r, cause)
	switch {
	case ctx.Err() != nil:
		return ctx.Err() // a BYE, and no NO that comes too soon
	case !inTime, errors.Is(cause, errTooManyFailures) && !time.Now().Before(c.deadline):
		return &closeError{audit.PreauthTimeout, loginTimeoutText, nil} // as well
	case r.reply == "":
		return cause // there is nobody to be told
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
		return &closeError{audit.LoginAttempts, "[UNAVAILABLE] Too many failed logins.", nil}
	}
	if errors.Is(cause, errNotRecorded) {
		return &closeError{audit.AuditAway, "[UNAVAILABLE] Try again later.", nil} // its place cannot be taken twice
	}
	if late {
		return &closeError{audit.PreauthTimeout, loginTimeoutText, nil}
	}
	c.conn.SetDeadline(c.deadline)
	return nil
}
