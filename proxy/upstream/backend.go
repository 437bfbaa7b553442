package upstream

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/semaphore"
	"golang.org/x/time/rate"

	"imapgate/internal/descriptors"
	"imapgate/internal/event"
	"imapgate/internal/imap"
	"imapgate/internal/keepalive"
	"imapgate/internal/sleep"
)

const (
	maxConnectAttempts = 3           // for one login
	connectRetryDelay  = time.Second // between attempts

	// maxSlotTime is how long a login holds one of the MaxUpstreamLogins slots. A login does its
	// work in less. A backend that delays the answer to a wrong password takes longer, and a few
	// such logins must not block all others.
	maxSlotTime = time.Second
	// minReportedWait is the shortest wait that is reported; acquiring a free slot takes
	// microseconds.
	minReportedWait = time.Millisecond
)

// Backend connects to one backend and logs users in there. It is safe for concurrent use.
type Backend struct {
	// Set once.
	cfg    Config
	hooks  Hooks
	log    *zap.Logger
	dialer *net.Dialer

	slots    *semaphore.Weighted // of MaxUpstreamLogins logins in progress
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
	b := &Backend{
		cfg:   cfg,
		hooks: hooks,
		log:   log.With(zap.String("backend", cfg.Name)),
		// It detects a dead peer.
		dialer: &net.Dialer{KeepAliveConfig: keepalive.Config(), Control: keepalive.Control},
		slots:  semaphore.NewWeighted(int64(cfg.MaxUpstreamLogins)),
	}
	if n := cfg.MaxUpstreamConnectsPerSecond; n > 0 {
		b.connRate = rate.NewLimiter(rate.Limit(n), max(1, n/10)) // a burst of a tenth of a second
	}
	return b
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

// Sockets returns the counter of connections to the backend; nil without one.
func (b *Backend) Sockets() *descriptors.Counter { return b.cfg.Sockets }

// Login connects to the backend and logs the user of req in, within UpstreamLoginTimeout and ctx.
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
	conn, err := b.tryLogin(ctx, req, creds)
	if err != nil {
		return nil, fmt.Errorf("log in at %s: %w", b.cfg.Name, publicError(err))
	}
	return conn, nil
}

// tryLogin runs one login if the backend is up and its limits allow it, and records its result.
func (b *Backend) tryLogin(ctx context.Context, req Request, creds credentials) (conn *Conn, err error) {
	if b.hopsLeft(req.Client) <= 0 {
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
	if wait := time.Since(began); req.WaitTime != nil && wait >= minReportedWait {
		*req.WaitTime += wait
	}
	if err == nil {
		conn, err = b.loginInSlot(ctx, deadline, req, creds)
	}
	b.recordResult(ctx, t, err)
	return conn, err
}

// awaitSlot waits for MaxUpstreamConnectsPerSecond and one of the MaxUpstreamLogins slots, so
// that clients do not overload a backend that has just come back. It waits for the rate first,
// because that wait must not hold a slot.
func (b *Backend) awaitSlot(ctx context.Context, deadline time.Time) error {
	waitCtx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	if b.connRate != nil {
		began := time.Now()
		if err := b.connRate.Wait(waitCtx); err != nil { // at once if the wait would exceed the deadline
			b.reportWait(event.LimitUpstreamRate, ctx.Err() == nil)
			return fmt.Errorf("%w: %w", errBusy, err)
		}
		if time.Since(began) >= minReportedWait {
			b.reportWait(event.LimitUpstreamRate, false)
		}
	}
	if b.slots.TryAcquire(1) {
		return nil
	}
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

// loginInSlot connects and logs in, and releases the slot at its end or after maxSlotTime.
func (b *Backend) loginInSlot(ctx context.Context, deadline time.Time, req Request, creds credentials) (conn *Conn, err error) {
	release := sync.OnceFunc(func() { b.slots.Release(1) })
	defer release()
	defer time.AfterFunc(maxSlotTime, release).Stop()
	b.cfg.Sockets.AddBackend()
	nc, err := b.connect(ctx, deadline)
	if err == nil {
		conn, err = b.loginOn(ctx, deadline, nc, req, creds)
	}
	if err != nil {
		b.cfg.Sockets.RemoveBackend() // it is closed
	}
	return conn, err
}

// connect tries to connect until the deadline, up to maxConnectAttempts times. Retries are
// safe: nothing has been sent. A backend that is down gets one attempt.
func (b *Backend) connect(ctx context.Context, deadline time.Time) (net.Conn, error) {
	if limit := time.Now().Add(b.cfg.UpstreamConnectTimeout); limit.Before(deadline) {
		deadline = limit
	}
	dialer := *b.dialer
	dialer.Deadline = deadline
	for attempt := 1; ; attempt++ {
		nc, err := dialer.DialContext(ctx, "tcp", b.cfg.Address)
		if err == nil {
			return nc, nil
		}
		left := time.Until(deadline)
		if attempt == maxConnectAttempts || left <= connectRetryDelay || b.health.isDown() || sleep.For(ctx, connectRetryDelay) != nil {
			return nil, fmt.Errorf("%w: %w", errConnect, err)
		}
	}
}

// recordResult reports the result of a login to the metrics and to health; t is its trial, or
// nil. A BAD and a rejected token have no effect on health: clients can provoke both, and must
// be able neither to mark a backend down nor to keep it up.
func (b *Backend) recordResult(ctx context.Context, t *trial, err error) {
	res := ResultOf(ctx, err)
	if b.hooks.OnConnect != nil {
		b.hooks.OnConnect(res)
	}
	switch res {
	case event.ConnectOK, event.ConnectDenied, event.ConnectRefused:
		if b.health.recordSuccess(time.Now()) {
			b.log.Info("backend is up again")
		}
		return
	case event.ConnectUnreachable, event.ConnectTLS, event.ConnectTimeout, event.ConnectClosed, event.ConnectProtocol:
		if ctx.Err() == nil { // otherwise the caller's time ran out
			b.health.recordFailure(time.Now())
			return
		}
	}
	b.health.recordUnknown(t)
}
