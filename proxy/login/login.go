// Package login takes one login attempt of a client from its credentials to a connection at
// the user's backend, or to the answer that refuses it.
//
// The steps are Connector.Connect (limits, verification, route, backend), CountSession (a
// session slot) and RecordAccepted (the audit record). Refuse counts, delays and records an
// attempt that failed. The package reads and writes nothing at the client: package
// proxy parses the attempt and sends the answer.
package login

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"go.uber.org/zap"

	"imapgate/auth"
	"imapgate/internal/audit"
	"imapgate/internal/event"
	"imapgate/internal/identity"
	"imapgate/internal/imap"
	"imapgate/internal/limit"
	"imapgate/internal/logaggregator"
	"imapgate/internal/metrics"
	"imapgate/proxy/relay/mux"
	"imapgate/proxy/relay/mux/pool"
	"imapgate/proxy/upstream"
	"imapgate/routing"
)

// Config holds the settings of a Connector.
type Config struct {
	VerifyTimeout   time.Duration         // of the verification and the route lookup of one attempt
	MaxAuthAttempts int                   // failed logins of one connection
	Modes           map[string]event.Mode // mode of each backend by name; a missing one means splice
	FleetSecret     identity.Secret       // shared by all gateways, so that they answer alike about unknown users; zero: a random secret
	RouteByAuth     bool                  // the auth method http chooses the backend, not routing
	ResolveTTL      time.Duration         // lifetime of resolved backend addresses, with RouteByAuth
}

// Deps are the packages that a Connector depends on.
type Deps struct {
	Auth     *auth.Authenticator
	Routes   *routing.Router
	Backends map[string]*upstream.Backend
	Hub      *mux.Hub
	Audit    *audit.Log
	Metrics  *metrics.Metrics
	Log      *zap.Logger
}

// Connector connects clients to their backends. It is safe for concurrent use.
type Connector struct {
	// Set once.
	cfg         Config
	deps        Deps
	backends    *backendIndex
	outages     *outageSample
	denialTimes denialTimes
	// Separate aggregators, so that wrong passwords do not hide backend failures.
	refusedLog     *logaggregator.Aggregator // refused logins
	unavailableLog *logaggregator.Aggregator // logins that failed because of the gateway or a backend

	Blocks Blocks // users whose logins an operator has blocked

	// Set before the first login.
	MinDenialTime time.Duration // minimum time of a denial; New sets 200 ms
	DenialJitter  time.Duration // maximum of its random addition; New sets 50 ms
	BeforeVerify  func(*Client) // called before a login is verified; nil except in tests
}

// New returns a Connector.
func New(cfg Config, deps Deps) *Connector {
	return &Connector{
		cfg: cfg, deps: deps, backends: newBackendIndex(deps.Backends, cfg.ResolveTTL), outages: newOutageSample(cfg.FleetSecret),
		refusedLog:     logaggregator.New(deps.Log, "logins refused"),
		unavailableLog: logaggregator.New(deps.Log, "logins unavailable"),
		MinDenialTime:  minDenialTime, DenialJitter: denialJitter,
	}
}

// FlushLogs writes the summaries of log lines that were left out.
func (c *Connector) FlushLogs() {
	c.refusedLog.Flush()
	c.unavailableLog.Flush()
}

// Client is what a Connector knows about a client's connection. Its goroutine owns it.
type Client struct {
	Listener string
	Deadline time.Time    // for everything before the login
	Record   audit.Client // client details known so far
	Limits   *limit.Conn  // nil until the connection is counted

	attempts int // login attempts
	guesses  int // failures caused by the client's credentials or limits
	failures int // failed logins of any cause
}

// Addr returns the client's own address, as far as the proxies in front are trusted.
func (c *Client) Addr() netip.AddrPort {
	if c.Record.Addr.IsValid() {
		return c.Record.Addr
	}
	return c.Record.Peer
}

// Attempts returns the number of login attempts so far.
func (c *Client) Attempts() int { return c.attempts }

// Attempt is one login attempt and its progress. Its fields are read by package proxy; those
// of the second group are filled by Connect.
type Attempt struct {
	Tag            string // of the client's command
	Login          auth.Login
	Presented      auth.PresentedLogin
	Err            error  // failure found before verification
	FinalChallenge []byte // last challenge of an accepted login; nil: none
	ReceivedAt     time.Time

	Route          routing.Route
	LoginFromRoute bool // the route names the user at the backend
	Mode           event.Mode
	TokenExpiry    time.Time // expiry of the token; zero: unknown or no token

	authMethod     string
	lookupRoute    routing.Route       // as routing returned it
	upstreamResult event.ConnectResult // result of the login at the backend; "" if not tried
	upstreamTime   time.Duration       // duration of that login
	queueTime      time.Duration       // part of it spent waiting for the backend's limits
	delay          time.Duration       // deliberate delay of the answer
	minTime        time.Duration       // minimum answer time, to match another user's

	verifiedHere bool             // the gateway has verified the credentials
	verdict      upstream.Verdict // the backend's, if the gateway has not verified; Unclear also if an auth server did not answer
}

// Upstream is a login at a backend: an *upstream.Conn to be spliced, or a Pooled account.
type Upstream interface {
	User() identity.User
	Caps() imap.Caps
	OK() upstream.OK
	Close() error
}

// Pooled is an account of a pool, as Upstream.
type Pooled struct{ *pool.Account }

// Close closes the account. The error is nil.
func (p Pooled) Close() error {
	p.Account.Close()
	return nil
}

// Begin returns a new attempt of a client; info describes the client to package auth.
func (c *Client) Begin(tag string, info *auth.Client) *Attempt {
	c.attempts++
	info.Attempt = c.attempts
	return &Attempt{Tag: tag, ReceivedAt: time.Now(), Login: auth.Login{Client: info}}
}

// Connect verifies an attempt, resolves its route and logs in at its backend, to which
// forwarded describes the client. Each value can only come from the step before.
func (c *Connector) Connect(ctx context.Context, client *Client, a *Attempt, forwarded upstream.Client) (Upstream, error) {
	if err := c.beginLogin(ctx, client, a); err != nil {
		return nil, err
	}
	if a.Err != nil {
		return nil, a.Err
	}
	if err := c.deps.Audit.Ready(); err != nil {
		return nil, err
	}
	if c.BeforeVerify != nil {
		c.BeforeVerify(client)
	}
	id, err := c.verifyAndRoute(ctx, a)
	if err != nil {
		return nil, err
	}
	up, err := c.logIn(ctx, a, id, forwarded)
	if err != nil || c.cfg.RouteByAuth { // an auth server is not asked again
		return up, err
	}
	// A login takes time, and no session may start on a route that has changed since. Moving a
	// mailbox means ending its sessions and relies on no new one starting.
	if err := c.deps.Routes.Confirm(ctx, id.User(), a.lookupRoute); err != nil {
		return nil, errors.Join(err, up.Close())
	}
	return up, nil
}

// verifyAndRoute authenticates the client and resolves its route. It has its own timeout,
// whatever is left of the connection's deadline. A guess sent just before the deadline must not
// escape the count of failures.
func (c *Connector) verifyAndRoute(ctx context.Context, a *Attempt) (auth.Identity, error) {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.VerifyTimeout)
	defer cancel()
	id, err := c.deps.Auth.Authenticate(ctx, a.Login)
	if err != nil {
		if errors.Is(err, auth.ErrNoResponse) {
			a.verdict = upstream.VerdictUnclear
		}
		return auth.Identity{}, err
	}
	a.authMethod, a.Login.User, a.TokenExpiry, a.verifiedHere = id.Method(), id.User(), id.Expires(), id.IsVerified()
	if err = c.resolveRoute(ctx, a, id); !id.IsVerified() {
		err = c.maskRoute(a, id, err)
	}
	return id, err
}

// resolveRoute resolves the route of an identity, and checks that its backend accepts the
// credentials at hand.
func (c *Connector) resolveRoute(ctx context.Context, a *Attempt, id auth.Identity) (err error) {
	deps := &c.deps
	if c.cfg.RouteByAuth {
		a.Route, err = c.routeFromAuth(ctx, id)
	} else {
		a.Route, err = deps.Routes.Lookup(ctx, id.User())
	}
	if err != nil {
		return err
	}
	a.lookupRoute = a.Route
	if !c.Blocks.Until(id.User()).IsZero() {
		return fmt.Errorf("%w: after a kick", routing.ErrBlocked)
	}
	backend := deps.Backends[a.Route.Backend]
	switch {
	case backend == nil:
		return fmt.Errorf("%w: no backend %q", routing.ErrUnavailable, a.Route.Backend)
	case backend.UsesMasterLogin() && !id.IsVerified():
		return errUnverified
	case !backend.AcceptsCredentials(id.Password(), id.Token()):
		return errNoCredential
	}
	a.LoginFromRoute = !c.cfg.RouteByAuth && id.LoginName() == ""
	if id.LoginName() != "" {
		a.Route.Login = id.LoginName()
	}
	return nil
}

// routeFromAuth returns the route that an auth server sent with its verdict. Only
// configured backends are possible: no answer can send a password elsewhere.
func (c *Connector) routeFromAuth(ctx context.Context, id auth.Identity) (routing.Route, error) {
	name, err := c.backends.find(ctx, id.BackendAddr())
	if err != nil {
		return routing.Route{}, err
	}
	c.deps.Metrics.CountRouteLookup(event.OriginHTTP)
	return routing.Route{User: id.User(), Backend: name, Login: id.User().String(), Origin: event.OriginHTTP}, nil
}

// logIn logs in at the backend of the route.
func (c *Connector) logIn(ctx context.Context, a *Attempt, id auth.Identity, forwarded upstream.Client) (Upstream, error) {
	ctx, cancel := context.WithTimeout(ctx, c.deps.Backends[a.Route.Backend].MaxLoginTime())
	defer cancel()
	start := time.Now()
	up, err := c.loginInMode(ctx, a, id, upstream.Request{
		User: id.User(), Login: a.Route.Login, Password: id.Password(), Token: id.Token(), Client: forwarded, WaitTime: &a.queueTime,
	})
	a.upstreamResult, a.upstreamTime = upstream.ResultOf(ctx, err), time.Since(start)
	// A pool may also accept a login from memory.
	isAnswer := err != nil || a.Mode == event.ModeSplice || !up.OK().IsZero()
	if isAnswer && ctx.Err() == nil {
		key, size := outageKeyOf(a, a.Route.Backend)
		c.outages.recordAnswer(key, size, err, a.upstreamTime)
	}
	if !id.IsVerified() {
		a.verdict = upstream.VerdictOf(err)
		if a.verdict != upstream.VerdictNone && errors.Is(err, upstream.ErrDenied) {
			c.denialTimes.add(a.upstreamTime)
		}
	}
	switch {
	case !id.IsVerified() && a.verdict == upstream.VerdictNone && errors.As(err, new(*upstream.RefusedError)):
		return nil, fmt.Errorf("%w: %w", errNoVerdict, err)
	case id.IsVerified() && id.Token().IsZero() && errors.Is(err, upstream.ErrDenied):
		return nil, fmt.Errorf("%w: %w", errBackendDisagrees, err)
	case err != nil:
		return nil, err
	case up.User() != id.User() || a.Route.User != id.User():
		c.deps.Metrics.IdentityViolations.Inc()
		return nil, errors.Join(errWrongUser, up.Close()) // must not happen; the last check before the relay
	}
	return up, nil
}

// SelectMode returns the mode for a user's session on a route. A backend that violates the
// protocol assumptions of the mux modes is spliced.
func (c *Connector) SelectMode(user identity.User, r *routing.Route) event.Mode {
	if c.deps.Hub.ShouldSplice(r.Backend, user) {
		return event.ModeSplice
	}
	switch mode := cmp.Or(r.Mode, c.cfg.Modes[r.Backend]); mode {
	case event.ModeReuse, event.ModeResume:
		return mode
	case event.ModePark: // it is handled as resume
		return event.ModeResume
	}
	return event.ModeSplice
}

// loginInMode logs the user in for the mode of the session.
func (c *Connector) loginInMode(ctx context.Context, a *Attempt, id auth.Identity, request upstream.Request) (Upstream, error) {
	a.Mode = c.SelectMode(id.User(), &a.Route)
	location := mux.Location{Backend: a.Route.Backend}
	if a.LoginFromRoute { // a login name from an auth server is not looked up again
		location.Login = a.Route.Login
	}
	if a.Mode == event.ModeSplice {
		conn, err := c.deps.Backends[a.Route.Backend].Login(ctx, request)
		if err != nil {
			return nil, err // avoids a nil *Conn in an interface
		}
		c.deps.Hub.EvictElsewhere(request.User, location)
		return conn, nil
	}
	verification := pool.BackendDecides
	if id.IsVerified() {
		verification = pool.VerifiedHere
	}
	account, err := c.deps.Hub.Login(ctx, location, request, verification)
	if err != nil {
		return nil, err
	}
	account.SetTokenEnd(id.Expires())
	return Pooled{account}, nil
}

// CountSession acquires a session slot for the user.
func (c *Connector) CountSession(ctx context.Context, client *Client, user identity.User) error {
	err := client.Limits.BeginSession(ctx, user)
	if err == nil {
		return nil
	}
	c.RecordLimit(client, err, user)
	return fmt.Errorf("%w: %w", errTooManySessions, err)
}

// RecordAccepted writes the audit record without which no login succeeds.
func (c *Connector) RecordAccepted(client *Client, a *Attempt) error {
	if err := c.deps.Audit.LoginAccepted(&client.Record, a.auditLogin()); err != nil {
		return fmt.Errorf("%w: %w", ErrNotRecorded, err)
	}
	return nil
}
