package proxy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"time"

	"imapgate/auth"
	"imapgate/internal/audit"
	"imapgate/internal/identity"
	"imapgate/internal/limit"
	"imapgate/proxy/upstream"
)

// The time of a denial: a floor, and up to this much more. What failures add comes
// from limit.
const (
	minDenialTime = 200 * time.Millisecond
	denialJitter  = 50 * time.Millisecond
	// limitCheckTimeout is for the judgement of limits before an exchange asks for a user: it may
	// ask Redis.
	limitCheckTimeout = 100 * time.Millisecond
	// minRecordedDelay is the shortest wait that was one: to be asked takes microseconds.
	minRecordedDelay = 10 * time.Millisecond
)

// limitAddr is the address that limits count, the zero Addr while it is not known.
// A trusted peer stands for many clients: its own is not counted, unless it speaks
// for itself.
func (c *connection) limitAddr() netip.Addr {
	if c.client.Addr.IsValid() {
		return c.client.Addr.Addr()
	}
	if c.preauth.peerIsClient {
		return c.client.Peer.Addr()
	}
	if containsPeer(c.listener.ProxyTrusted, c.client.Peer) || containsPeer(c.listener.Trusted, c.client.Peer) {
		return netip.Addr{}
	}
	return c.client.Peer.Addr()
}

// openLimits takes a place for the connection among those of its address.
func (c *connection) openLimits() (err error) {
	c.limits, err = c.server.deps.Limits.Open(c.listener.Name, c.limitAddr())
	return c.connectionLimitError(err)
}

// updateLimitAddr takes the place where the client is, by what was said of it since.
func (c *connection) updateLimitAddr() error {
	return c.connectionLimitError(c.limits.SetAddr(c.limitAddr()))
}

// connectionLimitError ends the connection of somebody who has too many, or is banned.
func (c *connection) connectionLimitError(err error) error {
	if err == nil {
		return nil
	}
	c.recordLimit(err, "")
	return &closeError{audit.TooMany, "[UNAVAILABLE] Too many connections.", err}
}

// beginLogin is asked before a login is looked at, also one that is wrong already: who
// has failed too often must not learn whether this one was right. It waits for what
// is owed.
func (c *connection) beginLogin(ctx context.Context, a *attempt) error {
	start := time.Now()
	ctx, cancel := context.WithDeadline(ctx, c.deadline) // nothing of the login is judged so far
	defer cancel()
	err := c.limits.BeginLogin(ctx, a.login.User)
	if took := time.Since(start); took >= minRecordedDelay {
		a.delay = took
		c.server.deps.Metrics.Limits.ObserveDelay(took)
	}
	if err != nil {
		c.recordLimit(err, a.login.User.String())
		return fmt.Errorf("%w: %w", errTooManyFailures, err)
	}
	return nil
}

// checkLookupLimits judges by limits a login whose exchange is about to ask for the user's keys
// (SCRAM), which may cost a question to Redis. Nothing is verified before the proof, so
// until then the login neither waits for what is owed nor counts as one under way.
func (c *connection) checkLookupLimits(ctx context.Context, a *attempt, response []byte) error {
	if !strings.HasPrefix(a.login.Mechanism, "AUTH=SCRAM-") {
		return nil
	}
	name, ok := scramUser(response)
	if !ok {
		return nil
	}
	user, err := c.server.deps.Auth.Canonicalize(name)
	if err != nil {
		return nil // nobody will be asked for
	}
	a.login.User = user
	ctx, cancel := context.WithTimeout(ctx, limitCheckTimeout)
	defer cancel()
	if err := c.limits.CheckLogin(ctx, user); err != nil {
		return fmt.Errorf("%w: %w", errTooManyFailures, err)
	}
	return nil
}

// delayRefusal counts a failed login, and waits until it may be answered. Whatever the
// cause it takes time and counts for the connection; for the user and the address
// count guesses alone, so that nobody is banned because a backend is away. The wait
// for failures ends with the time for a login; it is false when there was more to
// wait for. The time that all denials take is waited for in any case.
func (c *connection) delayRefusal(ctx context.Context, a *attempt, cause error) (inTime bool) {
	r := refusalOf(cause)
	if r.reply == "" {
		c.limits.EndLogin()
		return true // there is nobody who waits
	}
	c.failures++
	isGuess := r.isDenial || a.verdict >= upstream.VerdictUnclear
	if isGuess || r.reason == audit.LimitReached || r.reason == audit.ProvedAndLeft {
		c.guesses++
	}
	minTime := max(c.server.minDenialTime, c.server.denialTimes.minRefusalTime(a, r))
	if requested := (*auth.DelayedDenial)(nil); errors.As(cause, &requested) {
		minTime = max(minTime, requested.Delay)
	}
	failureDelay := c.countFailure(ctx, a, r)
	if failureDelay > minTime {
		c.server.deps.Metrics.Limits.ObserveDelay(failureDelay)
	}
	jitter := rand.N(c.server.denialJitter)
	uniformAt, answerAt := a.receivedAt.Add(a.delay+minTime+jitter), a.receivedAt.Add(a.delay+failureDelay+jitter)
	inTime = !answerAt.After(laterOf(c.deadline, uniformAt))
	if !inTime {
		answerAt = c.deadline
	}
	start := time.Now()
	sleep(ctx, time.Until(laterOf(uniformAt, answerAt)))
	a.delay += time.Since(start)
	return inTime
}

// countFailure has a failed login counted as what it is, and gives the least time that its
// denial must take because of it.
//
//	denied, and nobody knew the password for right      a failure
//	the backend calls the credentials wrong             a failure
//	the backend's answer, or silence, fits both         Unclear; of a token nothing: those are not guessed
//	denied although the credentials are right           nothing, in the time of a failure
//	everything else                                     nothing
func (c *connection) countFailure(ctx context.Context, a *attempt, r refusal) time.Duration {
	user, fingerprint := a.login.User, a.fingerprint()
	switch {
	case r.isDenial && (a.verifiedHere || a.verdict == upstream.VerdictRight), a.verdict == upstream.VerdictUnclear && !a.login.Token.IsZero():
		return c.limits.LoginDenied()
	case r.isDenial, a.verdict == upstream.VerdictWrong:
		return c.limits.LoginFailed(ctx, user, fingerprint)
	case a.verdict == upstream.VerdictUnclear:
		return c.limits.LoginUnclear(ctx, user, fingerprint)
	}
	c.limits.EndLogin() // while the answer waits, others need not
	return 0
}

// fingerprint is by what a failed login is recognised when it is tried again: what was
// shown as a secret, and with a name that is nobody's that name too. It is zero
// with SCRAM, whose proofs of one password have nothing in common.
func (a *attempt) fingerprint() identity.Secret {
	secret := cmp.Or(a.login.Password, a.login.Token, a.rawLogin.Secret)
	if a.login.User.IsZero() && a.rawLogin != (auth.PresentedLogin{}) {
		return identity.NewSecret(a.rawLogin.RawName + "\x00" + secret.Reveal())
	}
	return secret
}

// hasExhaustedAttempts says whether enough logins have failed on the connection: twice as many as
// may be guessed where they failed for any other reason.
func (c *connection) hasExhaustedAttempts() bool {
	return c.guesses >= c.server.cfg.MaxAuthAttempts || c.failures >= 2*c.server.cfg.MaxAuthAttempts
}

// acquireSessionSlot takes a place for the session among those of its user.
func (c *connection) acquireSessionSlot(ctx context.Context, up backendLogin) error {
	err := c.limits.BeginSession(ctx, up.User())
	if err == nil {
		return nil
	}
	c.recordLimit(err, up.User().String())
	return fmt.Errorf("%w: %w", errTooManySessions, errors.Join(err, up.Close()))
}

// recordLimit writes down that a limit turned somebody away.
func (c *connection) recordLimit(err error, user string) {
	var r *limit.Refusal
	if !errors.As(err, &r) {
		return // its time was over
	}
	subject := user
	if r.Net.IsValid() {
		subject = r.Net.String()
	}
	c.server.deps.Metrics.Limits.CountRefusal(string(r.Reason))
	_ = c.server.deps.Audit.LimitHit(&c.client, &audit.LimitHit{Limit: audit.Limit(r.Reason), Subject: subject, Result: audit.Refused})
}
