package upstream

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/semaphore"
	"golang.org/x/time/rate"

	"imapgate/internal/descriptors"
	"imapgate/internal/event"
	"imapgate/internal/imap"
)

// Backend connects to one backend and logs users in there. It is safe for concurrent use.
type Backend struct {
	// Set once.
	cfg    Config
	hooks  Hooks
	log    *zap.Logger
	dialer *net.Dialer
	addr   netip.AddrPort // parsed Address; invalid if that has a host name

	slots    *semaphore.Weighted // of MaxLogins logins in progress
	connRate *rate.Limiter       // of new connections; nil: unlimited
	health   health
	// Which login forms the backend accepted.
	passwordForms, tokenForms formPreference
	lastCaps                  atomic.Pointer[imap.Caps] // of the last login; most are equal and share one
}

// New returns a Backend. The configuration must be valid; zero fields get their defaults.
func New(cfg Config, hooks Hooks, log *zap.Logger) *Backend {
	cfg.AnswerTimeout = cmp.Or(cfg.AnswerTimeout, answerTimeout)
	cfg.Sockets = cmp.Or(cfg.Sockets, descriptors.New(descriptors.Unlimited))
	addr, _ := netip.ParseAddrPort(cfg.Address) // an error: it has a host name
	return &Backend{
		cfg:      cfg,
		hooks:    hooks,
		log:      log.With(zap.String("backend", cfg.Name)),
		dialer:   newDialer(),
		addr:     addr,
		slots:    semaphore.NewWeighted(int64(cfg.MaxUpstreamLogins)),
		connRate: newConnRate(cfg.MaxUpstreamConnectsPerSecond),
	}
}

// newConnRate returns a limiter with a burst of a tenth of a second.
func newConnRate(perSecond int) *rate.Limiter {
	if perSecond == 0 {
		return nil
	}
	return rate.NewLimiter(rate.Limit(perSecond), max(1, perSecond/10))
}

// Name returns the backend's name in routes and logs.
func (b *Backend) Name() string { return b.cfg.Name }

// UsesMasterLogin reports whether the gateway logs in with its own credentials. The backend
// then trusts the gateway about who the user is.
func (b *Backend) UsesMasterLogin() bool { return b.cfg.Login == MasterLogin }

// Address returns the configured address.
func (b *Backend) Address() string { return b.cfg.Address }

// MaxLoginTime returns the longest time that Login can take.
func (b *Backend) MaxLoginTime() time.Duration {
	return b.cfg.UpstreamLoginTimeout + b.cfg.AnswerTimeout
}

// Login connects to the backend and logs the user of req in, within LoginTimeout and ctx.
// After the credentials are sent, the backend has at least AnswerTimeout: a login abandoned
// before its answer would be a guess without a verdict.
//
// Errors are ErrDenied, *RefusedError, ErrLoop, and ErrUnavailable for all others. Credentials
// are sent once: Login does not retry errors after that.
func (b *Backend) Login(ctx context.Context, req Request) (*Conn, error) {
	creds, err := b.buildCredentials(req)
	if err != nil {
		return nil, fmt.Errorf("log in at %s: %w", b.cfg.Name, err)
	}
	conn, err := b.tryLogin(ctx, request{req, creds})
	if err != nil {
		return nil, fmt.Errorf("log in at %s: %w", b.cfg.Name, publicError(err))
	}
	return conn, nil
}

// tryLogin runs one login if the backend is up, and records its result.
func (b *Backend) tryLogin(ctx context.Context, req request) (conn *Conn, err error) {
	if b.isLoop(req.Client) {
		b.recordResult(ctx, nil, ErrLoop)
		return nil, ErrLoop
	}
	began := time.Now()
	deadline := began.Add(b.cfg.UpstreamLoginTimeout)
	t, err := b.health.allow(ctx, deadline)
	if t != nil {
		defer b.health.endTrial(t)
	}
	if err == nil {
		err = b.awaitSlot(ctx, deadline)
	}
	req.addWaitTime(time.Since(began))
	if err == nil {
		conn, err = b.login(ctx, req, deadline)
	}
	b.recordResult(ctx, t, err)
	return conn, err
}

// publicError maps an error to those that callers branch on.
func publicError(err error) error {
	var refused *RefusedError
	if errors.Is(err, ErrDenied) || errors.Is(err, ErrLoop) || errors.As(err, &refused) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, sanitizedError{err})
}

// login runs one login in an acquired slot, up to the tagged OK.
func (b *Backend) login(ctx context.Context, req request, deadline time.Time) (*Conn, error) {
	release := sync.OnceFunc(b.releaseSlot)
	defer release()
	defer time.AfterFunc(maxSlotTime, release).Stop()
	b.cfg.Sockets.AddBackend()
	nc, err := b.connect(ctx, deadline)
	if err != nil {
		b.cfg.Sockets.RemoveBackend()
		return nil, err
	}
	conn, err := b.loginOn(ctx, nc, deadline, req)
	if err != nil {
		b.cfg.Sockets.RemoveBackend() // it is closed
		return nil, err
	}
	return conn, nil
}

// Sockets returns the counter of connections to the backend.
func (b *Backend) Sockets() *descriptors.Counter { return b.cfg.Sockets }

// request is a Request and the credentials to send for it.
type request struct {
	Request
	creds credentials
}

// loginOn logs in over nc. On success the Conn owns nc; otherwise nc is closed.
func (b *Backend) loginOn(ctx context.Context, nc net.Conn, deadline time.Time, req request) (*Conn, error) {
	if tcp, ok := nc.(*net.TCPConn); ok && b.cfg.WrapConn != nil && b.cfg.TLS != event.NoTLS {
		nc = b.cfg.WrapConn(tcp)
	}
	lc := newLoginConn(nc)
	release := lc.bind(ctx, deadline)
	conn, err := b.runLogin(lc, req)
	err = lc.certificateError(err)
	if !release() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		_ = lc.conn.Close() // a connection with a failed login is not reused
		return nil, err
	}
	return conn, nil
}

// runLogin runs the login on a new connection.
func (b *Backend) runLogin(lc *loginConn, req request) (*Conn, error) {
	if err := b.prepareLogin(lc, req.Client); err != nil {
		return nil, err
	}
	ok, err := b.authenticate(lc, req.creds, req.Client)
	if err != nil {
		return nil, err
	}
	if err := b.loginError(ok); err != nil {
		var forwarded *RefusedError
		if errors.As(err, &forwarded) {
			forwarded.Alerts = lc.alerts
		}
		return nil, err
	}
	alerts := lc.alerts // only those before the OK; later ones stay in buffered
	untagged, err := lc.refreshCaps(ok)
	if err != nil {
		return nil, err
	}
	nc, buffered := lc.conn.Detach()
	if !isOnlyUntagged(buffered) {
		return nil, errAfterLogin
	}
	conn := &Conn{user: req.User, caps: b.internCaps(lc.caps), ok: OK{alerts, "", sanitizeText(ok.Text)}, id: lc.id, sockets: b.cfg.Sockets, nc: nc, buffered: append(untagged, buffered...)}
	if isForwardable(ok.Code) && conn.ok.Text != "" {
		conn.ok.Code = ok.Code
	}
	return conn, nil
}

// internCaps returns the previous login's list if it is equal, so that sessions share one
// copy.
func (b *Backend) internCaps(caps imap.Caps) imap.Caps {
	if last := b.lastCaps.Load(); last != nil && last.String() == caps.String() {
		return *last
	}
	b.lastCaps.Store(&caps)
	return caps
}

// isLoop reports whether the login passed this gateway before, or too many gateways. A session
// id with SessionPrefix can only come from this gateway.
func (b *Backend) isLoop(c Client) bool {
	return b.hops(c) <= 1 || b.cfg.SessionPrefix != "" && strings.HasPrefix(c.PeerSession, b.cfg.SessionPrefix)
}

// hops returns how many gateways the login may still pass, including this one.
func (b *Backend) hops(c Client) int {
	if c.TTL != 0 {
		return min(c.TTL, b.cfg.ProxyTTL)
	}
	return b.cfg.ProxyTTL
}

// maxSlotTime is how long a login holds one of the MaxLogins slots. A login does its work in
// less. A backend that delays the answer to a wrong password takes longer, and a few such
// logins must not block all others.
const maxSlotTime = time.Second

// minReportedWait is the shortest wait that is reported; acquiring a free slot takes
// microseconds.
const minReportedWait = time.Millisecond

// awaitSlot waits for LoginRate and a slot, so that clients do not overload a backend that has
// just come back. It waits for the rate first, because that wait must not hold a slot.
func (b *Backend) awaitSlot(ctx context.Context, deadline time.Time) error {
	if err := b.awaitConnRate(ctx, deadline); err != nil {
		return err
	}
	return b.acquireSlot(ctx, deadline)
}

// addWaitTime adds a wait for LoginRate and a slot to WaitTime.
func (r *Request) addWaitTime(took time.Duration) {
	if r.WaitTime != nil && took >= minReportedWait {
		*r.WaitTime += took
	}
}

// awaitConnRate waits until LoginRate allows a new connection.
func (b *Backend) awaitConnRate(ctx context.Context, deadline time.Time) error {
	if b.connRate == nil {
		return nil
	}
	waitCtx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	began := time.Now()
	if err := b.connRate.Wait(waitCtx); err != nil { // at once if the wait would exceed the deadline
		b.reportWait(event.LimitUpstreamRate, ctx.Err() == nil)
		return fmt.Errorf("%w: %w", errBusy, err)
	}
	if time.Since(began) >= minReportedWait {
		b.reportWait(event.LimitUpstreamRate, false)
	}
	return nil
}

// acquireSlot waits for one of the MaxLogins slots.
func (b *Backend) acquireSlot(ctx context.Context, deadline time.Time) error {
	if b.slots.TryAcquire(1) {
		return nil
	}
	waitCtx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	err := b.slots.Acquire(waitCtx, 1)
	b.reportWait(event.LimitUpstreamLogins, errors.Is(err, context.DeadlineExceeded))
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return fmt.Errorf("%w: %w", errBusy, context.Cause(ctx))
	}
	return errBusy
}

// reportWait reports that a limit delayed a login, or refused it.
func (b *Backend) reportWait(limit event.Limit, timedOut bool) {
	if b.hooks.OnWait != nil {
		b.hooks.OnWait(Wait{limit, timedOut})
	}
}

func (b *Backend) releaseSlot() { b.slots.Release(1) }

// recordResult reports the result of a login to the metrics and to health; t is its trial, or
// nil. A BAD and a rejected token have no effect on health: clients can provoke both, and must
// be able neither to mark a backend down nor to keep it up.
func (b *Backend) recordResult(ctx context.Context, t *trial, err error) {
	res := classifyError(ctx, err)
	if b.hooks.OnConnect != nil {
		b.hooks.OnConnect(res)
	}
	switch res {
	case event.ConnectOK, event.ConnectDenied, event.ConnectRefused:
		if b.health.recordSuccess(time.Now()) {
			b.log.Info("backend is up again")
		}
	case event.ConnectUnreachable, event.ConnectTLS, event.ConnectTimeout, event.ConnectClosed, event.ConnectProtocol:
		if ctx.Err() == nil { // otherwise the caller's time ran out
			b.health.recordFailure(time.Now())
			return
		}
		b.health.recordUnknown(t)
	default:
		b.health.recordUnknown(t)
	}
}
