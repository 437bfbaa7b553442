package routing

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"

	"imapgate/internal/breaker"
	"imapgate/internal/event"
	"imapgate/internal/identity"
	"imapgate/internal/testbed"
)

var errUnreachable = errors.New("connection refused")

// fakeStore is a Redis whose records and failures a test controls.
type fakeStore struct {
	// Guarded by mu.
	mu           sync.Mutex
	records      map[identity.User]decision
	err          error
	delay        time.Duration
	queries      map[identity.User]int
	totalQueries int

	inspections int
	acceptance  acceptance
	nodes       func(key string) string // node of a key; nil: no cluster

	afterInspect func() // called between reading the records and the reply
}

func newFakeStore() *fakeStore {
	return &fakeStore{records: make(map[identity.User]decision), queries: make(map[identity.User]int)}
}

func (o *fakeStore) read(ctx context.Context, u identity.User, samples []string) (userRecords, error) {
	o.mu.Lock()
	o.queries[u]++
	o.totalQueries++
	r, err, delay := userRecords{decision: o.records[u]}, o.err, o.delay
	records := o.keysPresent()
	for _, key := range (keys{DefaultPrefix}).candidates(u) {
		if records[key] {
			r.present = append(r.present, key)
		} else if len(r.present) == 0 {
			r.absent = append(r.absent, key)
		}
	}
	for _, key := range samples {
		if !records[key] {
			r.missingSamples = append(r.missingSamples, key)
		}
	}
	o.mu.Unlock()
	if delay > 0 {
		select {
		case <-time.After(delay):
		case <-ctx.Done():
			return userRecords{}, ctx.Err()
		}
	}
	return r, err
}

// keysPresent returns the keys that exist. mu is held.
func (o *fakeStore) keysPresent() map[string]bool {
	k, all := keys{DefaultPrefix}, map[string]bool{}
	for u, a := range o.records {
		switch a.match {
		case MatchUser:
			all[k.user(u)] = true
		case MatchDomain:
			all[k.domain(u.Domain())] = true
		case MatchDefault:
			all[k.deflt()] = true
		}
	}
	return all
}

func (o *fakeStore) inspect(_ context.Context, keys []string) (inspection, error) {
	o.mu.Lock()
	after := o.afterInspect
	if after != nil {
		defer after()
	}
	defer o.mu.Unlock()
	o.inspections++
	records, found := o.keysPresent(), inspection{present: map[string]bool{}, acceptance: o.acceptance}
	for _, key := range keys {
		found.present[key] = records[key]
	}
	return found, o.err
}

// nodeOf returns the node of a key, by nodes.
func (o *fakeStore) nodeOf(_ context.Context, key string) (string, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.nodes == nil {
		return "", nil
	}
	return o.nodes(key), nil
}

func (o *fakeStore) reader() recordReader {
	return recordReader{read: o.read, inspect: o.inspect, nodeOf: o.nodeOf}
}

// set makes u's own record name a backend; "" removes the record.
func (o *fakeStore) set(u identity.User, source Match, backend string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.records[u] = decision{match: source, record: record{present: true, backend: backend, state: stateActive}}
}

func (o *fakeStore) fail(err error, delay time.Duration) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.err, o.delay = err, delay
}

func (o *fakeStore) queryCount(u identity.User) int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.queries[u]
}

// runWithCache runs a test of the cache in a synctest bubble.
func runWithCache(t *testing.T, f func(t *testing.T, c *cache, o *fakeStore)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		o := newFakeStore()
		cfg := Config{Backends: []string{"east", "west"}, Prefix: DefaultPrefix}
		cfg = testbed.WithDefaults(cfg)
		f(t, newCache(cfg, o.reader(), testLogger(t)), o)
		synctest.Wait()
	})
}

// makeUsers returns n users.
func makeUsers(t testing.TB, n int) (all []identity.User) {
	t.Helper()
	for i := range n {
		all = append(all, user(t, fmt.Sprintf("user%d@example.org", i)))
	}
	return all
}

// advance lets time pass; in a bubble that happens when all goroutines wait.
func advance(d time.Duration) { <-time.After(d) }

// checkBackend checks one lookup; backend "" stands for "no such user".
func checkBackend(t *testing.T, c *cache, u identity.User, backend string, origin event.Origin) {
	t.Helper()
	got, err := c.get(t.Context(), u)
	if err != nil || got.backend != backend || got.origin != origin {
		t.Errorf("%s: %q from %s, %v; want %q from %s", u, got.backend, got.origin, err, backend, origin)
	}
}

func checkUnavailable(t *testing.T, c *cache, u identity.User) {
	t.Helper()
	if got, err := c.get(t.Context(), u); !errors.Is(err, ErrUnavailable) {
		t.Errorf("%s: %+v, %v; want ErrUnavailable", u, got, err)
	}
}

func TestAnExpiredRouteIsReadAgain(t *testing.T) {
	runWithCache(t, func(t *testing.T, c *cache, o *fakeStore) {
		alice, unknown := user(t, "alice"), user(t, "unknown")
		o.set(alice, MatchUser, "east")
		checkBackend(t, c, alice, "east", event.OriginRedis)
		checkBackend(t, c, unknown, "", event.OriginRedis)
		advance(4 * time.Second)
		checkBackend(t, c, unknown, "", event.OriginCache)
		advance(time.Second)
		checkBackend(t, c, unknown, "", event.OriginRedis)
		checkBackend(t, c, alice, "east", event.OriginCache)
		o.set(alice, MatchUser, "west")
		advance(48 * time.Second) // 53 s: before ttl less a tenth
		checkBackend(t, c, alice, "east", event.OriginCache)
		advance(7 * time.Second)
		checkBackend(t, c, alice, "west", event.OriginRedis)
	})
}

func TestAStaleRouteServesWhileRedisIsDownUntilItExpires(t *testing.T) {
	runWithCache(t, func(t *testing.T, c *cache, o *fakeStore) {
		alice, unknown := user(t, "alice"), user(t, "unknown")
		o.set(alice, MatchUser, "east")
		checkBackend(t, c, alice, "east", event.OriginRedis)
		checkBackend(t, c, unknown, "", event.OriginRedis)
		o.fail(errUnreachable, 0)
		advance(2 * time.Minute)
		checkBackend(t, c, alice, "east", event.OriginStale)
		checkUnavailable(t, c, unknown) // a failure is not "no such user"
		advance(23*time.Hour + 57*time.Minute)
		checkBackend(t, c, alice, "east", event.OriginStale)
		advance(2 * time.Minute)
		checkUnavailable(t, c, alice)
		o.fail(nil, 0)
		advance(2 * time.Second)
		checkBackend(t, c, alice, "east", event.OriginRedis)
	})
}

func TestTheBreakerOpensWhenRedisFails(t *testing.T) {
	runWithCache(t, func(t *testing.T, c *cache, o *fakeStore) {
		o.fail(errUnreachable, 0)
		for i := range 100 {
			checkUnavailable(t, c, user(t, fmt.Sprint("u", i)))
		}
		if o.totalQueries != breaker.Threshold {
			t.Fatalf("%d queries, want %d", o.totalQueries, breaker.Threshold)
		}
		advance(breaker.TrialInterval * 5 / 4)
		for i := range 100 {
			checkUnavailable(t, c, user(t, fmt.Sprint("u", i)))
		}
		if o.totalQueries != breaker.Threshold+1 {
			t.Fatalf("%d queries with one trial, want %d", o.totalQueries, breaker.Threshold+1)
		}
		o.fail(nil, 0)
		advance(breaker.TrialInterval * 5 / 4)
		for i := range 100 {
			checkBackend(t, c, user(t, fmt.Sprint("u", i)), "", event.OriginRedis)
		}
	})
}

func TestWaitingLookupsShareTheOutcomeOfATrial(t *testing.T) {
	for _, fault := range []error{nil, errUnreachable} {
		runWithCache(t, func(t *testing.T, c *cache, o *fakeStore) {
			alice := user(t, "alice@example.org")
			o.set(alice, MatchUser, "east")
			checkBackend(t, c, alice, "east", event.OriginRedis)
			o.fail(errUnreachable, 0)
			for i := range breaker.Threshold {
				checkUnavailable(t, c, user(t, fmt.Sprint("u", i)))
			}
			began := time.Now()
			if checkUnavailable(t, c, user(t, "late")); time.Since(began) != 0 {
				t.Errorf("waited %v without a trial", time.Since(began))
			}
			advance(2 * time.Minute) // until alice's entry has expired
			o.fail(fault, queryTimeout/2)
			var in, out, atOnce atomic.Int32
			var lookups sync.WaitGroup
			lookup := func(name string) {
				began := time.Now()
				switch _, err := c.get(t.Context(), user(t, name)); {
				case err == nil:
					in.Add(1)
				case time.Since(began) == 0:
					atOnce.Add(1)
				default:
					out.Add(1)
				}
			}
			lookups.Go(func() { lookup("trial") })
			synctest.Wait()
			for i := range breaker.MaxWaiting + 3 {
				lookups.Go(func() { lookup(fmt.Sprint("v", i)) })
			}
			synctest.Wait()
			if c.waiting != breaker.MaxWaiting || atOnce.Load() != 3 {
				t.Errorf("%d wait, %d do not", c.waiting, atOnce.Load())
			}
			began = time.Now()
			if checkBackend(t, c, alice, "east", event.OriginStale); time.Since(began) != 0 {
				t.Errorf("a user with a last good answer waited %v", time.Since(began))
			}
			lookups.Wait()
			if want := map[bool]int32{true: 1 + breaker.MaxWaiting}[fault == nil]; in.Load() != want || c.waiting != 0 || c.trial != nil {
				t.Errorf("%v: %d got a route, %d were refused, %d wait", fault, in.Load(), out.Load(), c.waiting)
			}
		})
	}
}

// errorReply is an error reply of Redis.
type errorReply string

func (e errorReply) Error() string { return string(e) }
func (e errorReply) RedisError()   {}

func TestAnErrorReplyForOneKeyDoesNotOpenTheBreaker(t *testing.T) {
	var _ redis.Error = errorReply("")
	for _, reply := range []errorReply{
		"WRONGTYPE Operation against a key holding the wrong kind of value", "NOPERM No permissions to access a key",
		"CLUSTERDOWN Hash slot not served",
	} {
		runWithCache(t, func(t *testing.T, c *cache, o *fakeStore) {
			alice := user(t, "alice")
			o.set(alice, MatchUser, "east")
			o.fail(readError("imapgate:user:x", reply), 0)
			for i := range 10 * breaker.Threshold {
				checkUnavailable(t, c, user(t, fmt.Sprint("u", i)))
			}
			o.fail(nil, 0)
			checkBackend(t, c, alice, "east", event.OriginRedis)
		})
	}
}

func TestACachedRouteServesWhileRedisIsSlow(t *testing.T) {
	runWithCache(t, func(t *testing.T, c *cache, o *fakeStore) {
		alice := user(t, "alice")
		o.set(alice, MatchUser, "east")
		checkBackend(t, c, alice, "east", event.OriginRedis)
		o.set(alice, MatchUser, "west")
		o.fail(nil, 300*time.Millisecond)
		advance(2 * time.Minute)
		began := time.Now()
		checkBackend(t, c, alice, "east", event.OriginStale)
		if took := time.Since(began); took != staleGrace {
			t.Errorf("it took %v", took)
		}
		advance(300 * time.Millisecond)
		checkBackend(t, c, alice, "west", event.OriginCache) // the query was not abandoned
	})
}

func TestAnInvalidatedRouteWaitsForRedis(t *testing.T) {
	runWithCache(t, func(t *testing.T, c *cache, o *fakeStore) {
		alice := user(t, "alice")
		o.set(alice, MatchUser, "east")
		checkBackend(t, c, alice, "east", event.OriginRedis)
		o.set(alice, MatchUser, "west")
		o.fail(nil, 300*time.Millisecond)
		c.invalidateKeys([]string{"imapgate:user:alice"})
		checkBackend(t, c, alice, "west", event.OriginRedis)
		c.invalidateKeys([]string{"imapgate:user:alice"})
		o.fail(errUnreachable, 0)
		checkBackend(t, c, alice, "west", event.OriginStale)
		o.fail(nil, 0)
		checkBackend(t, c, alice, "west", event.OriginRedis) // the invalidation is not lost
	})
}

func TestAnInvalidationDuringAQueryIsNotLost(t *testing.T) {
	runWithCache(t, func(t *testing.T, c *cache, o *fakeStore) {
		for name, change := range map[string]func(){
			"alice":           func() { c.invalidateKeys([]string{"imapgate:user:alice"}) },
			"bob@example.org": func() { c.invalidateKeys([]string{"imapgate:domain:example.org"}) },
			"carol":           func() { c.invalidateKeys([]string{"imapgate:default"}) },
			"dora":            c.suspectAll,
		} {
			u, source := user(t, name), Match(MatchDefault)
			if name == "alice" {
				source = MatchUser
			} else if u.Domain() != "" {
				source = MatchDomain
			}
			o.set(u, source, "east")
			o.fail(nil, 100*time.Millisecond)
			go func() {
				advance(50 * time.Millisecond)
				o.set(u, source, "west")
				change()
			}()
			checkBackend(t, c, u, "east", event.OriginRedis) // read before the change
			o.fail(nil, 0)
			checkBackend(t, c, u, "west", event.OriginRedis)
			checkBackend(t, c, u, "west", event.OriginCache)
		}
	})
}

func TestADomainInvalidationAffectsOnlyItsUsers(t *testing.T) {
	runWithCache(t, func(t *testing.T, c *cache, o *fakeStore) {
		own, org, net := user(t, "own@example.org"), user(t, "a@example.org"), user(t, "a@example.net")
		o.set(own, MatchUser, "east")
		o.set(org, MatchDomain, "east")
		o.set(net, MatchDomain, "east")
		for _, u := range []identity.User{own, org, net} {
			checkBackend(t, c, u, "east", event.OriginRedis)
		}
		c.invalidateKeys([]string{"imapgate:domain:example.org"})
		checkBackend(t, c, own, "east", event.OriginCache)
		checkBackend(t, c, org, "east", event.OriginRedis)
		checkBackend(t, c, net, "east", event.OriginCache)
		c.invalidateKeys([]string{"imapgate:default", "imapgate:domain:", "imapgate:user:", "x", ""})
		checkBackend(t, c, own, "east", event.OriginCache)
		checkBackend(t, c, net, "east", event.OriginRedis)
	})
}

func TestADeletedRecordIsTrustedWhenInvalidatedOrMissingTwice(t *testing.T) {
	runWithCache(t, func(t *testing.T, c *cache, o *fakeStore) {
		alice, bob := user(t, "alice"), user(t, "bob")
		for _, u := range append(makeUsers(t, 4), alice, bob) {
			o.set(u, MatchUser, "east")
			checkBackend(t, c, u, "east", event.OriginRedis)
		}
		o.set(alice, MatchDefault, "west")
		o.set(bob, MatchNone, "")
		c.suspectAll()
		checkBackend(t, c, alice, "east", event.OriginStale)
		checkBackend(t, c, bob, "east", event.OriginStale)
		advance(confirmDelay - time.Millisecond)
		c.suspectAll() // more queries do not confirm it sooner
		checkBackend(t, c, alice, "east", event.OriginStale)
		c.invalidateKeys([]string{"imapgate:user:bob"})
		checkBackend(t, c, bob, "", event.OriginRedis)
		advance(time.Millisecond)
		checkBackend(t, c, alice, "west", event.OriginRedis)
	})
}

func TestARestoredRecordIsNotCountedAsMissing(t *testing.T) {
	runWithCache(t, func(t *testing.T, c *cache, o *fakeStore) {
		alice := user(t, "alice")
		for range 3 {
			o.set(alice, MatchUser, "east")
			c.suspectAll()
			checkBackend(t, c, alice, "east", event.OriginRedis)
			o.set(alice, MatchNone, "")
			c.suspectAll()
			checkBackend(t, c, alice, "east", event.OriginStale)
			advance(confirmDelay)
		}
	})
}

func TestAnInvalidRecordKeepsTheCachedRoute(t *testing.T) {
	runWithCache(t, func(t *testing.T, c *cache, o *fakeStore) {
		alice, unknown := user(t, "alice"), user(t, "unknown")
		o.set(alice, MatchUser, "east")
		checkBackend(t, c, alice, "east", event.OriginRedis)
		checkBackend(t, c, unknown, "", event.OriginRedis)
		o.fail(fieldError(fieldBackend, "is odd"), 0)
		c.invalidateKeys([]string{"imapgate:user:alice", "imapgate:user:unknown"})
		queriesBefore := o.queryCount(alice)
		for range 20 {
			checkBackend(t, c, alice, "east", event.OriginStale)
			checkUnavailable(t, c, unknown)
		}
		if n := o.queryCount(alice) - queriesBefore; n != 1 {
			t.Errorf("an invalid record was read %d times", n)
		}
		if c.breakerOpen() {
			t.Error("an invalid record counts as Redis being down")
		}
		o.fail(nil, 0)
		o.set(alice, MatchUser, "west")
		c.invalidateKeys([]string{"imapgate:user:alice"})
		checkBackend(t, c, alice, "west", event.OriginRedis)
	})
}

func TestConcurrentLookupsOfAUserShareAQuery(t *testing.T) {
	runWithCache(t, func(t *testing.T, c *cache, o *fakeStore) {
		alice := user(t, "alice")
		o.set(alice, MatchUser, "east")
		o.fail(nil, 200*time.Millisecond)
		short, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := c.get(short, alice); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, ErrUnavailable) {
				t.Errorf("the canceled lookup: %v", err)
			}
		})
		for range 50 {
			wg.Go(func() { checkBackend(t, c, alice, "east", event.OriginRedis) })
		}
		wg.Wait()
		if n := o.queryCount(alice); n != 1 {
			t.Errorf("%d queries", n)
		}
	})
}

func TestConcurrentLookupsDoNotMixUsers(t *testing.T) {
	runWithCache(t, func(t *testing.T, c *cache, o *fakeStore) {
		o.fail(nil, time.Millisecond)
		var wg sync.WaitGroup
		for i := range 500 {
			u, backend := user(t, fmt.Sprint("u", i)), fmt.Sprint("b", i)
			o.set(u, MatchUser, backend)
			for range 4 {
				wg.Go(func() {
					for range 20 {
						if got, err := c.get(t.Context(), u); err != nil || got.backend != backend {
							t.Errorf("%s got %q, %v", u, got.backend, err)
						}
						c.suspectAll()
					}
				})
			}
		}
		wg.Wait()
	})
}

func TestUnknownUsersDoNotEvictUsersWithRecords(t *testing.T) {
	runWithCache(t, func(t *testing.T, c *cache, o *fakeStore) {
		c.maxUserEntries, c.maxSharedEntries = 10, 5
		for i := range 10 {
			o.set(user(t, fmt.Sprint("known", i)), MatchUser, "east")
			checkBackend(t, c, user(t, fmt.Sprint("known", i)), "east", event.OriginRedis)
		}
		for i := range 1000 {
			checkBackend(t, c, user(t, fmt.Sprint("unknown", i)), "", event.OriginRedis)
		}
		if len(c.entries) != 15 || c.userEntries.Len() != 10 || c.sharedEntries.Len() != 5 {
			t.Errorf("%d entries, %d and %d", len(c.entries), c.userEntries.Len(), c.sharedEntries.Len())
		}
		o.fail(errUnreachable, 0)
		c.suspectAll()
		for i := range 10 {
			checkBackend(t, c, user(t, fmt.Sprint("known", i)), "east", event.OriginStale)
		}
		o.fail(nil, 0)
		advance(2 * time.Second)
		o.set(user(t, "eleventh"), MatchUser, "east")
		checkBackend(t, c, user(t, "eleventh"), "east", event.OriginRedis)
		if c.entries[user(t, "known0")] != nil || c.userEntries.Len() != 10 {
			t.Error("the least recently used entry was not evicted")
		}
	})
}

func TestTheDomainLimitLosesNoInvalidation(t *testing.T) {
	runWithCache(t, func(t *testing.T, c *cache, o *fakeStore) {
		first := user(t, "a@first.example")
		o.set(first, MatchDomain, "east")
		checkBackend(t, c, first, "east", event.OriginRedis)
		for i := range maxDomains + 1 {
			checkBackend(t, c, user(t, fmt.Sprint("a@d", i)), "", event.OriginRedis)
		}
		if len(c.domains) > maxDomains {
			t.Errorf("%d domain counters", len(c.domains))
		}
		o.set(first, MatchDomain, "west")
		c.invalidateKeys([]string{"imapgate:domain:first.example"})
		checkBackend(t, c, first, "west", event.OriginRedis)
	})
}

func TestRevalidationIsRateLimitedAfterAnOutage(t *testing.T) {
	runWithCache(t, func(t *testing.T, c *cache, o *fakeStore) {
		for i := range 2000 {
			o.set(user(t, fmt.Sprint("u", i)), MatchUser, "east")
			checkBackend(t, c, user(t, fmt.Sprint("u", i)), "east", event.OriginRedis)
		}
		before := o.totalQueries
		c.suspectAll()
		for i := range 2000 {
			if got, err := c.get(t.Context(), user(t, fmt.Sprint("u", i))); err != nil || got.backend != "east" {
				t.Fatalf("%+v, %v", got, err)
			}
		}
		if n := o.totalQueries - before; n > revalidationRate {
			t.Errorf("%d queries at once", n)
		}
	})
}

// suspectUser marks the entry of one user suspect.
func (c *cache) suspectUser(u identity.User) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.entries[u]; e != nil {
		e.versions.epoch = c.epoch - 1
	}
}

func TestASuspectRouteIsKept(t *testing.T) {
	runWithCache(t, func(t *testing.T, c *cache, o *fakeStore) {
		alice := user(t, "alice")
		o.set(alice, MatchUser, "east")
		checkBackend(t, c, alice, "east", event.OriginRedis)
		c.suspectUser(alice)
		checkBackend(t, c, alice, "east", event.OriginRedis)
		c.suspectUser(alice)
		o.fail(errUnreachable, 0)
		checkBackend(t, c, alice, "east", event.OriginStale)
	})
}

// On the login path: a cached user costs less than a system call.
func BenchmarkCachedLookup(b *testing.B) {
	o := newFakeStore()
	cfg := Config{Settings: Settings{Source: SourceRedis}, Backends: []string{"east"}, Prefix: DefaultPrefix}
	cfg = testbed.WithDefaults(cfg)
	r := &Router{cfg: cfg, cache: newCache(cfg, o.reader(), testLogger(b))}
	users := make([]identity.User, 1000)
	for i := range users {
		users[i] = user(b, fmt.Sprintf("user%d@example.org", i))
		o.set(users[i], MatchUser, "east")
		if _, err := r.Lookup(b.Context(), users[i]); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		if _, err := r.Lookup(b.Context(), users[i%1000]); err != nil {
			b.Fatal(err)
		}
		i++
	}
}
