package upstream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"imapgate/internal/event"
	"imapgate/internal/sleep"
)

const (
	maxConnectAttempts = 3           // for one login, at the last address that is left
	connectRetryDelay  = time.Second // between attempts

	// failoverConnect and failoverAnswer bound the attempt at an address while there is
	// another one: for the connection, and then for all before the credentials.
	failoverConnect = time.Second
	failoverAnswer  = 3 * time.Second

	// maxSlotTime is how long a login holds one of the MaxUpstreamLogins slots. A login does its
	// work in less. A backend that delays the answer to a wrong password takes longer, and a few
	// such logins must not block all others.
	maxSlotTime = time.Second
	// minReportedWait is the shortest wait that is reported; acquiring a free slot takes
	// microseconds.
	minReportedWait = time.Millisecond
)

// attempt is one login at one address.
type attempt struct {
	address  *address
	cfg      *Config
	deadline time.Time
	others   int    // addresses that can be tried if this one fails
	isProbe  bool   // of an address whose circuit is open
	leave    func() // of Places; may be nil
}

// run logs in. canRetry is true if the credentials were not sent and the address is at fault.
func (t attempt) run(ctx context.Context, req Request, creds credentials) (conn *Conn, canRetry bool, err error) {
	a := t.address
	if t.isProbe {
		defer a.endProbe()
	}
	began := time.Now()
	trial, err := a.health.allow(ctx, t.deadline)
	if trial != nil {
		defer a.health.endTrial(trial)
	}
	var slots *semaphore.Weighted
	if err == nil {
		slots, err = t.awaitSlot(ctx)
	}
	if wait := time.Since(began); req.WaitTime != nil && wait >= minReportedWait {
		*req.WaitTime += wait
	}
	sent := false
	if err == nil {
		began = time.Now()
		conn, sent, err = t.loginInSlot(ctx, slots, req, creds)
	}
	failure := loginFailure{at: time.Now()}
	if sent {
		failure.user = req.User
	}
	isFault := t.recordResult(ctx, trial, failure, err, failure.at.Sub(began))
	return conn, !sent && isFault && ctx.Err() == nil, err
}

// bound returns the time until which a step may take that usually takes less than most. The
// addresses that are left get their share of the time that is left.
func (t attempt) bound(most time.Duration) time.Time {
	if t.others == 0 {
		return t.deadline
	}
	now := time.Now()
	return now.Add(min(most, t.deadline.Sub(now)/time.Duration(t.others+1)))
}

// awaitSlot waits for MaxUpstreamConnectsPerSecond and one of the MaxUpstreamLogins slots, so
// that clients do not overload an address that has just come back. It waits for the rate first,
// because that wait must not hold a slot. It returns where to release the slot.
func (t attempt) awaitSlot(ctx context.Context) (*semaphore.Weighted, error) {
	l := t.address.limits.Load()
	if l.connRate == nil && l.slots.TryAcquire(1) {
		return l.slots, nil
	}
	if err := t.queueForSlot(ctx, l); err != nil {
		return nil, err
	}
	if state, _ := t.address.state(time.Now()); t.others > 0 && state != event.AddressUp && !t.isProbe { // it has gone down meanwhile
		l.slots.Release(1)
		return nil, errDown
	}
	return l.slots, nil
}

// queueForSlot is awaitSlot for a login that may have to wait.
func (t attempt) queueForSlot(ctx context.Context, l *loginLimits) error {
	b := t.address.backend
	waitCtx, cancel := context.WithDeadline(ctx, t.deadline)
	defer cancel()
	if l.connRate != nil {
		began := time.Now()
		if err := l.connRate.Wait(waitCtx); err != nil { // at once if the wait would exceed the deadline
			b.reportWait(event.LimitUpstreamRate, ctx.Err() == nil)
			return fmt.Errorf("%w: %w", errBusy, err)
		}
		if time.Since(began) >= minReportedWait {
			b.reportWait(event.LimitUpstreamRate, false)
		}
	}
	if l.slots.TryAcquire(1) {
		return nil
	}
	err := l.slots.Acquire(waitCtx, 1)
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

// loginInSlot connects and logs in, and releases the slot at its end or after maxSlotTime. sent
// reports whether the credentials may have been sent.
func (t attempt) loginInSlot(ctx context.Context, slots *semaphore.Weighted, req Request, creds credentials) (conn *Conn, sent bool, err error) {
	release := sync.OnceFunc(func() { slots.Release(1) })
	defer release()
	defer time.AfterFunc(maxSlotTime, release).Stop()
	hold := &Hold{address: t.address, sockets: t.cfg.Sockets}
	t.cfg.Sockets.AddBackend()
	n := t.address.connections.Add(1)
	if most := t.cfg.MaxSessions; most > 0 && n > int64(most) { // others have taken the last places meanwhile
		err = errFull
	}
	var nc net.Conn
	if err == nil {
		nc, err = t.connect(ctx)
	}
	if err == nil {
		conn, sent, err = t.loginOn(ctx, nc, req, creds)
	}
	if err != nil {
		hold.Release() // the connection is closed, or was not opened
		return nil, sent, err
	}
	hold.leave = t.leave
	conn.hold = hold
	return conn, true, nil
}

// connect tries to connect until the deadline. At the last address it makes up to
// maxConnectAttempts: nothing has been sent. An address that is down gets one attempt.
func (t attempt) connect(ctx context.Context) (net.Conn, error) {
	a := t.address
	deadline := t.bound(failoverConnect)
	if end := time.Now().Add(t.cfg.UpstreamConnectTimeout); end.Before(deadline) {
		deadline = end
	}
	for attempt := 1; ; attempt++ {
		nc, err := a.connect(ctx, deadline)
		if err == nil {
			return nc, nil
		}
		left := time.Until(deadline)
		if t.others > 0 || attempt == maxConnectAttempts || left <= connectRetryDelay || a.health.isDown() || sleep.For(ctx, connectRetryDelay) != nil {
			return nil, fmt.Errorf("%w: %w", errConnect, err)
		}
	}
}

// connect opens a connection. After a failure, Run looks the host name up again soon.
func (a *address) connect(ctx context.Context, deadline time.Time) (net.Conn, error) {
	nc, err := a.dial.connect(ctx, deadline)
	if err != nil && a.dial.suspect() {
		a.backend.notifyRun()
	}
	return nc, err
}

// recordResult reports the result of a login to the metrics and to the health of its address.
// It returns whether the address is at fault. A BAD and a rejected token have no effect on
// health: clients can provoke both, and must be able neither to mark an address down nor to
// keep it up.
func (t attempt) recordResult(ctx context.Context, trial *trial, f loginFailure, err error, took time.Duration) (isFault bool) {
	a, res := t.address, ResultOf(ctx, err)
	if a.backend.hooks.OnConnect != nil {
		a.backend.hooks.OnConnect(res)
	}
	switch res {
	case event.ConnectOK, event.ConnectDenied, event.ConnectRefused:
		if a.health.recordSuccess(f.at) {
			a.backend.log.Info("backend is up again", addressField(a.hostPort))
		}
		a.recordSuccess(f.at, err == nil, took)
		return false
	case event.ConnectUnreachable, event.ConnectTLS, event.ConnectTimeout, event.ConnectClosed, event.ConnectProtocol:
		if ctx.Err() == nil { // otherwise the caller's time ran out
			a.health.recordFailure(f.at)
			a.recordFailure(f, &t.cfg.Breaker, err)
			return true
		}
	case event.ConnectDown: // nothing was tried
		return true
	}
	a.health.recordUnknown(trial)
	return errors.Is(err, errFull)
}

// recordSuccess counts a login that got an answer, and its time if it was accepted.
func (a *address) recordSuccess(now time.Time, accepted bool, took time.Duration) {
	a.logins.Add(1)
	a.mu.Lock()
	a.recent.Add(now)
	if accepted {
		if a.latency == 0 {
			a.latency = took.Seconds()
		}
		a.latency += latencyShare * (took.Seconds() - a.latency)
	}
	wasOpen := a.circuit.open
	a.circuit.recordSuccess()
	a.mu.Unlock()
	if wasOpen {
		a.report()
	}
}

// recordFailure counts a login that failed because of the address.
func (a *address) recordFailure(f loginFailure, s *BreakerSettings, err error) {
	why := publicError(err).Error()
	a.logins.Add(1)
	a.failures.Add(1)
	a.mu.Lock()
	a.recent.Add(f.at)
	opened := a.circuit.recordFailure(f, s, why)
	a.mu.Unlock()
	if opened {
		a.report()
	}
}

// beginProbe makes the caller's login the probe of an address whose circuit is open, which it
// must end with endProbe. ok is false if another login is the probe.
func (a *address) beginProbe(now time.Time) (isProbe, ok bool) {
	needsCheck := a.backend.isWatched.Load()
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case !a.circuit.open: // it has closed meanwhile
		return false, true
	case !a.circuit.mayProbe(now, needsCheck):
		return false, false
	}
	a.circuit.probing = true
	return true, true
}

// endProbe lets another login be the probe, once it is due.
func (a *address) endProbe() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.circuit.probing = false
}
