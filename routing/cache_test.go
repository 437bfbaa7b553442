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
	"imapgate/internal/identity"
)

var errAway = errors.New("connection refused")

// oracle is a Redis in a test's hand.
type oracle struct {
	// Guarded by mu.
	mu    sync.Mutex
	says  map[identity.User]answer
	err   error
	slow  time.Duration
	asked map[identity.User]int
	total int

	inspected int
	accepted  acceptance
	nodes     func(key string) string // of a cluster; nil: there is none

	behindHeld func() // done between the reading of records and the reply
}

func newOracle() *oracle {
	return &oracle{says: make(map[identity.User]answer), asked: make(map[identity.User]int)}
}

func (o *oracle) ask(ctx context.Context, u identity.User, probes []string) (reading, error) {
	o.mu.Lock()
	o.asked[u]++
	o.total++
	r, err, slow := reading{answer: o.says[u]}, o.err, o.slow
	records := o.records()
	for _, key := range (keys{DefaultPrefix}).all(u) {
		if records[key] {
			r.held = append(r.held, key)
		} else if len(r.held) == 0 {
			r.absent = append(r.absent, key)
		}
	}
	for _, key := range probes {
		if !records[key] {
			r.gone = append(r.gone, key)
		}
	}
	o.mu.Unlock()
	if slow > 0 {
		select {
		case <-time.After(slow):
		case <-ctx.Done():
			return reading{}, ctx.Err()
		}
	}
	return r, err
}

// records are the keys that there are. mu is held.
func (o *oracle) records() map[string]bool {
	k, all := keys{DefaultPrefix}, map[string]bool{}
	for u, a := range o.says {
		switch a.source {
		case User:
			all[k.user(u)] = true
		case Domain:
			all[k.domain(u.Domain())] = true
		case Default:
			all[k.deflt()] = true
		}
	}
	return all
}

func (o *oracle) held(_ context.Context, keys []string) (holdings, error) {
	o.mu.Lock()
	then := o.behindHeld
	if then != nil {
		defer then()
	}
	defer o.mu.Unlock()
	o.inspected++
	records, h := o.records(), holdings{there: map[string]bool{}, accepted: o.accepted}
	for _, key := range keys {
		h.there[key] = records[key]
	}
	return h, o.err
}

// node is the part of a cluster that has a key: by its last letter, where there
// are several.
func (o *oracle) node(_ context.Context, key string) (string, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.nodes == nil {
		return "", nil
	}
	return o.nodes(key), nil
}

func (o *oracle) source() source { return source{ask: o.ask, held: o.held, node: o.node} }

// set makes u's own record name a backend; "" removes the record.
func (o *oracle) set(u identity.User, source Source, backend string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.says[u] = answer{source: source, backend: backend, state: stateActive, own: source == User}
}

func (o *oracle) fail(err error, slow time.Duration) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.err, o.slow = err, slow
}

func (o *oracle) questions(u identity.User) int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.asked[u]
}

// bubble runs a test of the cache on a clock that only moves when all wait.
func bubble(t *testing.T, f func(t *testing.T, c *cache, o *oracle)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		o := newOracle()
		cfg := Config{Backends: []string{"east", "west"}}
		cfg.setDefaults()
		f(t, newCache(cfg, o.source(), quiet(t)), o)
		synctest.Wait()
	})
}

// crowd is n users.
func crowd(t testing.TB, n int) (all []identity.User) {
	t.Helper()
	for i := range n {
		all = append(all, user(t, fmt.Sprintf("user%d@example.org", i)))
	}
	return all
}

// pass lets time go by, which in a bubble happens when everybody waits.
func pass(d time.Duration) { <-time.After(d) }

// wants checks one answer; backend "" stands for "no such user".
func wants(t *testing.T, c *cache, u identity.User, backend string, from From) {
	t.Helper()
	got, err := c.get(t.Context(), u)
	if err != nil || got.backend != backend || got.from != from {
		t.Errorf("%s: %q from %s, %v; want %q from %s", u, got.backend, got.from, err, backend, from)
	}
}

func wantsUnavailable(t *testing.T, c *cache, u identity.User) {
	t.Helper()
	if got, err := c.get(t.Context(), u); !errors.Is(err, ErrUnavailable) {
		t.Errorf("%s: %+v, %v; want ErrUnavailable", u, got, err)
	}
}

func TestAnAnswerIsAskedAgainWhenItsTimeIsOver(t *testing.T) {
	bubble(t, func(t *testing.T, c *cache, o *oracle) {
		alice, nobody := user(t, "alice"), user(t, "nobody")
		o.set(alice, User, "east")
		wants(t, c, alice, "east", FromRedis)
		wants(t, c, nobody, "", FromRedis)
		pass(4 * time.Second)
		wants(t, c, nobody, "", FromCache)
		pass(time.Second)
		wants(t, c, nobody, "", FromRedis)
		wants(t, c, alice, "east", FromCache)
		o.set(alice, User, "west")
		pass(48 * time.Second) // 53 s: before ttl less a tenth
		wants(t, c, alice, "east", FromCache)
		pass(7 * time.Second)
		wants(t, c, alice, "west", FromRedis)
	})
}

func TestTheLastGoodAnswerServesWhileRedisIsAwayAndNotForever(t *testing.T) {
	bubble(t, func(t *testing.T, c *cache, o *oracle) {
		alice, nobody := user(t, "alice"), user(t, "nobody")
		o.set(alice, User, "east")
		wants(t, c, alice, "east", FromRedis)
		wants(t, c, nobody, "", FromRedis)
		o.fail(errAway, 0)
		pass(2 * time.Minute)
		wants(t, c, alice, "east", FromStale)
		wantsUnavailable(t, c, nobody) // trouble is not "no such user"
		pass(23*time.Hour + 57*time.Minute)
		wants(t, c, alice, "east", FromStale)
		pass(2 * time.Minute)
		wantsUnavailable(t, c, alice)
		o.fail(nil, 0)
		pass(2 * time.Second)
		wants(t, c, alice, "east", FromRedis)
	})
}

func TestARedisThatFailsIsLeftAlone(t *testing.T) {
	bubble(t, func(t *testing.T, c *cache, o *oracle) {
		o.fail(errAway, 0)
		for i := range 100 {
			wantsUnavailable(t, c, user(t, fmt.Sprint("u", i)))
		}
		if o.total != breaker.After {
			t.Fatalf("asked %d times, want %d", o.total, breaker.After)
		}
		pass(breaker.For * 5 / 4)
		for i := range 100 {
			wantsUnavailable(t, c, user(t, fmt.Sprint("u", i)))
		}
		if o.total != breaker.After+1 {
			t.Fatalf("asked %d times with one probe, want %d", o.total, breaker.After+1)
		}
		o.fail(nil, 0)
		pass(breaker.For * 5 / 4)
		for i := range 100 {
			wants(t, c, user(t, fmt.Sprint("u", i)), "", FromRedis)
		}
	})
}

func TestLookupsBesideTheProbeShareItsOutcome(t *testing.T) {
	for _, trouble := range []error{nil, errAway} {
		bubble(t, func(t *testing.T, c *cache, o *oracle) {
			alice := user(t, "alice@example.org")
			o.set(alice, User, "east")
			wants(t, c, alice, "east", FromRedis)
			o.fail(errAway, 0)
			for i := range breaker.After {
				wantsUnavailable(t, c, user(t, fmt.Sprint("u", i)))
			}
			began := time.Now()
			if wantsUnavailable(t, c, user(t, "late")); time.Since(began) != 0 {
				t.Errorf("waited %v while nobody probes", time.Since(began))
			}
			pass(2 * time.Minute) // beyond what alice's answer is fresh for
			o.fail(trouble, askTime/2)
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
			lookups.Go(func() { lookup("probe") })
			synctest.Wait()
			for i := range breaker.MaxBeside + 3 {
				lookups.Go(func() { lookup(fmt.Sprint("v", i)) })
			}
			synctest.Wait()
			if c.beside != breaker.MaxBeside || atOnce.Load() != 3 {
				t.Errorf("%d wait, %d do not", c.beside, atOnce.Load())
			}
			began = time.Now()
			if wants(t, c, alice, "east", FromStale); time.Since(began) != 0 {
				t.Errorf("a user with a last good answer waited %v", time.Since(began))
			}
			lookups.Wait()
			if want := map[bool]int32{true: 1 + breaker.MaxBeside}[trouble == nil]; in.Load() != want || c.beside != 0 || c.probe != nil {
				t.Errorf("%v: %d go on, %d are refused, %d wait", trouble, in.Load(), out.Load(), c.beside)
			}
		})
	}
}

// errorReply is an error that Redis itself sends.
type errorReply string

func (e errorReply) Error() string { return string(e) }
func (e errorReply) RedisError()   {}

func TestAnErrorReplyAboutOneKeyKeepsNobodyElseOut(t *testing.T) {
	var _ redis.Error = errorReply("")
	for _, reply := range []errorReply{
		"WRONGTYPE Operation against a key holding the wrong kind of value", "NOPERM No permissions to access a key",
		"CLUSTERDOWN Hash slot not served",
	} {
		bubble(t, func(t *testing.T, c *cache, o *oracle) {
			alice := user(t, "alice")
			o.set(alice, User, "east")
			o.fail(readError("imapgate:user:x", reply), 0)
			for i := range 10 * breaker.After {
				wantsUnavailable(t, c, user(t, fmt.Sprint("u", i)))
			}
			o.fail(nil, 0)
			wants(t, c, alice, "east", FromRedis)
		})
	}
}

func TestAKnownUserDoesNotWaitForASlowRedis(t *testing.T) {
	bubble(t, func(t *testing.T, c *cache, o *oracle) {
		alice := user(t, "alice")
		o.set(alice, User, "east")
		wants(t, c, alice, "east", FromRedis)
		o.set(alice, User, "west")
		o.fail(nil, 300*time.Millisecond)
		pass(2 * time.Minute)
		began := time.Now()
		wants(t, c, alice, "east", FromStale)
		if took := time.Since(began); took != graceTime {
			t.Errorf("it took %v", took)
		}
		pass(300 * time.Millisecond)
		wants(t, c, alice, "west", FromCache) // the question was not given up
	})
}

func TestAUserRedisNamedWaitsForTheNewAnswer(t *testing.T) {
	bubble(t, func(t *testing.T, c *cache, o *oracle) {
		alice := user(t, "alice")
		o.set(alice, User, "east")
		wants(t, c, alice, "east", FromRedis)
		o.set(alice, User, "west")
		o.fail(nil, 300*time.Millisecond)
		c.changedKeys(keys{DefaultPrefix}, []string{"imapgate:user:alice"})
		wants(t, c, alice, "west", FromRedis)
		c.changedKeys(keys{DefaultPrefix}, []string{"imapgate:user:alice"})
		o.fail(errAway, 0)
		wants(t, c, alice, "west", FromStale)
		o.fail(nil, 0)
		wants(t, c, alice, "west", FromRedis) // the change is still owed
	})
}

func TestAChangeDuringTheQuestionIsNotLost(t *testing.T) {
	bubble(t, func(t *testing.T, c *cache, o *oracle) {
		for name, change := range map[string]func(){
			"alice":           func() { c.changedKeys(keys{DefaultPrefix}, []string{"imapgate:user:alice"}) },
			"bob@example.org": func() { c.changedKeys(keys{DefaultPrefix}, []string{"imapgate:domain:example.org"}) },
			"carol":           func() { c.changedKeys(keys{DefaultPrefix}, []string{"imapgate:default"}) },
			"dora":            c.doubtAll,
		} {
			u, source := user(t, name), Source(Default)
			if name == "alice" {
				source = User
			} else if u.Domain() != "" {
				source = Domain
			}
			o.set(u, source, "east")
			o.fail(nil, 100*time.Millisecond)
			go func() {
				pass(50 * time.Millisecond)
				o.set(u, source, "west")
				change()
			}()
			wants(t, c, u, "east", FromRedis) // read before the change
			o.fail(nil, 0)
			wants(t, c, u, "west", FromRedis)
			wants(t, c, u, "west", FromCache)
		}
	})
}

func TestAChangedDomainConcernsItsUsersOnly(t *testing.T) {
	bubble(t, func(t *testing.T, c *cache, o *oracle) {
		own, org, net := user(t, "own@example.org"), user(t, "a@example.org"), user(t, "a@example.net")
		o.set(own, User, "east")
		o.set(org, Domain, "east")
		o.set(net, Domain, "east")
		for _, u := range []identity.User{own, org, net} {
			wants(t, c, u, "east", FromRedis)
		}
		c.changedKeys(keys{DefaultPrefix}, []string{"imapgate:domain:example.org"})
		wants(t, c, own, "east", FromCache)
		wants(t, c, org, "east", FromRedis)
		wants(t, c, net, "east", FromCache)
		c.changedKeys(keys{DefaultPrefix}, []string{"imapgate:default", "imapgate:domain:", "imapgate:user:", "x", ""})
		wants(t, c, own, "east", FromCache)
		wants(t, c, net, "east", FromRedis)
	})
}

func TestADisappearedRecordIsBelievedWhenNamedOrSeenTwice(t *testing.T) {
	bubble(t, func(t *testing.T, c *cache, o *oracle) {
		alice, bob := user(t, "alice"), user(t, "bob")
		for _, u := range append(crowd(t, 4), alice, bob) {
			o.set(u, User, "east")
			wants(t, c, u, "east", FromRedis)
		}
		o.set(alice, Default, "west")
		o.set(bob, Nobody, "")
		c.doubtAll()
		wants(t, c, alice, "east", FromStale)
		wants(t, c, bob, "east", FromStale)
		pass(confirmTime - time.Millisecond)
		c.doubtAll() // asking more often does not confirm it sooner
		wants(t, c, alice, "east", FromStale)
		c.changedKeys(keys{DefaultPrefix}, []string{"imapgate:user:bob"})
		wants(t, c, bob, "", FromRedis)
		pass(time.Millisecond)
		wants(t, c, alice, "west", FromRedis)
	})
}

func TestARecordThatReturnsIsNotCountedAsMissing(t *testing.T) {
	bubble(t, func(t *testing.T, c *cache, o *oracle) {
		alice := user(t, "alice")
		for range 3 {
			o.set(alice, User, "east")
			c.doubtAll()
			wants(t, c, alice, "east", FromRedis)
			o.set(alice, Nobody, "")
			c.doubtAll()
			wants(t, c, alice, "east", FromStale)
			pass(confirmTime)
		}
	})
}

func TestARefusedRecordKeepsTheLastGoodAnswerAndIsNeverNoSuchUser(t *testing.T) {
	bubble(t, func(t *testing.T, c *cache, o *oracle) {
		alice, nobody := user(t, "alice"), user(t, "nobody")
		o.set(alice, User, "east")
		wants(t, c, alice, "east", FromRedis)
		wants(t, c, nobody, "", FromRedis)
		o.fail(refuse(fieldBackend, "is odd"), 0)
		c.changedKeys(keys{DefaultPrefix}, []string{"imapgate:user:alice", "imapgate:user:nobody"})
		asked := o.questions(alice)
		for range 20 {
			wants(t, c, alice, "east", FromStale)
			wantsUnavailable(t, c, nobody)
		}
		if n := o.questions(alice) - asked; n != 1 {
			t.Errorf("a refused record was read %d times", n)
		}
		if c.leftAlone() {
			t.Error("a refused record counts as Redis being away")
		}
		o.fail(nil, 0)
		o.set(alice, User, "west")
		c.changedKeys(keys{DefaultPrefix}, []string{"imapgate:user:alice"})
		wants(t, c, alice, "west", FromRedis)
	})
}

func TestLookupsOfOneUserShareAQuestionAndNotTheirFate(t *testing.T) {
	bubble(t, func(t *testing.T, c *cache, o *oracle) {
		alice := user(t, "alice")
		o.set(alice, User, "east")
		o.fail(nil, 200*time.Millisecond)
		impatient, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := c.get(impatient, alice); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, ErrUnavailable) {
				t.Errorf("the one who left: %v", err)
			}
		})
		for range 50 {
			wg.Go(func() { wants(t, c, alice, "east", FromRedis) })
		}
		wg.Wait()
		if n := o.questions(alice); n != 1 {
			t.Errorf("Redis was asked %d times", n)
		}
	})
}

func TestLookupsOfManyUsersNeverCross(t *testing.T) {
	bubble(t, func(t *testing.T, c *cache, o *oracle) {
		o.fail(nil, time.Millisecond)
		var wg sync.WaitGroup
		for i := range 500 {
			u, backend := user(t, fmt.Sprint("u", i)), fmt.Sprint("b", i)
			o.set(u, User, backend)
			for range 4 {
				wg.Go(func() {
					for range 20 {
						if got, err := c.get(t.Context(), u); err != nil || got.backend != backend {
							t.Errorf("%s got %q, %v", u, got.backend, err)
						}
						c.doubtAll()
					}
				})
			}
		}
		wg.Wait()
	})
}

func TestStrangersDoNotPushOutKnownUsers(t *testing.T) {
	bubble(t, func(t *testing.T, c *cache, o *oracle) {
		c.maxOwned, c.maxDerived = 10, 5
		for i := range 10 {
			o.set(user(t, fmt.Sprint("known", i)), User, "east")
			wants(t, c, user(t, fmt.Sprint("known", i)), "east", FromRedis)
		}
		for i := range 1000 {
			wants(t, c, user(t, fmt.Sprint("stranger", i)), "", FromRedis)
		}
		if len(c.entries) != 15 || c.owned.Len() != 10 || c.derived.Len() != 5 {
			t.Errorf("%d entries, %d and %d", len(c.entries), c.owned.Len(), c.derived.Len())
		}
		o.fail(errAway, 0)
		c.doubtAll()
		for i := range 10 {
			wants(t, c, user(t, fmt.Sprint("known", i)), "east", FromStale)
		}
		o.fail(nil, 0)
		pass(2 * time.Second)
		o.set(user(t, "eleventh"), User, "east")
		wants(t, c, user(t, "eleventh"), "east", FromRedis)
		if c.entries[user(t, "known0")] != nil || c.owned.Len() != 10 {
			t.Error("the one used longest ago was not dropped")
		}
	})
}

func TestTooManyDomainsAreLetGoWithoutLosingAChange(t *testing.T) {
	bubble(t, func(t *testing.T, c *cache, o *oracle) {
		first := user(t, "a@first.example")
		o.set(first, Domain, "east")
		wants(t, c, first, "east", FromRedis)
		for i := range maxScopes + 1 {
			wants(t, c, user(t, fmt.Sprint("a@d", i)), "", FromRedis)
		}
		if len(c.scopes) > maxScopes {
			t.Errorf("%d domains are kept", len(c.scopes))
		}
		o.set(first, Domain, "west")
		c.changedKeys(keys{DefaultPrefix}, []string{"imapgate:domain:first.example"})
		wants(t, c, first, "west", FromRedis)
	})
}

func TestARedisThatComesBackIsNotOverrun(t *testing.T) {
	bubble(t, func(t *testing.T, c *cache, o *oracle) {
		for i := range 2000 {
			o.set(user(t, fmt.Sprint("u", i)), User, "east")
			wants(t, c, user(t, fmt.Sprint("u", i)), "east", FromRedis)
		}
		before := o.total
		c.doubtAll()
		for i := range 2000 {
			if got, err := c.get(t.Context(), user(t, fmt.Sprint("u", i))); err != nil || got.backend != "east" {
				t.Fatalf("%+v, %v", got, err)
			}
		}
		if n := o.total - before; n > doubtRate {
			t.Errorf("asked %d times at once", n)
		}
	})
}

func TestForgetAsksAgainAndForgetsNothing(t *testing.T) {
	bubble(t, func(t *testing.T, c *cache, o *oracle) {
		alice := user(t, "alice")
		o.set(alice, User, "east")
		wants(t, c, alice, "east", FromRedis)
		c.doubtUser(alice)
		wants(t, c, alice, "east", FromRedis)
		c.doubtUser(alice)
		o.fail(errAway, 0)
		wants(t, c, alice, "east", FromStale)
	})
}

// On the login path: a known user costs less than a system call.
func BenchmarkCachedLookup(b *testing.B) {
	o := newOracle()
	cfg := Config{Source: SourceRedis, Backends: []string{"east"}}
	cfg.setDefaults()
	r := &Router{cfg: cfg, cache: newCache(cfg, o.source(), quiet(b))}
	users := make([]identity.User, 1000)
	for i := range users {
		users[i] = user(b, fmt.Sprintf("user%d@example.org", i))
		o.set(users[i], User, "east")
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
