package routing

import (
	"errors"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"imapgate/internal/identity"
)

// stock is a cache that watches a store with records, in a bubble.
type stock struct {
	// Set once.
	*testing.T
	*cache
	o     *oracle
	users []identity.User

	mu   sync.Mutex
	told []Store // Guarded by mu.
}

// withStock runs a test of a store that had a record of each of n users.
func withStock(t *testing.T, n int, f func(t *testing.T, s *stock)) {
	t.Helper()
	bubble(t, func(t *testing.T, c *cache, o *oracle) {
		s := &stock{T: t, cache: c, o: o, users: crowd(t, n)}
		for _, u := range s.users {
			o.set(u, User, "east")
			wants(t, c, u, "east", FromRedis)
		}
		s.run()
		f(t, s)
	})
}

// run watches until the test ends.
func (s *stock) run() {
	done := make(chan struct{})
	ctx := s.Context() // ends before what Cleanup does
	go func() {
		defer close(done)
		s.watch(ctx, func(st Store) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.told = append(s.told, st)
		})
	}()
	s.Cleanup(func() { <-done })
}

// empty takes every record away, and brings none back.
func (o *oracle) empty() (before map[identity.User]answer) {
	o.mu.Lock()
	defer o.mu.Unlock()
	before, o.says = o.says, make(map[identity.User]answer)
	return before
}

func (o *oracle) restore(says map[identity.User]answer) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for u, a := range says {
		o.says[u] = a
	}
}

func (o *oracle) accept(at int64, by string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.accepted = acceptance{At: at, By: by}
}

// wantsAlarms checks what was told so far.
func (s *stock) wantsAlarms(states ...string) {
	s.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	var got []string
	for _, st := range s.told {
		got = append(got, st.State)
	}
	if strings.Join(got, " ") != strings.Join(states, " ") {
		s.Errorf("told %q, want %q", got, states)
	}
}

// wantsKept checks that users have their last good answer.
func (s *stock) wantsKept(users ...identity.User) {
	s.Helper()
	for _, u := range users {
		if got, err := s.get(s.Context(), u); err != nil || got.backend != "east" {
			s.Errorf("%s: %q, %v; want the last good answer", u, got.backend, err)
		}
	}
}

func TestAStoreThatLostItsRecordsIsAFaultAndNotAnAnswer(t *testing.T) {
	for name, hint := range map[string]bool{"flushed": true, "swapped": false} {
		t.Run(name, func(t *testing.T) {
			withStock(t, 20, func(t *testing.T, s *stock) {
				stranger := user(t, "stranger")
				before := s.o.empty()
				if hint {
					s.doubtAll()
				}
				for range 40 { // 20 s
					s.wantsKept(s.users...)
					wantsUnavailable(t, s.cache, stranger)
					pass(500 * time.Millisecond)
				}
				s.wantsAlarms(StoreEmptied)
				if st := s.store(); st.State != StoreEmptied || st.Missing != 20 || st.Present != 0 {
					t.Errorf("%+v", st)
				}
				pass(2 * time.Hour)
				s.wantsKept(s.users...)
				wantsUnavailable(t, s.cache, stranger)
				s.o.restore(before)
				pass(2 * inspectEmptied)
				wants(t, s.cache, stranger, "", FromRedis)
				wants(t, s.cache, s.users[3], "east", FromRedis)
				s.wantsAlarms(StoreEmptied, StoreHolding)
			})
		})
	}
}

// A question that is under way when the records go has no channel to warn it.
func TestTheFirstAnswerBehindALossIsNotBelieved(t *testing.T) {
	bubble(t, func(t *testing.T, c *cache, o *oracle) { // nobody watches
		alice, bob := user(t, "alice"), user(t, "bob@example.org")
		o.set(alice, User, "east")
		wants(t, c, alice, "east", FromRedis)
		o.empty()
		o.set(user(t, "someone@example.org"), Domain, "west") // the domain's record is back first
		wantsUnavailable(t, c, user(t, "nobody"))
		o.mu.Lock()
		o.says[bob] = answer{source: Domain, backend: "west", state: stateActive}
		o.mu.Unlock()
		wantsUnavailable(t, c, bob) // who may have had a record
	})
}

func TestALossIsNoticedBeforeAnybodyAsks(t *testing.T) {
	withStock(t, 5, func(t *testing.T, s *stock) {
		s.o.empty()
		pass(inspectHolding + alarmAfter + inspectEmptied)
		s.wantsAlarms(StoreEmptied)
	})
}

func TestAStoreThatNeverHeldARecordSaysWhoIsUnknown(t *testing.T) {
	withStock(t, 0, func(t *testing.T, s *stock) {
		wants(t, s.cache, user(t, "nobody"), "", FromRedis)
		s.doubtAll()
		pass(time.Minute)
		wants(t, s.cache, user(t, "nobody"), "", FromRedis)
		s.wantsAlarms()
		if s.o.inspected != 0 {
			t.Errorf("it was inspected %d times", s.o.inspected)
		}
	})
}

func TestADeletionThatRedisNamesIsBelievedDownToTheLastRecord(t *testing.T) {
	withStock(t, 3, func(t *testing.T, s *stock) {
		for _, u := range s.users {
			s.o.set(u, Nobody, "")
			s.changedKeys(s.keys, []string{s.keys.user(u)})
			wants(t, s.cache, u, "", FromRedis)
		}
		pass(time.Minute)
		wants(t, s.cache, user(t, "nobody"), "", FromRedis)
		s.wantsAlarms()
	})
}

// A script that deletes all records meets the question which of them are there.
func TestADeletionDuringTheQuestionIsBelieved(t *testing.T) {
	withStock(t, 3, func(t *testing.T, s *stock) {
		var gone atomic.Int32
		s.o.mu.Lock()
		s.o.behindHeld = func() {
			if i := int(gone.Load()); i < len(s.users) {
				s.o.set(s.users[i], Nobody, "")
				s.changedKeys(s.keys, []string{s.keys.user(s.users[i])})
				gone.Add(1)
			}
		}
		s.o.mu.Unlock()
		pass(time.Minute)
		if int(gone.Load()) < len(s.users) {
			t.Fatal("nothing was asked")
		}
		for _, u := range s.users {
			wants(t, s.cache, u, "", FromRedis)
		}
		wants(t, s.cache, user(t, "nobody"), "", FromRedis)
		s.wantsAlarms()
	})
}

// The name of a record comes on another connection than its absence.
func TestANameThatComesAfterTheAbsenceIsInTime(t *testing.T) {
	withStock(t, 1, func(t *testing.T, s *stock) {
		alice := s.users[0]
		s.o.set(alice, Nobody, "")
		s.doubtUser(alice)
		s.wantsKept(alice)
		pass(20 * time.Millisecond)
		s.changedKeys(s.keys, []string{s.keys.user(alice)})
		pass(inspectSuspect)
		wants(t, s.cache, alice, "", FromRedis)
		pass(time.Minute)
		s.wantsAlarms()
	})
}

// HSET names a record, too: what follows it is still a loss.
func TestAFlushBehindAChangeIsALoss(t *testing.T) {
	withStock(t, 2, func(t *testing.T, s *stock) {
		for _, u := range s.users {
			s.changedKeys(s.keys, []string{s.keys.user(u)})
		}
		s.o.empty()
		s.doubtAll() // as a flush is told, behind the names
		pass(2 * alarmAfter)
		s.wantsKept(s.users...)
		s.wantsAlarms(StoreEmptied)
	})
}

func TestADeletionThatRedisDoesNotNameIsBelievedAmongOthers(t *testing.T) {
	withStock(t, 6, func(t *testing.T, s *stock) {
		gone := s.users[:2]
		for _, u := range gone {
			s.o.set(u, Nobody, "")
		}
		s.doubtAll()
		s.wantsKept(gone...)
		pass(confirmTime)
		for _, u := range gone {
			wants(t, s.cache, u, "", FromRedis)
		}
		s.wantsAlarms()
	})
}

func TestRecordsThatAreNewDoNotMakeUpForThoseThatAreLost(t *testing.T) {
	withStock(t, 10, func(t *testing.T, s *stock) {
		s.o.empty()
		s.doubtAll()
		pass(2 * alarmAfter)
		for i := range 3 * maxSample {
			u := user(t, "new"+string(rune('a'+i%26))+string(rune('a'+i/26)))
			s.o.set(u, User, "west")
			wants(t, s.cache, u, "west", FromRedis)
		}
		pass(time.Hour)
		s.wantsKept(s.users...)
		wantsUnavailable(t, s.cache, user(t, "stranger"))
		s.wantsAlarms(StoreEmptied)
	})
}

func TestHalfOfTheRecordsEndALossOnceNoMoreComeBack(t *testing.T) {
	withStock(t, 10, func(t *testing.T, s *stock) {
		before := s.o.empty()
		s.doubtAll()
		pass(2 * alarmAfter)
		for _, u := range s.users[:8] { // restored one by one
			s.o.restore(map[identity.User]answer{u: before[u]})
			pass(settleTime / 2)
			wantsUnavailable(t, s.cache, user(t, "stranger"))
			s.wantsKept(s.users...)
		}
		s.wantsAlarms(StoreEmptied)
		pass(settleTime)
		s.wantsAlarms(StoreEmptied, StoreHolding)
		wants(t, s.cache, user(t, "stranger"), "", FromRedis)
		s.wantsKept(s.users[9]) // whose record has now to be missing twice, as ever
		pass(confirmTime)
		wants(t, s.cache, s.users[9], "", FromRedis)
	})
}

func TestAnOperatorsWordEndsALossAndOnlyThatOne(t *testing.T) {
	withStock(t, 10, func(t *testing.T, s *stock) {
		s.o.accept(100, "carol") // of long ago
		pass(time.Minute)
		s.o.empty()
		s.doubtAll()
		pass(2 * alarmAfter)
		wantsUnavailable(t, s.cache, user(t, "stranger")) // an old word is none
		s.o.accept(200, "dave")
		pass(2 * inspectEmptied)
		wants(t, s.cache, user(t, "stranger"), "", FromRedis)
		wants(t, s.cache, s.users[0], "", FromRedis)
		s.wantsAlarms(StoreEmptied, "") // nothing is known of what it held
		if by := s.told[1].By; by != "dave" {
			t.Errorf("ended by %q", by)
		}
		for _, u := range s.users {
			s.o.set(u, User, "east")
			s.changedKeys(s.keys, []string{s.keys.user(u)})
			wants(t, s.cache, u, "east", FromRedis)
		}
		pass(time.Minute)
		s.o.empty()
		s.doubtAll()
		pass(time.Minute)
		wantsUnavailable(t, s.cache, user(t, "stranger"))
		s.wantsAlarms(StoreEmptied, "", StoreEmptied)
	})
}

func TestAWordFromBeforeTheGatewayIsNone(t *testing.T) {
	bubble(t, func(t *testing.T, c *cache, o *oracle) {
		s := &stock{T: t, cache: c, o: o, users: crowd(t, 10)}
		for _, u := range s.users {
			o.set(u, User, "east")
			wants(t, c, u, "east", FromRedis)
		}
		o.accept(100, "carol")
		s.run()
		pass(inspectHolding)
		o.empty()
		s.doubtAll()
		pass(2 * alarmAfter)
		wantsUnavailable(t, c, user(t, "stranger"))
		s.wantsAlarms(StoreEmptied)
	})
}

// An operator's word may reach a gateway before the loss does.
func TestAnOperatorsWordIsGoodForALossNoticedAfterIt(t *testing.T) {
	withStock(t, 10, func(t *testing.T, s *stock) {
		pass(inspectHolding)
		s.o.accept(100, "carol")
		pass(inspectHolding)
		s.o.empty()
		pass(2 * inspectHolding)
		wants(t, s.cache, user(t, "stranger"), "", FromRedis)
		s.wantsAlarms()
	})
}

// byLetter puts the records of user0 to user4 on one node, and all others on another.
func byLetter(first, second string) func(string) string {
	return func(key string) string {
		if name := strings.TrimSuffix(key, "@example.org"); name[len(name)-1] < '5' && name[len(name)-1] >= '0' {
			return first
		}
		return second
	}
}

func TestAPartThatIsLostIsAFaultOfThatPart(t *testing.T) {
	for name, failover := range map[string]bool{"flushed": false, "failed over to an empty replica": true} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, c *cache, o *oracle) {
				o.nodes = byLetter("a", "b")
				s := &stock{T: t, cache: c, o: o, users: crowd(t, 10)}
				for _, u := range s.users {
					o.set(u, User, "east")
					wants(t, c, u, "east", FromRedis)
				}
				lost, whole := s.users[:5], s.users[5:]
				for _, u := range lost {
					o.set(u, Nobody, "")
				}
				if failover {
					o.mu.Lock()
					o.nodes = byLetter("c", "b")
					o.mu.Unlock()
				}
				c.doubtAll()
				s.wantsKept(lost...) // before anybody watches
				wantsUnavailable(t, c, user(t, "stranger3"))
				s.run()
				pass(time.Minute)
				s.wantsKept(lost...)
				wantsUnavailable(t, c, user(t, "stranger3"))
				wants(t, c, user(t, "stranger7"), "", FromRedis)
				for _, u := range whole {
					wants(t, c, u, "east", FromRedis)
				}
				s.wantsAlarms(StoreEmptied)
				if st := c.store(); st.Missing != 5 || st.Node != c.sample.addressOf(t, lost[0], c.keys) {
					t.Errorf("%+v", st)
				}
			})
		})
	}
}

// A failover may be noticed while a question is under way.
func TestAnAnswerOfANodeThatIsNoMoreIsNotBelieved(t *testing.T) {
	bubble(t, func(t *testing.T, c *cache, o *oracle) {
		o.nodes = byLetter("a", "b")
		for _, u := range crowd(t, 10) {
			o.set(u, User, "east")
			wants(t, c, u, "east", FromRedis)
		}
		for _, u := range crowd(t, 5) {
			o.set(u, Nobody, "")
		}
		stranger := user(t, "stranger3")
		q := c.prepare(t.Context(), stranger)
		o.nodes = byLetter("c", "b")
		r, err := o.ask(t.Context(), stranger, q.probes)
		if err != nil || len(r.gone) == 0 {
			t.Fatalf("%+v, %v", r, err)
		}
		c.refile(t.Context())
		for _, node := range c.due(q, r) {
			c.inspect(t.Context(), node)
		}
		if c.believes(q, r) {
			t.Error("it is believed")
		}
	})
}

// addressOf is the node that has a user's record in the sample.
func (s *sample) addressOf(t *testing.T, u identity.User, k keys) string {
	t.Helper()
	for address, n := range s.nodes {
		if s.where[k.user(u)] == n {
			return address
		}
	}
	t.Errorf("%s is nowhere", u)
	return ""
}

func TestTheSampleIsBounded(t *testing.T) {
	withStock(t, 5*maxSample, func(t *testing.T, s *stock) {
		if n := len(s.sample.where); n != maxSample || len(s.sample.nodes[""].keys) != n {
			t.Errorf("%d records are remembered", n)
		}
		before := s.o.empty()
		s.doubtAll()
		pass(2 * alarmAfter)
		s.o.restore(before)
		pass(2 * inspectEmptied)
		s.wantsAlarms(StoreEmptied, StoreHolding)
	})
}

func TestARestartDoesNotForgetThatRedisHeldRecords(t *testing.T) {
	for name, text := range map[string]string{
		"written by this version": "",
		"written by an earlier one": `{"version":1,"routes":[{"user":"alice","backend":"east","source":"user","learned":"` +
			"2000-01-01T00:00:00Z" + `"}]}`, // when a bubble's time begins
		"of users without routes": `{"version":1,"routes":[],"records":["user:alice","default"]}`,
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "routes.json")
			synctest.Test(t, func(t *testing.T) {
				if text != "" {
					writeFile(t, file, text)
				} else {
					first := routerOn(t, file, newOracle())
					o := newOracle()
					first.cache.source = o.source()
					o.set(user(t, "alice"), User, "east")
					if _, err := first.Lookup(t.Context(), user(t, "alice")); err != nil {
						t.Fatal(err)
					}
					if err := first.saveSnapshot(); err != nil {
						t.Fatal(err)
					}
				}
				o := newOracle()
				second := routerOn(t, file, o)
				o.fail(nil, 0) // it answers, and is empty
				second.cache.inUse = true
				s := &stock{T: t, cache: second.cache, o: o}
				s.run()
				for range 20 {
					if _, err := second.Lookup(t.Context(), user(t, "stranger")); !errors.Is(err, ErrUnavailable) {
						t.Fatalf("a stranger: %v", err)
					}
					pass(time.Second)
				}
				s.wantsAlarms(StoreEmptied)
				if name != "of users without routes" {
					s.wantsKept(user(t, "alice"))
				}
				o.accept(1, "carol")
				pass(2 * inspectEmptied)
				wants(t, second.cache, user(t, "stranger"), "", FromRedis)
				if err := second.saveSnapshot(); err != nil {
					t.Fatal(err)
				}
				third := routerOn(t, file, o)
				if third.cache.accepted.At != 1 || len(third.cache.sample.where) != 0 {
					t.Errorf("the word is forgotten: %+v, %d records", third.cache.accepted, len(third.cache.sample.where))
				}
			})
		})
	}
}
