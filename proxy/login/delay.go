package login

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"imapgate/auth"
	"imapgate/internal/event"
	"imapgate/internal/identity"
	"imapgate/internal/sleep"
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

// beginLogin checks limits before a login is verified, even an invalid one. A client with
// too many failures must not learn whether this login is right. It waits out the delay for
// earlier failures.
func (c *Connector) beginLogin(ctx context.Context, client *Client, a *Attempt) error {
	start := time.Now()
	ctx, cancel := context.WithDeadline(ctx, client.Deadline) // nothing is verified yet
	defer cancel()
	err := client.Limits.BeginLogin(ctx, a.Login.User)
	if took := time.Since(start); took >= minRecordedDelay {
		a.delay = took
		c.deps.Metrics.Limits.ObserveDelay(took)
	}
	if err != nil {
		c.RecordLimit(client, err, a.Login.User)
		return fmt.Errorf("%w: %w", ErrTooManyFailures, err)
	}
	return nil
}

// CheckLookup checks limits before a SCRAM exchange looks up the user's keys, which
// may query Redis. Nothing is verified before the client's proof. So until then the login
// waits for no delay and does not count as in progress.
func (c *Connector) CheckLookup(ctx context.Context, client *Client, a *Attempt, response []byte) error {
	name, ok := scramUser(response)
	if !ok || !strings.HasPrefix(a.Login.Mechanism, "AUTH=SCRAM-") {
		return nil
	}
	user, err := c.deps.Auth.Canonicalize(name)
	if err != nil {
		return nil // no lookup follows
	}
	a.Login.User = user
	ctx, cancel := context.WithTimeout(ctx, limitCheckTimeout)
	defer cancel()
	if err := client.Limits.CheckLogin(ctx, user); err != nil {
		return fmt.Errorf("%w: %w", ErrTooManyFailures, err)
	}
	return nil
}

// Refuse counts a failed login, waits until it may be answered and records it. Every failure
// takes time and counts for the connection. Only guesses count for the user and the
// address, so that an unavailable backend causes no ban. The delay for failures ends at the
// connection's deadline. The minimum time of all denials is always waited for.
func (c *Connector) Refuse(ctx context.Context, client *Client, a *Attempt, cause error) Refusal {
	r, isStopping := refusalOf(cause), ctx.Err() != nil
	if r.Reply == "" { // no client waits for an answer
		client.Limits.EndLogin()
	} else {
		r.Late = c.countAndDelay(ctx, client, a, r, cause)
	}
	if isStopping {
		r = unavailableRefusal(event.Shutdown)
	}
	c.recordRefusal(client, a, r, cause)
	return r
}

// countAndDelay counts a failure and waits until it may be answered. It reports whether the
// connection's deadline cut the delay short.
func (c *Connector) countAndDelay(ctx context.Context, client *Client, a *Attempt, r Refusal, cause error) (late bool) {
	client.failures++
	isGuess := r.IsDenial || a.verdict >= upstream.VerdictUnclear
	if isGuess || r.reason == event.LimitReached || r.reason == event.ClientAbortedAfterProof {
		client.guesses++
	}
	minTime := max(c.MinDenialTime, c.denialTimes.minRefusalTime(a, r))
	if requested := (*auth.DelayedDenial)(nil); errors.As(cause, &requested) {
		minTime = max(minTime, requested.Delay)
	}
	failureDelay := countFailure(ctx, client, a, r)
	if failureDelay > minTime {
		c.deps.Metrics.Limits.ObserveDelay(failureDelay)
	}
	start, from := time.Now(), a.ReceivedAt.Add(a.delay+rand.N(c.DenialJitter))
	limit := max(minTime, client.Deadline.Sub(from))
	_ = sleep.For(ctx, time.Until(from.Add(max(minTime, min(failureDelay, limit)))))
	a.delay += time.Since(start)
	return failureDelay > limit
}

// countFailure counts a failed login by its cause and returns the minimum time of its
// denial.
//
//	denied, credentials not known to be right           failure
//	the backend reports wrong credentials               failure
//	the backend's answer, or silence, is ambiguous      unclear; nothing for a token, which is not guessed
//	denied although the credentials are right           nothing, in the time of a failure
//	everything else                                     nothing
func countFailure(ctx context.Context, client *Client, a *Attempt, r Refusal) time.Duration {
	user, fingerprint := a.Login.User, a.fingerprint()
	switch {
	case r.IsDenial && (a.verifiedHere || a.verdict == upstream.VerdictRight), a.verdict == upstream.VerdictUnclear && !a.Login.Token.IsZero():
		return client.Limits.LoginDenied()
	case r.IsDenial, a.verdict == upstream.VerdictWrong:
		return client.Limits.LoginFailed(ctx, user, fingerprint)
	case a.verdict == upstream.VerdictUnclear:
		return client.Limits.LoginUnclear(ctx, user, fingerprint)
	}
	client.Limits.EndLogin() // other logins need not wait for this answer
	return 0
}

// fingerprint returns what identifies a repeated failed login: the presented secret, and
// for an unknown user also the name. It is zero for SCRAM, whose proofs of one password
// differ.
func (a *Attempt) fingerprint() identity.Secret {
	secret := cmp.Or(a.Login.Password, a.Login.Token, a.Presented.Secret)
	if a.Login.User.IsZero() && a.Presented != (auth.PresentedLogin{}) {
		return identity.NewSecret(a.Presented.RawName + "\x00" + secret.Reveal())
	}
	return secret
}

// HasExhaustedAttempts reports whether too many logins of the connection have failed:
// MaxAuthAttempts guesses, or twice as many failures of any cause.
func (c *Connector) HasExhaustedAttempts(client *Client) bool {
	return client.guesses >= c.cfg.MaxAuthAttempts || client.failures >= 2*c.cfg.MaxAuthAttempts
}

// scramUser returns the user name in the first message of SCRAM (RFC 5802 §7).
func scramUser(message []byte) (string, bool) {
	fields := strings.SplitN(string(message), ",", 4) // binding, authzid, name, the rest
	if len(fields) < 4 {
		return "", false
	}
	name, ok := strings.CutPrefix(fields[2], "n=")
	return strings.NewReplacer("=2C", ",", "=3D", "=").Replace(name), ok
}

// denialTimes samples how long backends recently took to deny a password that they verify
// themselves. A denial without a backend takes one of these times. Otherwise its timing
// would reveal that the user has no route.
type denialTimes struct {
	mu sync.Mutex

	// Guarded by mu.
	durations [64]time.Duration // ring buffer
	total     int               // durations ever added
}

// add records the duration of a denial by a backend.
func (d *denialTimes) add(duration time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.durations[d.total%len(d.durations)] = duration
	d.total++
}

// pick returns a random sample, or 0 if no backend has denied a password yet.
func (d *denialTimes) pick() time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.total == 0 {
		return 0
	}
	return d.durations[rand.N(min(d.total, len(d.durations)))]
}

// minRefusalTime returns the minimum time of a refusal before jitter is added.
func (d *denialTimes) minRefusalTime(a *Attempt, r Refusal) time.Duration {
	switch {
	case a.minTime > 0:
		return a.minTime
	case a.verdict >= upstream.VerdictUnclear:
		return a.upstreamTime
	case r.IsDenial:
		return d.pick()
	}
	return 0
}
