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
	"imapgate/internal/event"
	"imapgate/internal/identity"
	"imapgate/internal/limit"
	"imapgate/proxy/upstream"
)

// The minimum time of a denial, and the maximum of its random addition. Package limit adds
// the delay for earlier failures.
const (
	minDenialTime = 200 * time.Millisecond
	denialJitter  = 50 * time.Millisecond
	// limitCheckTimeout bounds the limit check before an exchange looks up a user. The
	// check may query Redis.
	limitCheckTimeout = 100 * time.Millisecond
	// minRecordedDelay is the shortest recorded wait; a check without a wait takes
	// microseconds.
	minRecordedDelay = 10 * time.Millisecond
)

// limitAddr returns the address that limits apply to, or the zero Addr while it is unknown.
// The address of a trusted peer is not counted, because it stands for many clients, unless
// the peer is the client itself.
func (c *connection) limitAddr() netip.Addr {
	if c.client.Addr.IsValid() {
		return c.client.Addr.Addr()
	}
	if c.preauth.peerIsClient {
		return c.client.Peer.Addr()
	}
	if containsPeer(c.listener.ProxyProtocol.networks(), c.client.Peer) || containsPeer(c.listener.TrustedNetworks, c.client.Peer) {
		return netip.Addr{}
	}
	return c.client.Peer.Addr()
}

// openLimits counts the connection for its address.
func (c *connection) openLimits() (err error) {
	c.limits, err = c.server.deps.Limits.Open(c.listener.Name, c.limitAddr())
	return c.connectionLimitError(err)
}

// updateLimitAddr counts the connection for the client's address as now known.
func (c *connection) updateLimitAddr() error {
	return c.connectionLimitError(c.limits.SetAddr(c.limitAddr()))
}

// connectionLimitError returns the closeError for a client that is over a limit or banned.
func (c *connection) connectionLimitError(err error) error {
	if err == nil {
		return nil
	}
	c.recordLimit(err, "")
	return &closeError{event.TooManyConnections, "[UNAVAILABLE] Too many connections.", err}
}

// beginLogin checks limits before a login is verified, even an invalid one. A client with
// too many failures must not learn whether this login is right. It waits out the delay for
// earlier failures.
func (c *connection) beginLogin(ctx context.Context, a *attempt) error {
	start := time.Now()
	ctx, cancel := context.WithDeadline(ctx, c.deadline) // nothing is verified yet
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

// checkLookupLimits checks limits before a SCRAM exchange looks up the user's keys, which
// may query Redis. Nothing is verified before the client's proof. So until then the login
// waits for no delay and does not count as in progress.
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
		return nil // no lookup follows
	}
	a.login.User = user
	ctx, cancel := context.WithTimeout(ctx, limitCheckTimeout)
	defer cancel()
	if err := c.limits.CheckLogin(ctx, user); err != nil {
		return fmt.Errorf("%w: %w", errTooManyFailures, err)
	}
	return nil
}

// delayRefusal counts a failed login and waits until it may be answered. Every failure
// takes time and counts for the connection. Only guesses count for the user and the
// address, so that an unavailable backend causes no ban. The delay for failures ends at the
// connection's deadline; inTime is false if it was cut short. The minimum time of all
// denials is always waited for.
func (c *connection) delayRefusal(ctx context.Context, a *attempt, cause error) (inTime bool) {
	r := refusalOf(cause)
	if r.reply == "" {
		c.limits.EndLogin()
		return true // no client waits for an answer
	}
	c.failures++
	isGuess := r.isDenial || a.verdict >= upstream.VerdictUnclear
	if isGuess || r.reason == event.LimitReached || r.reason == event.ClientAbortedAfterProof {
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

// countFailure counts a failed login by its cause and returns the minimum time of its
// denial.
//
//	denied, credentials not known to be right           failure
//	the backend reports wrong credentials               failure
//	the backend's answer, or silence, is ambiguous      unclear; nothing for a token, which is not guessed
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
	c.limits.EndLogin() // other logins need not wait for this answer
	return 0
}

// fingerprint returns what identifies a repeated failed login: the presented secret, and
// for an unknown user also the name. It is zero for SCRAM, whose proofs of one password
// differ.
func (a *attempt) fingerprint() identity.Secret {
	secret := cmp.Or(a.login.Password, a.login.Token, a.rawLogin.Secret)
	if a.login.User.IsZero() && a.rawLogin != (auth.PresentedLogin{}) {
		return identity.NewSecret(a.rawLogin.RawName + "\x00" + secret.Reveal())
	}
	return secret
}

// hasExhaustedAttempts reports whether too many logins of the connection have failed:
// MaxAuthAttempts guesses, or twice as many failures of any cause.
func (c *connection) hasExhaustedAttempts() bool {
	return c.guesses >= c.server.cfg.MaxAuthAttempts || c.failures >= 2*c.server.cfg.MaxAuthAttempts
}

// acquireSessionSlot counts the session for its user, or closes up if the user has too
// many.
func (c *connection) acquireSessionSlot(ctx context.Context, up backendLogin) error {
	err := c.limits.BeginSession(ctx, up.User())
	if err == nil {
		return nil
	}
	c.recordLimit(err, up.User().String())
	return fmt.Errorf("%w: %w", errTooManySessions, errors.Join(err, up.Close()))
}

// recordLimit records a refusal by a limit in the metrics and the audit log.
func (c *connection) recordLimit(err error, user string) {
	var r *limit.Refusal
	if !errors.As(err, &r) {
		return // its time ran out
	}
	subject := user
	if r.Net.IsValid() {
		subject = r.Net.String()
	}
	c.server.deps.Metrics.Limits.CountRefusal(r.Reason)
	_ = c.server.deps.Audit.LimitHit(&c.client, &audit.LimitHit{Limit: r.Reason, Subject: subject, Result: event.ResultRefused})
}
