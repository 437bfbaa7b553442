package proxy

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"imapgate/auth"
	"imapgate/internal/event"
	"imapgate/internal/faultproxy"
	"imapgate/internal/identity"
	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
	"imapgate/routing"
)

const (
	negative       = 200 * time.Millisecond // negative cache TTL in these tests
	challengeFloor = 50 * time.Millisecond  // minimum time of a SCRAM challenge
)

// withRedisPasswords uses the passwords of a real Redis a millisecond away. frank may log
// in, blocked may not, and no other user exists.
func withRedisPasswords(t testing.TB) func(*harnessConfig) {
	t.Helper()
	store := testbed.StartRedis(t)
	hash, err := auth.Hash("SCRAM-SHA-256", identity.NewSecret(password))
	testkit.NoError(t, err)
	store.CLI("HSET", "imapgate:user:frank@example.org", "password", hash)
	store.CLI("HSET", "imapgate:user:blocked@example.org", "password", hash, "state", "blocked")
	far := faultproxy.Start(t, store.Address)
	for _, d := range []faultproxy.Direction{faultproxy.ToTarget, faultproxy.ToClient} {
		far.SetRules(d, faultproxy.Rules{Latency: time.Millisecond / 2})
	}
	rdb, err := routing.Dial(routing.RedisConfig{RedisSettings: routing.RedisSettings{Addresses: []string{far.Address()}}})
	testkit.NoError(t, err)
	t.Cleanup(func() { _ = rdb.Close() })
	return func(s *harnessConfig) {
		var routes *routing.Router // created after auth
		s.redis, s.routes.Cache.Negative, s.routes.Static.Default = rdb, negative, "east"
		s.changeDeps = func(r *Deps) { routes = r.Routes }
		s.auth.Methods, s.auth.Mechanisms = []string{auth.Redis}, []string{"PLAIN", "LOGIN", "SCRAM-SHA-256", "SCRAM-SHA-256-PLUS"}
		s.auth.SCRAMSecret = identity.NewSecret("the secret of the salts of unknown users")
		s.authSources.Redis = func(ctx context.Context, u identity.User) (identity.Secret, error) {
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

// TestDenialTimeDoesNotRevealRedisUsers asks about each name again when the negative entry
// of an unknown user has expired and the user's entry has not. Then only one of the two
// needs a request to Redis. A challenge is an answer too, and costs the client nothing.
func TestDenialTimeDoesNotRevealRedisUsers(t *testing.T) {
	pairs := requirePairs(t)
	b := openHarness(t, openTestBackend(t).addr(), withRedisPasswords(t), func(s *harnessConfig) {
		s.cfg.MaxAuthAttempts = 1
		s.limits.Failures.PerUserNetworkHour = 1 << 30
	})
	challenge := timingProbe{run: (*prober).requestChallenge, minTime: challengeFloor}
	all := passwordMechanisms()
	all["challenge of SCRAM-SHA-256"] = challenge
	for name, q := range all {
		runParallel(pairs, 16, func(i int) { _, _ = b.timeLogin(challenge, fmt.Sprint("unknown", i)) }) // any login, whatever its result
		_, _ = b.timeLogin(challenge, "frank")
		<-time.After(2 * negative)
		b.compareTimes(t, name, pairs, q)
	}
}

// A blocked user gets a challenge like any other, and their proof fails; only the operator
// learns the reason.
func TestBlockedUserIsDeniedAfterProof(t *testing.T) {
	b := openHarness(t, openTestBackend(t).addr(), withRedisPasswords(t))
	for user, why := range map[string]event.Reason{"blocked": event.UserBlocked, "unknown": event.BadCredentials, "frank": event.BadCredentials} {
		if took, err := b.timeLogin(timingProbe{run: (*prober).requestChallenge}, user); err != nil || took < challengeFloor {
			t.Errorf("%s: a challenge after %v: %v", user, took, err)
		}
		if took, err := b.timeLogin(timingProbe{run: (*prober).tryScram}, user); err != nil || took < minDenialTime {
			t.Errorf("%s: a denial after %v: %v", user, took, err)
		}
		b.wantRecord("login_refused", why)
	}
}
