//go:build unix

package fleet

import (
	"context"
	"testing"
	"time"

	"imapgate/internal/breaker"
	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
)

// placer makes claims for one user, and keeps what is to be released.
type placer struct {
	t        testing.TB
	name     string
	releases []func()
}

// expect claims a place, and reports an error if it is not at want.
func (p *placer) expect(m *member, what string, candidates, keep []string, want string) {
	p.t.Helper()
	at, release := m.Claim(p.t.Context(), "east", user(p.t, p.name), candidates, keep)
	if at != want {
		p.t.Errorf("%s: %s sends %s to %q, want %q", what, m.Name, p.name, at, want)
	}
	p.releases = append(p.releases, release)
}

func (p *placer) release() {
	for _, release := range p.releases {
		release()
		release() // again
	}
	p.releases = nil
}

func TestUsersStayAtTheirPlaceThroughFailures(t *testing.T) {
	t.Parallel()
	r := testbed.StartRedis(t)
	a, b := join(t, "gw-a", dial(t, r.Address)), join(t, "gw-b", dial(t, r.Address))
	both, reversed := []string{"e1", "e2"}, []string{"e2", "e1"}
	bob, carol, dave := &placer{t: t, name: "bob"}, &placer{t: t, name: "carol"}, &placer{t: t, name: "dave"}
	bob.expect(a, "the first login", both, nil, "e1")
	bob.expect(b, "another preference", reversed, nil, "e1")
	bob.expect(b, "e1 has failed", []string{"e2"}, nil, "e2")
	bob.expect(a, "e1 has returned", both, nil, "e2")
	bob.expect(a, "e2 is drained, and bob has sessions there", []string{"e1"}, []string{"e2"}, "e2")
	carol.expect(a, "carol has none there", []string{"e1"}, []string{"e2"}, "e1")
	dave.expect(a, "no address takes new users", nil, []string{"e2"}, "")
	dave.expect(a, "there is no address", nil, nil, "")

	for _, failure := range []struct {
		what       string
		begin, end func()
	}{
		{"Redis hangs", r.Freeze, r.Thaw},
		{"Redis is down", r.Kill, r.Restart},
		{"Redis loses all", r.Kill, r.RestartEmpty},
		{"Redis is flushed", func() { r.CLI("FLUSHALL") }, func() {}},
	} {
		what := failure.what
		failure.begin()
		for range 2 * breaker.Threshold {
			bob.expect(a, what, both, nil, "e2")
			bob.expect(b, what, both, nil, "e2")
			carol.expect(a, what, reversed, nil, "e1")
		}
		failure.end()
		testkit.Eventually(t, what+", and the places are there again", func() bool {
			at, err := a.redis.Get(t.Context(), "imapgate:place:east:bob@example.org").Result()
			return err == nil && at == "e2"
		})
		testkit.Eventually(t, what+", and another gateway sees carol's", func() bool {
			at, err := b.redis.Get(t.Context(), "imapgate:place:east:carol@example.org").Result()
			return err == nil && at == "e1"
		})
		testkit.Eventually(t, "both ask Redis again", func() bool { return !a.isBroken() && !b.isBroken() || a.probe(t) && b.probe(t) })
		bob.expect(b, what+" no longer", both, nil, "e2")
		carol.expect(b, what+" no longer", reversed, nil, "e1")
	}
	c := join(t, "gw-c", dial(t, r.Address))
	bob.expect(c, "a gateway that has just started", both, nil, "e2")
	for _, p := range []*placer{bob, carol, dave} {
		p.release()
	}
	for _, m := range []*member{a, b, c} {
		if keys, _ := m.places.used(); len(keys) != 0 {
			t.Errorf("%s has connections left: %v", m.Name, keys)
		}
	}
}

// isBroken reports whether claims are decided without Redis.
func (m *member) isBroken() bool {
	m.places.mu.Lock()
	defer m.places.mu.Unlock()
	return m.places.breaker.IsOpen()
}

// probe makes a claim, which tries Redis when that is due. It reports whether Redis has answered.
func (m *member) probe(t testing.TB) bool {
	_, release := m.Claim(t.Context(), "east", user(t, "probe"), []string{"e1"}, nil)
	release()
	return !m.isBroken()
}

func TestADeadRedisCostsOnlyTheFirstLoginsTime(t *testing.T) {
	t.Parallel()
	r := testbed.StartRedis(t)
	m := join(t, "gw-a", dial(t, r.Address))
	bob := &placer{t: t, name: "bob"}
	bob.expect(m, "at first", []string{"e1"}, nil, "e1")
	// A client that leaves is no failure of Redis.
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	for range 2 * breaker.Threshold {
		at, release := m.Claim(gone, "east", user(t, "bob"), []string{"e2", "e1"}, nil)
		if at != "e1" {
			t.Errorf("at %q", at)
		}
		release()
	}
	if m.isBroken() {
		t.Error("clients that leave keep others from Redis")
	}
	r.Freeze()
	for range breaker.Threshold {
		bob.expect(m, "Redis hangs", []string{"e1"}, nil, "e1")
	}
	if !m.isBroken() {
		t.Error("logins wait for a Redis that hangs")
	}
	r.Thaw()
	testkit.Eventually(t, "Redis is asked again", func() bool { return m.probe(t) })
}

// Where gateways disagree after an outage, Redis decides for the next logins of both.
func TestGatewaysAgreeAfterAnOutage(t *testing.T) {
	t.Parallel()
	r := testbed.StartRedis(t)
	a, b := join(t, "gw-a", dial(t, r.Address)), join(t, "gw-b", dial(t, r.Address))
	bob := &placer{t: t, name: "bob"}
	r.Kill()
	bob.expect(a, "Redis is down", []string{"e1", "e2"}, nil, "e1")
	bob.expect(b, "Redis is down", []string{"e2", "e1"}, nil, "e2")
	r.Restart()
	testkit.Eventually(t, "both know of one place", func() bool {
		testkit.NoError(t, a.renewPlaces(t.Context()))
		testkit.NoError(t, b.renewPlaces(t.Context()))
		key := placeKey{"east", user(t, "bob")}
		return a.places.find(key) == b.places.find(key)
	})
	at, release := a.Claim(t.Context(), "east", user(t, "bob"), []string{"e1", "e2"}, nil)
	again, releaseB := b.Claim(t.Context(), "east", user(t, "bob"), []string{"e2", "e1"}, nil)
	if at != again {
		t.Errorf("one sends bob to %s, the other to %s", at, again)
	}
	release()
	releaseB()
	bob.release()
}

func TestAPlaceIsRenewedOnlyWhileItIsOurs(t *testing.T) {
	t.Parallel()
	r := testbed.StartRedis(t)
	m := newMember(t, "gw-a", dial(t, r.Address))
	bob := &placer{t: t, name: "bob"}
	bob.expect(m, "at first", []string{"e1"}, nil, "e1")
	const key = "imapgate:place:east:bob@example.org"
	ttl := func() time.Duration { return m.redis.PTTL(t.Context(), key).Val() }
	r.CLI("PEXPIRE", key, "30000")
	testkit.NoError(t, m.renewPlaces(t.Context()))
	if ttl() <= 30*time.Second {
		t.Errorf("a place is not renewed: %v", ttl())
	}
	r.CLI("SET", key, "e2", "PX", "30000")
	testkit.NoError(t, m.renewPlaces(t.Context()))
	if ttl() > 30*time.Second || r.CLI("GET", key) != "e2" {
		t.Errorf("another gateway's place is renewed, or overwritten: %v", ttl())
	}
	// A key that holds anything else does not keep the other places from being renewed.
	r.CLI("DEL", key)
	r.CLI("LPUSH", key, "x")
	carol := &placer{t: t, name: "carol"}
	carol.expect(m, "at first", []string{"e1"}, nil, "e1")
	r.CLI("PEXPIRE", "imapgate:place:east:carol@example.org", "30000")
	testkit.NoError(t, m.renewPlaces(t.Context()))
	if ttl := m.redis.PTTL(t.Context(), "imapgate:place:east:carol@example.org").Val(); ttl <= 30*time.Second {
		t.Errorf("a place is not renewed: %v", ttl)
	}
	carol.release()
	bob.release()
	testkit.NoError(t, m.renewPlaces(t.Context())) // nothing to do
}
