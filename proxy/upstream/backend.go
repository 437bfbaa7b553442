package upstream

import (
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
	"golang.org/x/time/rate"

	"imapgate/internal/descriptors"
	"imapgate/internal/imap"
)

// Backend is one backend, and the logins at it. It is safe for concurrent use.
type Backend struct {
	// Set once.
	cfg    Config
	hooks  Hooks
	log    *zap.Logger
	dialer *net.Dialer
	addr   netip.AddrPort // Address where it has no name

	slots    chan struct{} // a token for each login under way; MaxLogins of them
	connRate *rate.Limiter // of new connections; nil: as they come
	health   health
	// What was seen of the forms of a login.
	passwordForms, tokenForms formPreference
	lastCaps                  atomic.Pointer[imap.Caps] // as of the last login: most are equal, and share one
}

// New makes a Backend. The configuration is taken as valid; zero fields get
// their defaults.
func New(cfg Config, hooks Hooks, log *zap.Logger) *Backend {
	cfg = cfg.withDefaults()
	addr, _ := netip.ParseAddrPort(cfg.Address) // an error: it has a name
	return &Backend{
		cfg:      cfg,
		hooks:    hooks,
		log:      log.With(zap.String("backend", cfg.Name)),
		dialer:   newDialer(),
		addr:     addr,
		slots:    make(chan struct{}, cfg.MaxLogins),
		connRate: newConnRate(cfg.LoginRate),
	}
}

// newConnRate lets a tenth of a second's connections come at once.
func newConnRate(perSecond int) *rate.Limiter {
	if perSecond == 0 {
		return nil
	}
	return rate.NewLimiter(rate.Limit(perSecond), max(1, perSecond/10))
}

// Name is what routes and logs call the backend.
func (b *Backend) Name() string { return b.cfg.Name }

// UsesMasterLogin says whether logins are the gateway's own: the backend then takes our
// word for who the user is.
func (b *Backend) UsesMasterLogin() bool { return b.cfg.Login == MasterLogin }

// Address is where it is, as configured.
func (b *Backend) Address() string { return b.cfg.Address }

// MaxLoginTime is the longest that a Login can take.
func (b *Backend) MaxLoginTime() time.Duration { return b.cfg.LoginTimeout + b.cfg.AnswerTimeout }

// Login connects and logs who in, within LoginTimeout and ctx. Once the credentials
// are sent the backend has AnswerTimeout at least: a login that is given up before
// its answer would be a guess without a verdict.
//
// Errors: ErrDenied, *Refused, ErrLoop, and ErrUnavailable for everything else.
// Credentials are sent once: what goes wrong behind them is not tried again.
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

// tryLogin is one login, if the backend is worth a try, and what it teaches.
func (b *Backend) tryLogin(ctx context.Context, req request) (conn *Conn, err error) {
	if b.isLoop(req.Client) {
		b.recordResult(ctx, nil, ErrLoop)
		return nil, ErrLoop
	}
	began := time.Now()
	deadline := began.Add(b.cfg.LoginTimeout)
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

// publicError sorts an error into what callers branch on.
func publicError(err error) error {
	var refused *RefusedError
	if errors.Is(err, ErrDenied) || errors.Is(err, ErrLoop) || errors.As(err, &refused) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, sanitizedError{err})
}

// login is one login that has its turn, to the tagged OK.
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

// Sockets counts the connections to the backend; nil: nobody does.
func (b *Backend) Sockets() *descriptors.Counter { return b.cfg.Sockets }

// request is a Request and what is sent for it.
type request struct {
	Request
	creds credentials
}

// loginOn logs in over nc, which is the Conn's then, or closed.
func (b *Backend) loginOn(ctx context.Context, nc net.Conn, deadline time.Time, req request) (*Conn, error) {
	if tcp, ok := nc.(*net.TCPConn); ok && b.cfg.WrapConn != nil && b.cfg.TLSMode != NoTLS {
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
		_ = lc.conn.Close() // nothing of a failed login is used again
		return nil, err
	}
	return conn, nil
}

// runLogin is the dialogue on a new connection.
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
	alerts := lc.alerts // before the OK: what comes after it is kept as it is
	untagged, err := lc.refreshCaps(ok)
	if err != nil {
		return nil, err
	}
	nc, buffered := lc.conn.Detach()
	if !isOnlyUntagged(buffered) {
		return nil, errAfterLogin
	}
	conn := &Conn{user: req.User, caps: b.internCaps(lc.caps), ok: OK{alerts, "", sanitize(ok.Text)}, id: lc.id, sockets: b.cfg.Sockets, nc: nc, buffered: append(untagged, buffered...)}
	if isForwardable(ok.Code) && conn.ok.Text != "" {
		conn.ok.Code = ok.Code
	}
	return conn, nil
}

// internCaps is caps, or what another login was told in the same words: for as long as
// its session lasts, somebody may keep it.
func (b *Backend) internCaps(caps imap.Caps) imap.Caps {
	if last := b.lastCaps.Load(); last != nil && last.String() == caps.String() {
		return *last
	}
	b.lastCaps.Store(&caps)
	return caps
}

// isLoop says whether the login has come round. A session id of ours can only
// have been said by us.
func (b *Backend) isLoop(c Client) bool {
	return b.hops(c) <= 1 || b.cfg.SessionPrefix != "" && strings.HasPrefix(c.PeerSession, b.cfg.SessionPrefix)
}

// hops is how many gateways the login may pass, this one included.
func (b *Backend) hops(c Client) int {
	if c.TTL != 0 {
		return min(c.TTL, b.cfg.TTL)
	}
	return b.cfg.TTL
}

// maxSlotTime is how long a login counts as one of MaxLogins. The work of one is done
// long before; what takes longer is a backend that lets a wrong password wait,
// and a few of those must not keep everybody else out.
const maxSlotTime = time.Second

// minReportedWait is the shortest wait that was one: to be asked takes microseconds.
const minReportedWait = time.Millisecond

// awaitSlot waits for a turn, so that a herd of clients does not fall upon a
// backend that has just come back. The wait for the pace comes first: it must
// not use up another's turn.
func (b *Backend) awaitSlot(ctx context.Context, deadline time.Time) error {
	if err := b.awaitConnRate(ctx, deadline); err != nil {
		return err
	}
	return b.acquireSlot(ctx, deadline)
}

// addWaitTime notes the wait for a turn.
func (r *Request) addWaitTime(took time.Duration) {
	if r.WaitTime != nil && took >= minReportedWait {
		*r.WaitTime += took
	}
}

// awaitConnRate waits until there may be a new connection.
func (b *Backend) awaitConnRate(ctx context.Context, deadline time.Time) error {
	if b.connRate == nil {
		return nil
	}
	waitCtx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	began := time.Now()
	if err := b.connRate.Wait(waitCtx); err != nil { // at once when its time would come too late
		b.reportWait(LimitRate, ctx.Err() == nil)
		return fmt.Errorf("%w: %w", errBusy, err)
	}
	if time.Since(began) >= minReportedWait {
		b.reportWait(LimitRate, false)
	}
	return nil
}

// acquireSlot waits until there are fewer than MaxLogins.
func (b *Backend) acquireSlot(ctx context.Context, deadline time.Time) error {
	select {
	case b.slots <- struct{}{}:
		return nil
	default:
	}
	t := time.NewTimer(time.Until(deadline))
	defer t.Stop()
	select {
	case b.slots <- struct{}{}:
		b.reportWait(LimitLogins, false)
		return nil
	case <-t.C:
		b.reportWait(LimitLogins, true)
		return errBusy
	case <-ctx.Done():
		b.reportWait(LimitLogins, errors.Is(ctx.Err(), context.DeadlineExceeded))
		return fmt.Errorf("%w: %w", errBusy, context.Cause(ctx))
	}
}

// reportWait tells that a limit made a login wait, or refused it.
func (b *Backend) reportWait(limit string, timedOut bool) {
	if b.hooks.OnWait != nil {
		b.hooks.OnWait(Wait{limit, timedOut})
	}
}

func (b *Backend) releaseSlot() { <-b.slots }

// recordResult tells the metrics and the health of the backend how a login ended, which was a
// probe where p is one. A BAD
// and a token that is not taken say nothing of its health: a stranger can bring
// both about, and must be able neither to mark it down nor to keep it up.
func (b *Backend) recordResult(ctx context.Context, t *trial, err error) {
	res := classifyError(ctx, err)
	if b.hooks.OnConnect != nil {
		b.hooks.OnConnect(res)
	}
	switch res {
	case ResultOK, ResultDenied, ResultRefused:
		if b.health.recordSuccess(time.Now()) {
			b.log.Info("backend is back")
		}
	case ResultUnreachable, ResultTLS, ResultTimeout, ResultClosed, ResultProtocol:
		if ctx.Err() == nil { // or it was the caller's time that ran out
			b.health.recordFailure(time.Now())
			return
		}
		b.health.recordUnknown(t)
	default:
		b.health.recordUnknown(t)
	}
}
