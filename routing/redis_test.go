package routing

import (
	"context"
	"errors"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"imapgate/internal/event"
	"imapgate/internal/identity"
	"imapgate/internal/testbed"
	"imapgate/internal/testkit"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"
	"go.uber.org/zap/zaptest/observer"
)

func user(t testing.TB, name string) identity.User {
	t.Helper()
	return testkit.Must(identity.Canonicalize(name, ""))(t)
}

func dialRedis(t testing.TB, c RedisConfig) redis.UniversalClient {
	t.Helper()
	rdb, err := Dial(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = rdb.Close() })
	return rdb
}

// newRouter returns a Router with two backends; change may set more.
func newRouter(t testing.TB, rdb redis.UniversalClient, change ...func(*Config)) *Router {
	t.Helper()
	cfg := Config{Settings: Settings{Source: SourceRedis}, Backends: []string{"east", "west"}}
	for _, f := range change {
		f(&cfg)
	}
	r, err := New(testbed.WithDefaults(cfg), rdb, Metrics{}, testLogger(t))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// testLogger logs to the test when it is verbose.
func testLogger(t testing.TB) *zap.Logger {
	if testing.Verbose() {
		return zaptest.NewLogger(t)
	}
	return zap.NewNop()
}

// startAndAwaitUp runs r until the test ends and waits until it receives changes.
func startAndAwaitUp(t testing.TB, r *Router) {
	t.Helper()
	startRouter(t, r)
	testkit.Eventually(t, "the invalidation connection to be up", func() bool { return r.invalidator.status().State == InvalidationUp })
}

// startRouter runs r until the test ends.
func startRouter(t testing.TB, r *Router) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	var saving sync.WaitGroup
	saving.Go(func() { r.SaveSnapshots(ctx) })
	stop = func() {
		cancel()
		saving.Wait()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		done <- nil
	}
	t.Cleanup(stop)
	return stop
}

// awaitBackend waits until a lookup returns the backend.
func awaitBackend(t testing.TB, r *Router, u identity.User, backend string) Route {
	t.Helper()
	var got Route
	var err error
	testkit.Eventually(t, u.String()+" to go "+backend, func() bool {
		got, err = r.Lookup(t.Context(), u)
		return err == nil && got.Backend == backend
	})
	return got
}

// checkMoves checks that changes by redis-cli alone to a user, a domain and the default take
// effect in time.
func checkMoves(t *testing.T, r *Router, cli func(...string) string) {
	t.Helper()
	alice, bob, carol := user(t, "alice@example.org"), user(t, "bob@example.net"), user(t, "carol")
	for _, to := range []string{"east", "west", "east"} {
		cli("hset", "imapgate:user:alice@example.org", "backend", to)
		cli("hset", "imapgate:domain:example.net", "backend", to)
		cli("hset", "imapgate:default", "backend", to)
		for u, source := range map[identity.User]Match{alice: MatchUser, bob: MatchDomain, carol: MatchDefault} {
			if got := awaitBackend(t, r, u, to); got.Match != source || got.User != u || got.Login != u.String() {
				t.Errorf("%s: %+v", u, got)
			}
			// The invalidation may arrive after the lookup, once.
			testkit.Eventually(t, u.String()+" to be cached", func() bool {
				again, err := r.Lookup(t.Context(), u)
				return err == nil && again.Origin == event.OriginCache
			})
		}
	}
}

func TestAMoveTakesEffectWithinASecond(t *testing.T) {
	t.Run("single", func(t *testing.T) {
		s := testbed.StartRedis(t)
		r := newRouter(t, dialRedis(t, RedisConfig{RedisSettings: RedisSettings{Addresses: []string{s.Address}}}))
		startAndAwaitUp(t, r)
		checkMoves(t, r, s.CLI)
	})
	t.Run("with a password", func(t *testing.T) {
		s := testbed.StartRedis(t, "--user", "gate", "on", ">pw", "~imapgate:*", "+hgetall", "+echo", "+ping", "+hello", "+client|tracking")
		r := newRouter(t, dialRedis(t, RedisConfig{RedisSettings: RedisSettings{Addresses: []string{s.Address}, Username: "gate", Password: identity.NewSecret("pw")}}))
		startAndAwaitUp(t, r)
		checkMoves(t, r, s.CLI)
	})
	t.Run("TLS", func(t *testing.T) {
		ca := testbed.NewCA(t)
		s, address := testbed.StartRedisTLS(t, ca)
		r := newRouter(t, dialRedis(t, RedisConfig{RedisSettings: RedisSettings{Addresses: []string{address}}, TLSConfig: ca.ClientTLSFunc("localhost")}))
		startAndAwaitUp(t, r)
		checkMoves(t, r, s.CLI)
		untrusting := newRouter(t, dialRedis(t, RedisConfig{RedisSettings: RedisSettings{Addresses: []string{address}}, TLSConfig: testbed.NewCA(t).ClientTLSFunc("localhost")}))
		if _, err := untrusting.Lookup(t.Context(), user(t, "alice")); !errors.Is(err, ErrUnavailable) {
			t.Errorf("a server with an untrusted certificate: %v", err)
		}
	})
	t.Run("sentinel", func(t *testing.T) {
		s := testbed.StartRedisSentinel(t)
		r := newRouter(t, dialRedis(t, RedisConfig{RedisSettings: RedisSettings{Addresses: s.Addresses, SentinelMaster: testbed.SentinelName}}))
		startAndAwaitUp(t, r)
		checkMoves(t, r, s.Primary().CLI)
		s.Failover()
		// The deadline counts again when go-redis has noticed the failover.
		testkit.Eventually(t, "the invalidation connection to move to the new primary", func() bool {
			s.Primary().CLI("hset", "imapgate:user:alice@example.org", "backend", "west")
			got, err := r.Lookup(t.Context(), user(t, "alice@example.org"))
			return err == nil && got.Backend == "west"
		})
		checkMoves(t, r, s.Primary().CLI)
	})
	t.Run("cluster", func(t *testing.T) {
		c := testbed.StartRedisCluster(t)
		r := newRouter(t, dialRedis(t, RedisConfig{RedisSettings: RedisSettings{Addresses: c.Addresses[:2], Cluster: true}}))
		startAndAwaitUp(t, r)
		if n := r.invalidator.status().Nodes; n != 3 {
			t.Errorf("%d invalidation connections to 3 nodes", n)
		}
		checkMoves(t, r, c.CLI)
		c.Failover()
		testkit.Eventually(t, "the connection to the promoted node", func() bool {
			r.invalidator.mu.Lock()
			defer r.invalidator.mu.Unlock()
			return slices.Contains(slices.Collect(maps.Keys(r.invalidator.conns)), c.Nodes[3].Address)
		})
		testkit.Eventually(t, "all invalidation connections to be up", func() bool { return r.invalidator.status().State == InvalidationUp })
		checkMoves(t, r, c.CLI)
	})
}

func TestCachedRoutesServeWhileRedisIsDown(t *testing.T) {
	for name, stop := range map[string]func(*testbed.Redis){"killed": (*testbed.Redis).Kill, "frozen": (*testbed.Redis).Freeze} {
		t.Run(name, func(t *testing.T) {
			s := testbed.StartRedis(t)
			s.CLI("hset", "imapgate:user:alice", "backend", "east")
			s.CLI("hset", "imapgate:default", "backend", "west")
			r := newRouter(t, dialRedis(t, RedisConfig{RedisSettings: RedisSettings{Addresses: []string{s.Address}}}), func(c *Config) { c.Cache.TTL = 10 * time.Millisecond })
			var up atomic.Bool
			r.invalidator.onState = up.Store
			startAndAwaitUp(t, r)
			alice := user(t, "alice")
			awaitBackend(t, r, alice, "east")
			stop(s)
			for range 40 {
				if got, err := r.Lookup(t.Context(), alice); err != nil || got.Backend != "east" {
					t.Fatalf("%+v, %v", got, err)
				}
				if got, err := r.Lookup(t.Context(), user(t, "unknown")); !errors.Is(err, ErrUnavailable) {
					t.Fatalf("an unknown user: %+v, %v", got, err)
				}
			}
			testkit.Eventually(t, "the status to be down", func() bool { return r.invalidator.status().State == InvalidationDown })
			testkit.Eventually(t, "the metric to be down", func() bool { return !up.Load() })
			s.Restart()
			s.CLI("hset", "imapgate:user:alice", "backend", "west")
			awaitBackend(t, r, alice, "west") // the breaker and the invalidation connection recover first
			testkit.Eventually(t, "the status to be up again", func() bool { return r.invalidator.status().State == InvalidationUp && up.Load() })
		})
	}
}

func TestADeletionIsTrustedAtOnceAndAFlushIsNot(t *testing.T) {
	s := testbed.StartRedis(t)
	alice, bob := user(t, "alice@example.org"), user(t, "bob@example.org")
	r := newRouter(t, dialRedis(t, RedisConfig{RedisSettings: RedisSettings{Addresses: []string{s.Address}}}))
	startAndAwaitUp(t, r)
	write := func() {
		s.CLI("hset", "imapgate:user:alice@example.org", "backend", "east")
		s.CLI("hset", "imapgate:domain:example.org", "backend", "west")
	}
	write()
	awaitBackend(t, r, alice, "east")
	awaitBackend(t, r, bob, "west")
	s.CLI("del", "imapgate:user:alice@example.org")
	awaitBackend(t, r, alice, "west")
	write()
	awaitBackend(t, r, alice, "east")

	flushed := time.Now()
	s.CLI("flushall")
	// Only the domain's record comes back: alice must not get it.
	s.CLI("hset", "imapgate:domain:example.org", "backend", "west")
	for time.Since(flushed) < confirmDelay-500*time.Millisecond {
		for u, backend := range map[identity.User]string{alice: "east", bob: "west"} {
			got, err := r.Lookup(t.Context(), u)
			if (err != nil || got.Backend != backend) && time.Since(flushed) < confirmDelay {
				t.Fatalf("%v after the flush %s goes: %+v, %v", time.Since(flushed), u, got, err)
			}
		}
	}
	awaitBackend(t, r, alice, "west") // its absence was confirmed
}

func TestWithoutInvalidationsAChangeTakesEffectAfterTheTTL(t *testing.T) {
	s := testbed.StartRedis(t)
	s.CLI("acl", "setuser", "default", "-client|tracking")
	r := newRouter(t, dialRedis(t, RedisConfig{RedisSettings: RedisSettings{Addresses: []string{s.Address}}}), func(c *Config) { c.Cache.TTL = 2 * time.Second })
	startRouter(t, r)
	testkit.Eventually(t, "the status to be unsupported", func() bool {
		return r.invalidator.status().State == InvalidationUnsupported
	})
	alice := user(t, "alice")
	s.CLI("hset", "imapgate:user:alice", "backend", "east")
	began := time.Now()
	awaitBackend(t, r, alice, "east")
	s.CLI("hset", "imapgate:user:alice", "backend", "west")
	awaitBackend(t, r, alice, "west")
	if took := time.Since(began); took < 1500*time.Millisecond {
		t.Errorf("the change was seen after %v, so this test does not test the ttl", took)
	}
	if x := r.Explain(t.Context(), alice); x.Invalidation.State != InvalidationUnsupported || !strings.Contains(x.Invalidation.Error, "NOPERM") {
		t.Errorf("explained as %+v", x.Invalidation)
	}
}

// The demo uses such a Redis.
func TestAServerWithoutTrackingIsReported(t *testing.T) {
	s := miniredis.RunT(t)
	s.HSet("imapgate:user:alice", "backend", "east")
	core, logged := observer.New(zap.WarnLevel)
	cfg := testConfig
	cfg.Cache.TTL = 100 * time.Millisecond
	r, err := New(testbed.WithDefaults(cfg), dialRedis(t, RedisConfig{RedisSettings: RedisSettings{Addresses: []string{s.Addr()}}}), Metrics{}, zap.New(core))
	if err != nil {
		t.Fatal(err)
	}
	startRouter(t, r)
	testkit.Eventually(t, "the status to be unsupported", func() bool { return r.invalidator.status().State == InvalidationUnsupported })
	awaitBackend(t, r, user(t, "alice"), "east")
	s.HSet("imapgate:user:alice", "backend", "west")
	awaitBackend(t, r, user(t, "alice"), "west")
	testkit.Eventually(t, "a warning in the log", func() bool { return logged.Len() == 1 })
}

func TestTheSnapshotServesAfterARestartWithoutRedis(t *testing.T) {
	s := testbed.StartRedis(t)
	s.CLI("hset", "imapgate:user:alice", "backend", "east", "login", "a.smith", "password", "{PLAIN}canary-hash")
	s.CLI("hset", "imapgate:user:mallory", "backend", "east", "state", "blocked")
	file := t.TempDir() + "/routes.json"
	keep := func(c *Config) { c.Snapshot = file }
	alice := user(t, "alice")

	first := newRouter(t, dialRedis(t, RedisConfig{RedisSettings: RedisSettings{Addresses: []string{s.Address}}}), keep)
	stop := startRouter(t, first)
	awaitBackend(t, first, alice, "east")
	if _, err := first.Lookup(t.Context(), user(t, "mallory")); !errors.Is(err, ErrBlocked) {
		t.Fatalf("a blocked user: %v", err)
	}
	if hash, err := first.Password(t.Context(), alice); err != nil || hash.Reveal() != "{PLAIN}canary-hash" {
		t.Fatalf("the hash: %v, %v", hash.Reveal(), err)
	}
	stop()
	s.Kill()
	checkSnapshotFile(t, file, "alice", "canary")

	second := newRouter(t, dialRedis(t, RedisConfig{RedisSettings: RedisSettings{Addresses: []string{s.Address}}}), keep)
	startRouter(t, second)
	got, err := second.Lookup(t.Context(), alice)
	if err != nil || got.Backend != "east" || got.Login != "a.smith" || got.Origin != event.OriginSnapshot || got.Key != "imapgate:user:alice" {
		t.Fatalf("after the restart: %+v, %v", got, err)
	}
	for _, name := range []string{"mallory", "unknown"} {
		if _, err := second.Lookup(t.Context(), user(t, name)); !errors.Is(err, ErrUnavailable) {
			t.Errorf("%s after the restart: %v", name, err)
		}
	}
	if _, err := second.Password(t.Context(), alice); !errors.Is(err, ErrUnavailable) {
		t.Errorf("a password after the restart: %v", err)
	}
	s.Restart()
	s.CLI("hset", "imapgate:user:alice", "backend", "west")
	awaitBackend(t, second, alice, "west")
}

func TestOperatorWritesAreCheckedAndTakeEffect(t *testing.T) {
	s := testbed.StartRedis(t)
	r := newRouter(t, dialRedis(t, RedisConfig{RedisSettings: RedisSettings{Addresses: []string{s.Address}}}))
	startAndAwaitUp(t, r)
	alice, ctx := user(t, "alice"), t.Context()
	if err := r.SetRecord(ctx, ForUser(alice), map[string]string{"backend": "nowhere"}); err == nil {
		t.Error("a record with an unknown backend was written")
	}
	if err := r.SetRecord(ctx, ForUser(alice), map[string]string{"user": "bob"}); err == nil {
		t.Error("a record of another user was written")
	}
	if got := s.CLI("exists", "imapgate:user:alice"); got != "0" {
		t.Error("an invalid record was written")
	}
	if err := r.SetRecord(ctx, ForUser(alice), map[string]string{"backend": "east", "mode": "park", "password": "{PLAIN}x"}); err != nil {
		t.Fatal(err)
	}
	awaitBackend(t, r, alice, "east")
	if err := r.SetRecord(ctx, ForUser(alice), map[string]string{"backend": "west", "mode": ""}); err != nil {
		t.Fatal(err)
	}
	if got := awaitBackend(t, r, alice, "west"); got.Mode != "" {
		t.Errorf("the mode was not removed: %+v", got)
	}
	rec, err := r.Record(ctx, ForUser(alice))
	want := map[string]string{"user": "alice", "backend": "west", "password": "[secret]"}
	if err != nil || !maps.Equal(rec, want) {
		t.Errorf("the record is %v, %v", rec, err)
	}
	if was, err := r.DeleteRecord(ctx, ForUser(alice)); err != nil || !was {
		t.Errorf("deletion: %v, %v", was, err)
	}
	testkit.Eventually(t, "the user to be gone", func() bool {
		_, err := r.Lookup(ctx, alice)
		return errors.Is(err, ErrNoUser)
	})
	if was, err := r.DeleteRecord(ctx, ForUser(alice)); err != nil || was {
		t.Errorf("second deletion: %v, %v", was, err)
	}
}

func TestDomainAndDefaultRecordsCanBeWritten(t *testing.T) {
	s := testbed.StartRedis(t)
	rdb := dialRedis(t, RedisConfig{RedisSettings: RedisSettings{Addresses: []string{s.Address}}})
	r, other := newRouter(t, rdb), newRouter(t, dialRedis(t, RedisConfig{RedisSettings: RedisSettings{Addresses: []string{s.Address}}}))
	startAndAwaitUp(t, other) // in place of another gateway
	alice, ctx := user(t, "alice@example.org"), t.Context()
	for _, step := range []struct {
		of      Target
		fields  map[string]string
		backend string // alice's backend after the step; "": an error
	}{
		{ForDefault(), map[string]string{"backend": "east"}, "east"},
		{ForDomain("example.org"), map[string]string{"backend": "west", "mode": "reuse"}, "west"},
		{ForDomain("example.org"), map[string]string{"mode": "", "backend": "east"}, "east"},
		{ForDomain("example.org"), map[string]string{"backend": "nowhere"}, ""},
		{ForDomain("example.org"), map[string]string{"backend": ""}, ""},
		{ForDomain("example.org"), map[string]string{"login": "alice"}, ""},
		{ForDomain("example.org"), map[string]string{"password": "{PLAIN}x"}, ""},
		{ForDefault(), map[string]string{"state": "paused"}, ""},
		{ForDefault(), map[string]string{"user": "alice"}, ""},
		{ForUser(alice), map[string]string{"backend": "west"}, "west"},
	} {
		before, err := r.Record(ctx, step.of)
		if err != nil {
			t.Fatal(err)
		}
		if err := r.SetRecord(ctx, step.of, step.fields); (err == nil) != (step.backend != "") {
			t.Errorf("%s %v: %v", step.of, step.fields, err)
		}
		if step.backend != "" {
			awaitBackend(t, other, alice, step.backend)
		} else if after, err := r.Record(ctx, step.of); err != nil || !maps.Equal(before, after) {
			t.Errorf("%s %v was refused and made %v of %v, %v", step.of, step.fields, after, before, err)
		}
	}
	for _, of := range []Target{ForUser(alice), ForDomain("example.org"), ForDefault()} {
		if was, err := r.DeleteRecord(ctx, of); err != nil || !was {
			t.Errorf("deletion of %s: %v, %v", of, was, err)
		}
	}
	testkit.Eventually(t, "the user to be gone", func() bool {
		_, err := other.Lookup(ctx, alice)
		return errors.Is(err, ErrNoUser)
	})
	static := newRouter(t, rdb, func(c *Config) { c.Source, c.Static = SourceStatic, Static{Default: "east"} })
	if err := static.SetRecord(ctx, ForDefault(), map[string]string{"backend": "east"}); err == nil {
		t.Error("a default was written that no gateway reads")
	}
}

// A write that an ACL would refuse half way changes nothing.
func TestARefusedWriteChangesNothing(t *testing.T) {
	s := testbed.StartRedis(t)
	alice, ctx := user(t, "alice"), t.Context()
	writes := map[string]func(*Router) error{
		"set": func(r *Router) error { return r.SetRecord(ctx, ForUser(alice), map[string]string{"backend": "west"}) },
		"set and remove": func(r *Router) error {
			return r.SetRecord(ctx, ForUser(alice), map[string]string{"backend": "west", "mode": ""})
		},
		"only remove": func(r *Router) error {
			return r.SetRecord(ctx, ForDomain("example.org"), map[string]string{"mode": ""})
		},
		"delete":       func(r *Router) error { _, err := r.DeleteRecord(ctx, ForUser(alice)); return err },
		"accept empty": func(r *Router) error { return r.AcceptEmpty(ctx, "operator") },
	}
	needed := 0
	for name, write := range writes {
		for _, right := range []string{"-eval", "-evalsha", "-hset", "-hdel", "-del", "-hgetall", "-multi", "-exec", "%R~imapgate:*"} {
			s.CLI("flushall")
			s.CLI("script", "flush")
			s.CLI("hset", "imapgate:user:alice", "backend", "east", "mode", "reuse")
			s.CLI("hset", "imapgate:domain:example.org", "backend", "east", "mode", "reuse")
			s.CLI("hset", "imapgate:accepted", "at", "1", "by", "unknown")
			acl := []string{"acl", "setuser", "op", "reset", "on", ">pw", "~imapgate:*", "+hello", "+auth", "+ping", "+echo",
				"+hgetall", "+eval", "+evalsha", "+hset", "+hdel", "+del"}
			if strings.HasPrefix(right, "%") {
				acl = append(acl, "resetkeys")
			}
			s.CLI(append(acl, right)...)
			state := func() string {
				return s.CLI("hgetall", "imapgate:user:alice") + s.CLI("hgetall", "imapgate:domain:example.org") + s.CLI("hgetall", "imapgate:accepted")
			}
			before := state()
			r := newRouter(t, dialRedis(t, RedisConfig{RedisSettings: RedisSettings{Addresses: []string{s.Address}, Username: "op", Password: identity.NewSecret("pw")}}))
			err := write(r)
			if err == nil {
				if before == state() {
					t.Errorf("%s with %s did nothing", name, right)
				}
				continue
			}
			needed++
			if right != "-hgetall" && !strings.Contains(err.Error(), "nothing was changed") {
				t.Errorf("%s with %s: %v", name, right, err)
			}
			if after := state(); before != after {
				t.Errorf("%s with %s: %v, and yet\n%s\nbecame\n%s", name, right, err, before, after)
			}
		}
	}
	if needed < 15 {
		t.Errorf("only %d writes were refused", needed)
	}
}

func TestAWriteWithoutAReplyIsReportedAsUncertain(t *testing.T) {
	s := testbed.StartRedis(t)
	r := newRouter(t, dialRedis(t, RedisConfig{RedisSettings: RedisSettings{Addresses: []string{s.Address}}}))
	s.Freeze()
	if _, err := r.DeleteRecord(t.Context(), ForDefault()); err == nil || !strings.Contains(err.Error(), "may have been changed") {
		t.Errorf("%v", err)
	}
}

func TestExplainShowsEveryRecord(t *testing.T) {
	s := testbed.StartRedis(t)
	s.CLI("hset", "imapgate:domain:example.org", "backend", "nowhere")
	s.CLI("hset", "imapgate:default", "backend", "west")
	r := newRouter(t, dialRedis(t, RedisConfig{RedisSettings: RedisSettings{Addresses: []string{s.Address}}}))
	startAndAwaitUp(t, r)
	alice := user(t, "alice@example.org")
	x := r.Explain(t.Context(), alice)
	if x.Outcome != event.LookupUnavailable || x.Error == "" || len(x.Steps) != 3 || x.Steps[0].Content != noRecord ||
		!strings.Contains(x.Steps[1].Content, "not a configured backend") || x.Steps[2].Content != `backend="west"` {
		t.Errorf("%+v", x)
	}
	s.CLI("hset", "imapgate:user:alice@example.org", "backend", "east", "password", "canary")
	awaitBackend(t, r, alice, "east")
	x = r.Explain(t.Context(), alice)
	if x.Backend != "east" || x.Match != MatchUser || !x.Steps[0].Used || x.Steps[1].Used || x.Invalidation.State != InvalidationUp ||
		x.Steps[0].Content != `backend="east" password=[secret]` {
		t.Errorf("%+v", x)
	}
}

func TestExplainShowsChangesNotYetApplied(t *testing.T) {
	s := testbed.StartRedis(t)
	s.CLI("hset", "imapgate:user:alice", "backend", "east")
	r := newRouter(t, dialRedis(t, RedisConfig{RedisSettings: RedisSettings{Addresses: []string{s.Address}}})) // it receives no changes
	alice := user(t, "alice")
	if x := r.Explain(t.Context(), alice); x.Backend != "east" || x.Next != nil {
		t.Errorf("%+v", x)
	}
	s.CLI("hset", "imapgate:user:alice", "backend", "west")
	if x := r.Explain(t.Context(), alice); x.Backend != "east" || x.Next == nil || x.Next.Backend != "west" || x.Next.Key != "imapgate:user:alice" {
		t.Errorf("after a change: %+v, %+v", x, x.Next)
	}
	s.CLI("hset", "imapgate:user:alice", "state", "blocked")
	if x := r.Explain(t.Context(), alice); x.Backend != "east" || x.Next == nil || !strings.Contains(x.Next.Error, "blocked") {
		t.Errorf("after a block: %+v, %+v", x, x.Next)
	}
	s.CLI("hset", "imapgate:user:alice", "backend", "nowhere", "state", "active")
	if x := r.Explain(t.Context(), alice); x.Next != nil {
		t.Errorf("an invalid record has no effect: %+v, %+v", x, x.Next)
	}
	r.cache.suspectUser(alice)
	s.CLI("hset", "imapgate:user:alice", "backend", "west")
	if x := r.Explain(t.Context(), alice); x.Backend != "west" || x.Next != nil {
		t.Errorf("noticed: %+v, %+v", x, x.Next)
	}
}

func TestRunEndsItsGoroutinesAndConnections(t *testing.T) {
	s := testbed.StartRedis(t)
	s.CLI("hset", "imapgate:default", "backend", "west")
	before := runtime.NumGoroutine()
	for range 3 {
		rdb, err := Dial(RedisConfig{RedisSettings: RedisSettings{Addresses: []string{s.Address}}})
		if err != nil {
			t.Fatal(err)
		}
		r := newRouter(t, rdb)
		stop := startRouter(t, r)
		awaitBackend(t, r, user(t, "alice"), "west")
		testkit.Eventually(t, "the invalidation connection to be up", func() bool { return r.invalidator.status().State == InvalidationUp })
		stop()
		if err := rdb.Close(); err != nil {
			t.Fatal(err)
		}
	}
	testkit.Eventually(t, "all goroutines to end", func() bool { return runtime.NumGoroutine() <= before })
	testkit.Eventually(t, "all connections to be closed", func() bool {
		return strings.Count(s.CLI("client", "list"), "id=") == 1 // that of redis-cli
	})
}

// A cluster has no echo to guard the replies. There, too, a query that was never sent must not
// mean "no record".
func TestAnUnreachableClusterIsNotAMissingRecord(t *testing.T) {
	s := testbed.StartRedis(t, "--requirepass", "right")
	for name, c := range map[string]RedisConfig{
		"cluster, wrong password": {RedisSettings: RedisSettings{Addresses: []string{s.Address}, Cluster: true, Password: identity.NewSecret("x")}},
		"cluster, no password":    {RedisSettings: RedisSettings{Addresses: []string{s.Address}, Cluster: true}},
		"cluster, no listener":    {RedisSettings: RedisSettings{Addresses: []string{"127.0.0.1:1"}, Cluster: true}},
		"sentinel, no listener":   {RedisSettings: RedisSettings{Addresses: []string{"127.0.0.1:1"}, SentinelMaster: "m"}},
		"single, wrong password":  {RedisSettings: RedisSettings{Addresses: []string{s.Address}, Password: identity.NewSecret("x")}},
		"single, no password":     {RedisSettings: RedisSettings{Addresses: []string{s.Address}}},
	} {
		st := &store{rdb: dialRedis(t, c), keys: keys{DefaultPrefix}, rules: newRules(testConfig)}
		if a, err := st.readUser(t.Context(), user(t, "alice"), nil); err == nil || errors.Is(err, errInvalidRecord) {
			t.Errorf("%s: %+v, %v", name, a, err)
		}
	}
	cluster := testbed.StartRedisCluster(t)
	r := newRouter(t, dialRedis(t, RedisConfig{RedisSettings: RedisSettings{Addresses: cluster.Addresses, Cluster: true}}))
	cluster.CLI("hset", "imapgate:default", "backend", "east")
	awaitBackend(t, r, user(t, "alice"), "east")
	for _, n := range cluster.Nodes {
		n.Kill()
	}
	for i := range 8 {
		got, err := r.Lookup(t.Context(), user(t, "u"+string(rune('0'+i))))
		if !errors.Is(err, ErrUnavailable) {
			t.Errorf("a killed cluster: %+v, %v", got, err)
		}
	}
}
