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
	denialFloor  = 200 * time.Millisecond
	denialJitter = 50 * time.Millisecond
	// judging is for the judgement of limits before an exchange asks for a user: it may
	// ask Redis.
	judging = 100 * time.Millisecond
	// noticed is the shortest wait that was one: to be asked takes microseconds.
	noticed = 10 * time.Millisecond
)

// counted is the address that limits count, the zero Addr while it is not known.
// A trusted peer stands for many clients: its own is not counted, unless it speaks
// for itself.
func (s *session) counted() netip.Addr {
	if s.who.Claimed.IsValid() {
		return s.who.Claimed.Addr()
	}
	if s.said.itself {
		return s.who.Peer.Addr()
	}
	if trusts(s.listener.ProxyTrusted, s.who.Peer) || trusts(s.listener.Trusted, s.who.Peer) {
		return netip.Addr{}
	}
	return s.who.Peer.Addr()
}

// visitBegins takes a place for the connection among those of its address.
func (s *session) visitBegins() (err error) {
	s.visit, err = s.server.rooms.Limits.Arrive(s.listener.Name, s.counted())
	return s.turnedAway(err)
}

// visitMoves takes the place where the client is, by what was said of it since.
func (s *session) visitMoves() error { return s.turnedAway(s.visit.Move(s.counted())) }

// turnedAway ends the connection of somebody who has too many, or is banned.
func (s *session) turnedAway(err error) error {
	if err == nil {
		return nil
	}
	s.recordLimit(err, "")
	return &ending{audit.TooMany, "[UNAVAILABLE] Too many connections.", err}
}

// mayTry is asked before a login is looked at, also one that is wrong already: who
// has failed too often must not learn whether this one was right. It waits for what
// is owed.
func (s *session) mayTry(ctx context.Context, a *attempt) error {
	began := time.Now()
	ctx, cancel := context.WithDeadline(ctx, s.deadline) // nothing of the login is judged so far
	defer cancel()
	err := s.visit.Attempt(ctx, a.login.User)
	if took := time.Since(began); took >= noticed {
		a.waited = took
		s.server.rooms.Metrics.Limits.Delayed(took)
	}
	if err != nil {
		s.recordLimit(err, a.login.User.String())
		return fmt.Errorf("%w: %w", errTooOften, err)
	}
	return nil
}

// mayAsk judges by limits a login whose exchange is about to ask for the user's keys
// (SCRAM), which may cost a question to Redis. Nothing is verified before the proof, so
// until then the login neither waits for what is owed nor counts as one under way.
func (s *session) mayAsk(ctx context.Context, a *attempt, response []byte) error {
	if !strings.HasPrefix(a.login.Mechanism, "AUTH=SCRAM-") {
		return nil
	}
	name, ok := scramName(response)
	if !ok {
		return nil
	}
	user, err := s.server.rooms.Auth.Canon(name)
	if err != nil {
		return nil // nobody will be asked for
	}
	a.login.User = user
	ctx, cancel := context.WithTimeout(ctx, judging)
	defer cancel()
	if err := s.visit.Check(ctx, user); err != nil {
		return fmt.Errorf("%w: %w", errTooOften, err)
	}
	return nil
}

// linger counts a failed login, and waits until it may be answered. Whatever the
// cause it takes time and counts for the connection; for the user and the address
// count guesses alone, so that nobody is banned because a backend is away. The wait
// for failures ends with the time for a login; it is false when there was more to
// wait for. The time that all denials take is waited for in any case.
func (s *session) linger(ctx context.Context, a *attempt, why error) (inTime bool) {
	r := refusalOf(why)
	if r.reply == "" {
		s.visit.Settle()
		return true // there is nobody who waits
	}
	s.vain++
	guess := r.denied || a.verdict >= upstream.VerdictUnclear
	if guess || r.reason == audit.LimitReached || r.reason == audit.ProvedAndLeft {
		s.failed++
	}
	least := max(s.server.floor, s.server.denials.least(a, r))
	if asked := (*auth.Wait)(nil); errors.As(why, &asked) {
		least = max(least, asked.For)
	}
	owed := s.count(ctx, a, r)
	if owed > least {
		s.server.rooms.Metrics.Limits.Delayed(owed)
	}
	spread := rand.N(s.server.jitter)
	alike, until := a.began.Add(a.waited+least+spread), a.began.Add(a.waited+owed+spread)
	inTime = !until.After(later(s.deadline, alike))
	if !inTime {
		until = s.deadline
	}
	began := time.Now()
	pause(ctx, time.Until(later(alike, until)))
	a.waited += time.Since(began)
	return inTime
}

// count has a failed login counted as what it is, and gives the least time that its
// denial must take because of it.
//
//	denied, and nobody knew the password for right      a failure
//	the backend calls the credentials wrong             a failure
//	the backend's answer, or silence, fits both         Unclear; of a token nothing: those are not guessed
//	denied although the credentials are right           nothing, in the time of a failure
//	everything else                                     nothing
func (s *session) count(ctx context.Context, a *attempt, r refusal) time.Duration {
	user, shown := a.login.User, a.shown()
	switch {
	case r.denied && (a.decided || a.verdict == upstream.VerdictRight), a.verdict == upstream.VerdictUnclear && !a.login.Token.IsZero():
		return s.visit.Uncounted()
	case r.denied, a.verdict == upstream.VerdictWrong:
		return s.visit.Failed(ctx, user, shown)
	case a.verdict == upstream.VerdictUnclear:
		return s.visit.Unclear(ctx, user, shown)
	}
	s.visit.Settle() // while the answer waits, others need not
	return 0
}

// shown is by what a failed login is recognised when it is tried again: what was
// shown as a secret, and with a name that is nobody's that name too. It is zero
// with SCRAM, whose proofs of one password have nothing in common.
func (a *attempt) shown() identity.Secret {
	secret := cmp.Or(a.login.Password, a.login.Token, a.tried.Secret)
	if a.login.User.IsZero() && a.tried != (auth.Tried{}) {
		return identity.NewSecret(a.tried.Name + "\x00" + secret.Reveal())
	}
	return secret
}

// gaveUp says whether enough logins have failed on the connection: twice as many as
// may be guessed where they failed for any other reason.
func (s *session) gaveUp() bool {
	return s.failed >= s.server.cfg.AuthAttempts || s.vain >= 2*s.server.cfg.AuthAttempts
}

// enter takes a place for the session among those of its user.
func (s *session) enter(ctx context.Context, up admitted) error {
	err := s.visit.Enter(ctx, up.User())
	if err == nil {
		return nil
	}
	s.recordLimit(err, up.User().String())
	return fmt.Errorf("%w: %w", errFull, errors.Join(err, up.Close()))
}

// recordLimit writes down that a limit turned somebody away.
func (s *session) recordLimit(err error, user string) {
	var r *limit.Refusal
	if !errors.As(err, &r) {
		return // its time was over
	}
	subject := user
	if r.Net.IsValid() {
		subject = r.Net.String()
	}
	s.server.rooms.Metrics.Limits.Refused(string(r.Reason))
	_ = s.server.rooms.Audit.LimitHit(&s.who, &audit.Hit{Limit: audit.Limit(r.Reason), Subject: subject, Measure: audit.Refused})
}
