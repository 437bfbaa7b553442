package auth

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"imapgate/internal/identity"
	"imapgate/internal/testbed"
)

func TestChallengeTimeDoesNotRevealUsers(t *testing.T) {
	known := mapLookup(map[string]string{"alice@example.org": pencilHash})
	find := func(ctx context.Context, u identity.User) (identity.Secret, error) {
		if u.String() != "alice@example.org" {
			<-time.After(30 * time.Millisecond) // unknown users are not cached, so this is a request to Redis
		}
		return known(ctx, u)
	}
	synctest.Test(t, func(t *testing.T) {
		a, err := New(testbed.WithDefaults(Config{Settings: Settings{Methods: []string{Redis}, NameRules: identity.NamesInDomain("example.org"), SCRAMSecret: secret(scramSecret), Mechanisms: []string{scramSHA256}}}, "methods"), Sources{Redis: find}, zap.NewNop())
		if err != nil {
			t.Fatal(err)
		}
		for i := range 40 {
			for _, user := range []string{"alice", "unknown", "un known"} {
				began := time.Now()
				_ = firstChallenge(t, a, user)
				if took := time.Since(began); took < defaultMinChallengeTime || took > defaultMinChallengeTime*3/2 {
					t.Errorf("%s, request %d: a challenge after %v", user, i, took)
				}
			}
		}
	})
}

func TestDelayedChallengeIsCancelled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newScramAuth(t)
		a.minChallengeTime = defaultMinChallengeTime
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		began := time.Now()
		e, _ := a.Start(scramSHA256, &Client{})
		challenge, _, err := e.Next(ctx, []byte("n,,n=alice,r=nonce"))
		if took := time.Since(began); challenge != nil || !errors.Is(err, ErrUnavailable) || took != time.Millisecond {
			t.Errorf("%q and %v after %v", challenge, err, took)
		}
	})
}

// The challenge of an unknown user is the same before and after requests for other users.
func TestMockIterationsDoNotChange(t *testing.T) {
	stored := map[string]string{"mallory@example.org": pencilHash}
	for i := range 50 {
		stored[fmt.Sprintf("u%d@example.org", i)] = strings.Replace(pencilHash, "4096", "100000", 1)
	}
	for rounds, want := range map[int]string{0: ",i=100000", 4096: ",i=4096", 12345: ",i=12345"} {
		a := newScramAuthFrom(t, mapLookup(stored), func(c *Config) { c.SCRAMIterations = rounds })
		before := firstChallenge(t, a, "unknown")
		for i := range 50 {
			_ = firstChallenge(t, a, fmt.Sprintf("u%d", i))
		}
		for range 300 { // each an exchange that ends early: no login, no failure
			_ = firstChallenge(t, a, "mallory")
		}
		if after := firstChallenge(t, a, "unknown"); withoutServerNonce(after) != withoutServerNonce(before) || !strings.HasSuffix(after, want) {
			t.Errorf("with %d configured the unknown user has %q, and then %q", rounds, before, after)
		}
	}
}

func TestDifferingIterationsAreLoggedRarely(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := new(testbed.Log)
		log := zap.New(zapcore.NewCore(zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig()), out, zapcore.WarnLevel))
		a := newScramAuth(t, func(c *Config) { c.SCRAMIterations = 50_000 })
		a.log = log
		warnings := func() int { return strings.Count(out.String(), `"iterations":4096,"configured":50000`) }
		for range 100 {
			_ = firstChallenge(t, a, "alice")
			_ = firstChallenge(t, a, "unknown")
		}
		if n := warnings(); n != 1 {
			t.Errorf("%d warnings at once", n)
		}
		<-time.After(2 * time.Minute) // of the test's clock
		_ = firstChallenge(t, a, "alice")
		if n := warnings(); n != 2 {
			t.Errorf("%d warnings after two minutes", n)
		}
		if strings.Contains(out.String(), "W22ZaJ0SNY7soEsUEjb6gQ") {
			t.Error("the warning shows the salt")
		}
	})
}

// A blocked user looks like an unknown one: it gets a challenge, its proof fails, and guesses
// count for it.
func TestBlockedUserGetsChallengeOnly(t *testing.T) {
	blocked := errors.New("user is blocked")
	a := newScramAuthFrom(t, func(_ context.Context, u identity.User) (identity.Secret, error) {
		if u.String() == "alice@example.org" {
			return identity.Secret{}, fmt.Errorf("%w: %w", ErrDenied, blocked)
		}
		return identity.Secret{}, ErrUnknown
	})
	if withoutServerNonce(firstChallenge(t, a, "alice")) != withoutServerNonce(firstChallenge(t, a, "ALICE")) || len(firstChallenge(t, a, "alice")) != len(firstChallenge(t, a, "unknown")) {
		t.Error("the challenge of a blocked user differs from that of an unknown one")
	}
	for user, want := range map[string]bool{"alice": true, "unknown": false} {
		believes, id, err := runScram(t, a, &Client{}, scramSHA256, newScramClient(t, user, "pencil").NewConversation())
		if believes || id != (Identity{}) || !errors.Is(err, ErrDenied) || errors.Is(err, ErrUnavailable) || errors.Is(err, blocked) != want {
			t.Errorf("%s: %v, %v, %v", user, believes, id, err)
		}
		if _, err = logIn(t, a, user, "pencil"); !errors.Is(err, ErrDenied) || errors.Is(err, ErrUnavailable) || errors.Is(err, blocked) != want {
			t.Errorf("%s by password: %v", user, err)
		}
	}
}
