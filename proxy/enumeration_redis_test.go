package proxy

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"imapgate/auth"
	"imapgate/internal/audit"
	"imapgate/internal/faultproxy"
	"imapgate/internal/identity"
	"imapgate/internal/testbed"
	"imapgate/routing"
)

const (
	negative       = 200 * time.Millisecond // how long nobody is remembered in these tests
	challengeFloor = 50 * time.Millisecond  // how soon a challenge of SCRAM may come
)

// byRedis has the passwords of a real Redis, which is a millisecond away: frank
// may log in, blocked may not, and there is nobody else.
func byRedis(t testing.TB) func(*setup) {
	t.Helper()
	store := testbed.StartRedis(t)
	hash, err := auth.Hash("SCRAM-SHA-256", identity.NewSecret(password))
	must(t, err)
	store.CLI("HSET", "imapgate:user:frank@example.org", "password", hash)
	store.CLI("HSET", "imapgate:user:blocked@example.org", "password", hash, "state", "blocked")
	far := faultproxy.Start(t, store.Address)
	for _, d := range []faultproxy.Direction{faultproxy.ToTarget, faultproxy.ToClient} {
		far.Set(d, faultproxy.Rules{Latency: time.Millisecond / 2})
	}
	rdb, err := routing.Dial(routing.RedisConfig{Addresses: []string{far.Address()}})
	must(t, err)
	t.Cleanup(func() { _ = rdb.Close() })
	return func(s *setup) {
		var routes *routing.Router // made behind auth
		s.redis, s.routes.Negative, s.routes.Static.Default = rdb, negative, "east"
		s.rooms = func(r *Rooms) { routes = r.Routes }
		s.auth.Methods, s.auth.Mechanisms = []string{auth.Redis}, []string{"PLAIN", "LOGIN", "SCRAM-SHA-256", "SCRAM-SHA-256-PLUS"}
		s.auth.SCRAMSecret = identity.NewSecret("the secret of the salts of nobody")
		s.asked.Redis = func(ctx context.Context, u identity.User) (identity.Secret, error) {
			hash, err := routes.Password(ctx, u)
			switch {
			case errors.Is(err, routing.ErrNoUser):
				err = fmt.Errorf("%w: %w", auth.ErrUnknown, err)
			case errors.Is(err, routing.ErrBlocked):
				err = fmt.Errorf("%w: %w", auth.ErrDenied, err)
			}
			return hash, err
		}
	}
}

// TestTheTimeOfADenialSaysNothingAboutTheUserOfRedis asks about everybody once
// more when nobody is forgotten and the user is not: only one of the two needs a
// trip to Redis. A challenge is an answer too, and costs its asker nothing.
func TestTheTimeOfADenialSaysNothingAboutTheUserOfRedis(t *testing.T) {
	pairs := pairsWanted(t)
	b := openBed(t, openMailbox(t).addr(), byRedis(t), func(s *setup) {
		s.cfg.AuthAttempts = 1
		s.limits.Failures.PerPairHour = 1 << 30
	})
	challenge := question{ask: (*prober).challenge, floor: challengeFloor}
	all := passwordsAndProofs()
	all["challenge of SCRAM-SHA-256"] = challenge
	for name, q := range all {
		crowd(pairs, 16, func(i int) { _, _ = b.probe(challenge, fmt.Sprint("nobody", i)) }) // somebody asked, whatever was said
		_, _ = b.probe(challenge, "frank")
		<-time.After(2 * negative)
		b.compare(t, name, pairs, q)
	}
}

// Whoever is blocked is asked for a proof like everybody else, and it fails; only
// the operator learns why.
func TestABlockedUserIsDeniedBehindTheProof(t *testing.T) {
	b := openBed(t, openMailbox(t).addr(), byRedis(t))
	for user, why := range map[string]audit.Reason{"blocked": audit.UserBlocked, "nobody": audit.BadCredentials, "frank": audit.BadCredentials} {
		if took, err := b.probe(question{ask: (*prober).challenge}, user); err != nil || took < challengeFloor {
			t.Errorf("%s: a challenge after %v: %v", user, took, err)
		}
		if took, err := b.probe(question{ask: (*prober).scram}, user); err != nil || took < denialFloor {
			t.Errorf("%s: a denial after %v: %v", user, took, err)
		}
		b.wantRecord("login_refused", why)
	}
}
