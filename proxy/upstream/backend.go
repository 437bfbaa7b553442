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

	slots  chan struct{} // a token for each login under way; MaxLogins of them
	pace   *rate.Limiter // of new connections; nil: as they come
	health health
	// What was seen of the forms of a login.
	passwords, tokens habit
	caps              atomic.Pointer[imap.Caps] // as of the last login: most are equal, and share one
}

// New makes a Backend. The configuration is taken as valid; zero fields get
// their defaults.
func New(cfg Config, hooks Hooks, log *zap.Logger) *Backend {
	cfg = cfg.withDefaults()
	addr, _ := netip.ParseAddrPort(cfg.Address) // an error: it has a name
	return &Backend{
		cfg:    cfg,
		hooks:  hooks,
		log:    log.With(zap.String("backend", cfg.Name)),
		dialer: newDialer(),
		addr:   addr,
		slots:  make(chan struct{}, cfg.MaxLogins),
		pace:   newPace(cfg.LoginRate),
	}
}

// newPace lets a tenth of a second's connections come at once.
func newPace(perSecond int) *rate.Limiter {
	if perSecond == 0 {
		return nil
	}
	return rate.NewLimiter(rate.Limit(perSecond), max(1, perSecond/10))
}

// Name is what routes and logs call the backend.
func (b *Backend) Name() string { return b.cfg.Name }

// Master says whether logins are the gateway's own: the backend then takes our
// word for who the user is.
func (b *Backend) Master() bool { return b.cfg.Login == MasterLogin }

// Address is where it is, as configured.
func (b *Backend) Address() string { return b.cfg.Address }

// LoginLimit is the longest that a Login can take.
func (b *Backend) LoginLimit() time.Duration { return b.cfg.LoginTimeout + b.cfg.AnswerTimeout }

// Login connects and logs who in, within LoginTimeout and ctx. Once the credentials
// are sent the backend has AnswerTimeout at least: a login that is given up before
// its answer would be a guess without a verdict.
//
// Errors: ErrDenied, *Refused, ErrLoop, and ErrUnavailable for everything else.
// Credentials are sent once: what goes wrong behind them is not tried again.
func (b *Backend) Login(ctx context.Context, who Request) (*Conn, error) {
	creds, err := b.credentials(who)
	if err != nil {
		return nil, fmt.Errorf("log in at %s: %w", b.cfg.Name, err)
	}
	conn, err := b.tryLogin(ctx, request{who, creds})
	if err != nil {
		return nil, fmt.Errorf("log in at %s: %w", b.cfg.Name, public(err))
	}
	return conn, nil
}

// tryLogin is one login, if the backend is worth a try, and what it teaches.
func (b *Backend) tryLogin(ctx context.Context, who request) (conn *Conn, err error) {
	if b.looping(who.Client) {
		b.learn(ctx, nil, ErrLoop)
		return nil, ErrLoop
	}
	asked := time.Now()
	deadline := asked.Add(b.cfg.LoginTimeout)
	p, err := b.health.admit(ctx, deadline)
	if p != nil {
		defer b.health.end(p)
	}
	if err == nil {
		err = b.enter(ctx, deadline)
	}
	who.waited(time.Since(asked))
	if err == nil {
		conn, err = b.login(ctx, who, deadline)
	}
	b.learn(ctx, p, err)
	return conn, err
}

// public sorts an error into what callers branch on.
func public(err error) error {
	var refused *Refused
	if errors.Is(err, ErrDenied) || errors.Is(err, ErrLoop) || errors.As(err, &refused) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, told{err})
}

// login is one login that has its turn, to the tagged OK.
func (b *Backend) login(ctx context.Context, who request, deadline time.Time) (*Conn, error) {
	leave := sync.OnceFunc(b.leave)
	defer leave()
	defer time.AfterFunc(turn, leave).Stop()
	b.cfg.Sockets.AddBackend()
	nc, err := b.connect(ctx, deadline)
	if err != nil {
		b.cfg.Sockets.RemoveBackend()
		return nil, err
	}
	conn, err := b.over(ctx, nc, deadline, who)
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

// over logs in over nc, which is the Conn's then, or closed.
func (b *Backend) over(ctx context.Context, nc net.Conn, deadline time.Time, who request) (*Conn, error) {
	if tcp, ok := nc.(*net.TCPConn); ok && b.cfg.Socket != nil && b.cfg.TLSMode != NoTLS {
		nc = b.cfg.Socket(tcp)
	}
	d := newDialogue(nc)
	release := d.bind(ctx, deadline)
	conn, err := b.converse(d, who)
	err = d.refusedBy(err)
	if !release() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		_ = d.conn.Close() // nothing of a failed login is used again
		return nil, err
	}
	return conn, nil
}

// converse is the dialogue on a new connection.
func (b *Backend) converse(d *dialogue, who request) (*Conn, error) {
	if err := b.open(d, who.Client); err != nil {
		return nil, err
	}
	ok, err := b.authenticate(d, who.creds, who.Client)
	if err != nil {
		return nil, err
	}
	if err := b.verdict(ok); err != nil {
		var forwarded *Refused
		if errors.As(err, &forwarded) {
			forwarded.Alerts = d.alerts
		}
		return nil, err
	}
	alerts := d.alerts // before the OK: what comes after it is kept as it is
	kept, err := d.after(ok)
	if err != nil {
		return nil, err
	}
	nc, rest := d.conn.Detach()
	if !onlyUntagged(rest) {
		return nil, errBehind
	}
	conn := &Conn{user: who.User, caps: b.shared(d.caps), ok: OK{alerts, "", clean(ok.Text)}, id: d.id, sockets: b.cfg.Sockets, nc: nc, rest: append(kept, rest...)}
	if forwardable(ok.Code) && conn.ok.Text != "" {
		conn.ok.Code = ok.Code
	}
	return conn, nil
}

// shared is caps, or what another login was told in the same words: for as long as
// its session lasts, somebody may keep it.
func (b *Backend) shared(caps imap.Caps) imap.Caps {
	if last := b.caps.Load(); last != nil && last.String() == caps.String() {
		return *last
	}
	b.caps.Store(&caps)
	return caps
}

// looping says whether the login has come round. A session id of ours can only
// have been said by us.
func (b *Backend) looping(c Client) bool {
	return b.hops(c) <= 1 || b.cfg.Instance != "" && strings.HasPrefix(c.Via, b.cfg.Instance)
}

// hops is how many gateways the login may pass, this one included.
func (b *Backend) hops(c Client) int {
	if c.TTL != 0 {
		return min(c.TTL, b.cfg.TTL)
	}
	return b.cfg.TTL
}

// turn is how long a login counts as one of MaxLogins. The work of one is done
// long before; what takes longer is a backend that lets a wrong password wait,
// and a few of those must not keep everybody else out.
const turn = time.Second

// noticed is the shortest wait that was one: to be asked takes microseconds.
const noticed = time.Millisecond

// enter waits for a turn, so that a herd of clients does not fall upon a
// backend that has just come back. The wait for the pace comes first: it must
// not use up another's turn.
func (b *Backend) enter(ctx context.Context, deadline time.Time) error {
	if err := b.keepPace(ctx, deadline); err != nil {
		return err
	}
	return b.takeTurn(ctx, deadline)
}

// waited notes the wait for a turn.
func (r *Request) waited(took time.Duration) {
	if r.Waited != nil && took >= noticed {
		*r.Waited += took
	}
}

// keepPace waits until there may be a new connection.
func (b *Backend) keepPace(ctx context.Context, deadline time.Time) error {
	if b.pace == nil {
		return nil
	}
	soon, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	began := time.Now()
	if err := b.pace.Wait(soon); err != nil { // at once when its time would come too late
		b.heldUp(LimitRate, ctx.Err() == nil)
		return fmt.Errorf("%w: %w", errBusy, err)
	}
	if time.Since(began) >= noticed {
		b.heldUp(LimitRate, false)
	}
	return nil
}

// takeTurn waits until there are fewer than MaxLogins.
func (b *Backend) takeTurn(ctx context.Context, deadline time.Time) error {
	select {
	case b.slots <- struct{}{}:
		return nil
	default:
	}
	t := time.NewTimer(time.Until(deadline))
	defer t.Stop()
	select {
	case b.slots <- struct{}{}:
		b.heldUp(LimitLogins, false)
		return nil
	case <-t.C:
		b.heldUp(LimitLogins, true)
		return errBusy
	case <-ctx.Done():
		b.heldUp(LimitLogins, errors.Is(ctx.Err(), context.DeadlineExceeded))
		return fmt.Errorf("%w: %w", errBusy, context.Cause(ctx))
	}
}

// heldUp tells that a limit made a login wait, or refused it.
func (b *Backend) heldUp(by string, inVain bool) {
	if b.hooks.OnWait != nil {
		b.hooks.OnWait(Wait{by, inVain})
	}
}

func (b *Backend) leave() { <-b.slots }

// learn tells the metrics and the health of the backend how a login ended, which was a
// probe where p is one. A BAD
// and a token that is not taken say nothing of its health: a stranger can bring
// both about, and must be able neither to mark it down nor to keep it up.
func (b *Backend) learn(ctx context.Context, p *probe, err error) {
	res := result(ctx, err)
	if b.hooks.OnConnect != nil {
		b.hooks.OnConnect(res)
	}
	switch res {
	case ResultOK, ResultDenied, ResultRefused:
		if b.health.succeeded(time.Now()) {
			b.log.Info("backend is back")
		}
	case ResultUnreachable, ResultTLS, ResultTimeout, ResultClosed, ResultProtocol:
		if ctx.Err() == nil { // or it was the caller's time that ran out
			b.health.failed(time.Now())
			return
		}
		b.health.unknown(p)
	default:
		b.health.unknown(p)
	}
}
