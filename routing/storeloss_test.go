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

	"imapgate/internal/event"
	"imapgate/internal/identity"
)

// lossTest is a cache that inspects a store with records, in a bubble.
type lossTest struct {
	// Set once.
	*testing.T
	*cache
	o     *fakeStore
	users []identity.User

	mu     sync.Mutex
	alarms []StoreStatus // Guarded by mu.
}

// runLossTest runs a test of a store that had a record for each of n users.
func runLossTest(t *testing.T, n int, f func(t *testing.T, s *lossTest)) {
	t.Helper()
	runWithCache(t, func(t *testing.T, c *cache, o *fakeStore) {
		s := &lossTest{T: t, cache: c, o: o, users: makeUsers(t, n)}
		for _, u := range s.users {
			o.set(u, MatchUser, "east")
			checkBackend(t, c, u, "east", event.OriginRedis)
		}
		s.startInspections()
		f(t, s)
	})
}

// startInspections runs inspections until the test ends.
func (s *lossTest) startInspections() {
	done := make(chan struct{})
	ctx := s.Context() // ends before the functions of Cleanup
	go func() {
		defer close(done)
		s.runInspections(ctx, func(st StoreStatus) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.alarms = append(s.alarms, st)
		})
	}()
	s.Cleanup(func() { <-done })
}

// clearRecords removes all records and returns them.
func (o *fakeStore) clearRecords() (before map[identity.User]decision) {
	o.mu.Lock()
	defer o.mu.Unlock()
	before, o.records = o.records, make(map[identity.User]decision)
	return before
}

func (o *fakeStore) restore(restored map[identity.User]decision) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for u, a := range restored {
		o.records[u] = a
	}
}

func (o *fakeStore) acceptLoss(at int64, by string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.acceptance = acceptance{At: at, By: by}
}

// checkAlarms checks the reported alarms.
func (s *lossTest) checkAlarms(states ...string) {
	s.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	var got []string
	for _, st := range s.alarms {
		got = append(got, st.State)
	}
	if strings.Join(got, " ") != strings.Join(states, " ") {
		s.Errorf("alarms %q, want %q", got, states)
	}
}

// checkLastGood checks that lookups return the last good route.
func (s *lossTest) checkLastGood(users ...identity.User) {
	s.Helper()
	for _, u := range users {
		if got, err := s.get(s.Context(), u); err != nil || got.backend != "east" {
			s.Errorf("%s: %q, %v; want the last good answer", u, got.backend, err)
		}
	}
}

func TestLostRecordsMakeUnknownUsersUnavailable(t *testing.T) {
	for name, hint := range map[string]bool{"flushed": true, "swapped": false} {
		t.Run(name, func(t *testing.T) {
			runLossTest(t, 20, func(t *testing.T, s *lossTest) {
				unknown := user(t, "unknown")
				before := s.o.clearRecords()
				if hint {
					s.suspectAll()
				}
				for range 40 { // 20 s
					s.checkLastGood(s.users...)
					checkUnavailable(t, s.cache, unknown)
					advance(500 * time.Millisecond)
				}
				s.checkAlarms(StoreEmptied)
				if st := s.storeStatus(); st.State != StoreEmptied || st.Missing != 20 || st.Present != 0 {
					t.Errorf("%+v", st)
				}
				advance(2 * time.Hour)
				s.checkLastGood(s.users...)
				checkUnavailable(t, s.cache, unknown)
				s.o.restore(before)
				advance(2 * emptiedInterval)
				checkBackend(t, s.cache, unknown, "", event.OriginRedis)
				checkBackend(t, s.cache, s.users[3], "east", event.OriginRedis)
				s.checkAlarms(StoreEmptied, StoreHolding)
			})
		})
	}
}

// A query that runs while the records are lost is not warned by an invalidation.
func TestTheFirstReadAfterALossIsNotTrusted(t *testing.T) {
	runWithCache(t, func(t *testing.T, c *cache, o *fakeStore) { // without inspections
		alice, bob := user(t, "alice"), user(t, "bob@example.org")
		o.set(alice, MatchUser, "east")
		checkBackend(t, c, alice, "east", event.OriginRedis)
		o.clearRecords()
		o.set(user(t, "someone@example.org"), MatchDomain, "west") // the domain's record is back first
		checkUnavailable(t, c, user(t, "unknown"))
		o.mu.Lock()
		o.records[bob] = decision{match: MatchDomain, record: record{present: true, backend: "west", state: stateActive}}
		o.mu.Unlock()
		checkUnavailable(t, c, bob) // bob may have had a record
	})
}

func TestALossIsDetectedWithoutLookups(t *testing.T) {
	runLossTest(t, 5, func(t *testing.T, s *lossTest) {
		s.o.clearRecords()
		advance(holdingInterval + lossConfirmDelay + emptiedInterval)
		s.checkAlarms(StoreEmptied)
	})
}

func TestAnEmptyStoreDeniesUnknownUsers(t *testing.T) {
	runLossTest(t, 0, func(t *testing.T, s *lossTest) {
		checkBackend(t, s.cache, user(t, "unknown"), "", event.OriginRedis)
		s.suspectAll()
		advance(time.Minute)
		checkBackend(t, s.cache, user(t, "unknown"), "", event.OriginRedis)
		s.checkAlarms()
		if s.o.inspections != 0 {
			t.Errorf("it was inspected %d times", s.o.inspections)
		}
	})
}

func TestInvalidatedDeletionsAreTrustedDownToTheLastRecord(t *testing.T) {
	runLossTest(t, 3, func(t *testing.T, s *lossTest) {
		for _, u := range s.users {
			s.o.set(u, MatchNone, "")
			s.invalidateKeys([]string{s.keys.user(u)})
			checkBackend(t, s.cache, u, "", event.OriginRedis)
		}
		advance(time.Minute)
		checkBackend(t, s.cache, user(t, "unknown"), "", event.OriginRedis)
		s.checkAlarms()
	})
}

// A script may delete all records during an inspection.
func TestADeletionDuringAnInspectionIsTrusted(t *testing.T) {
	runLossTest(t, 3, func(t *testing.T, s *lossTest) {
		var gone atomic.Int32
		s.o.mu.Lock()
		s.o.afterInspect = func() {
			if i := int(gone.Load()); i < len(s.users) {
				s.o.set(s.users[i], MatchNone, "")
				s.invalidateKeys([]string{s.keys.user(s.users[i])})
				gone.Add(1)
			}
		}
		s.o.mu.Unlock()
		advance(time.Minute)
		if int(gone.Load()) < len(s.users) {
			t.Fatal("there was no inspection")
		}
		for _, u := range s.users {
			checkBackend(t, s.cache, u, "", event.OriginRedis)
		}
		checkBackend(t, s.cache, user(t, "unknown"), "", event.OriginRedis)
		s.checkAlarms()
	})
}

// An invalidation comes on another connection than the missing record.
func TestAnInvalidationAfterTheAbsenceIsInTime(t *testing.T) {
	runLossTest(t, 1, func(t *testing.T, s *lossTest) {
		alice := s.users[0]
		s.o.set(alice, MatchNone, "")
		s.suspectUser(alice)
		s.checkLastGood(alice)
		advance(20 * time.Millisecond)
		s.invalidateKeys([]string{s.keys.user(alice)})
		advance(suspectInterval)
		checkBackend(t, s.cache, alice, "", event.OriginRedis)
		advance(time.Minute)
		s.checkAlarms()
	})
}

// HSET causes an invalidation, too; a flush after it is still a loss.
func TestAFlushAfterAChangeIsALoss(t *testing.T) {
	runLossTest(t, 2, func(t *testing.T, s *lossTest) {
		for _, u := range s.users {
			s.invalidateKeys([]string{s.keys.user(u)})
		}
		s.o.clearRecords()
		s.suspectAll() // as after a flush, after the invalidations
		advance(2 * lossConfirmDelay)
		s.checkLastGood(s.users...)
		s.checkAlarms(StoreEmptied)
	})
}

func TestAFewDeletionsWithoutInvalidationAreTrusted(t *testing.T) {
	runLossTest(t, 6, func(t *testing.T, s *lossTest) {
		gone := s.users[:2]
		for _, u := range gone {
			s.o.set(u, MatchNone, "")
		}
		s.suspectAll()
		s.checkLastGood(gone...)
		advance(confirmDelay)
		for _, u := range gone {
			checkBackend(t, s.cache, u, "", event.OriginRedis)
		}
		s.checkAlarms()
	})
}

func TestNewRecordsDoNotEndALoss(t *testing.T) {
	runLossTest(t, 10, func(t *testing.T, s *lossTest) {
		s.o.clearRecords()
		s.suspectAll()
		advance(2 * lossConfirmDelay)
		for i := range 3 * maxSample {
			u := user(t, "new"+string(rune('a'+i%26))+string(rune('a'+i/26)))
			s.o.set(u, MatchUser, "west")
			checkBackend(t, s.cache, u, "west", event.OriginRedis)
		}
		advance(time.Hour)
		s.checkLastGood(s.users...)
		checkUnavailable(t, s.cache, user(t, "unknown"))
		s.checkAlarms(StoreEmptied)
	})
}

func TestHalfOfTheRecordsEndALossWhenRecoveryStops(t *testing.T) {
	runLossTest(t, 10, func(t *testing.T, s *lossTest) {
		before := s.o.clearRecords()
		s.suspectAll()
		advance(2 * lossConfirmDelay)
		for _, u := range s.users[:8] { // restored one by one
			s.o.restore(map[identity.User]decision{u: before[u]})
			advance(recoveryTimeout / 2)
			checkUnavailable(t, s.cache, user(t, "unknown"))
			s.checkLastGood(s.users...)
		}
		s.checkAlarms(StoreEmptied)
		advance(recoveryTimeout)
		s.checkAlarms(StoreEmptied, StoreHolding)
		checkBackend(t, s.cache, user(t, "unknown"), "", event.OriginRedis)
		s.checkLastGood(s.users[9]) // its record must again be missing twice
		advance(confirmDelay)
		checkBackend(t, s.cache, s.users[9], "", event.OriginRedis)
	})
}

func TestAcceptEmptyEndsOnlyTheCurrentLoss(t *testing.T) {
	runLossTest(t, 10, func(t *testing.T, s *lossTest) {
		s.o.acceptLoss(100, "carol") // an old acceptance
		advance(time.Minute)
		s.o.clearRecords()
		s.suspectAll()
		advance(2 * lossConfirmDelay)
		checkUnavailable(t, s.cache, user(t, "unknown")) // it does not apply
		s.o.acceptLoss(200, "dave")
		advance(2 * emptiedInterval)
		checkBackend(t, s.cache, user(t, "unknown"), "", event.OriginRedis)
		checkBackend(t, s.cache, s.users[0], "", event.OriginRedis)
		s.checkAlarms(StoreEmptied, "") // the sample is empty
		if by := s.alarms[1].AcceptedBy; by != "dave" {
			t.Errorf("ended by %q", by)
		}
		for _, u := range s.users {
			s.o.set(u, MatchUser, "east")
			s.invalidateKeys([]string{s.keys.user(u)})
			checkBackend(t, s.cache, u, "east", event.OriginRedis)
		}
		advance(time.Minute)
		s.o.clearRecords()
		s.suspectAll()
		advance(time.Minute)
		checkUnavailable(t, s.cache, user(t, "unknown"))
		s.checkAlarms(StoreEmptied, "", StoreEmptied)
	})
}

func TestAnAcceptanceBeforeTheStartIsIgnored(t *testing.T) {
	runWithCache(t, func(t *testing.T, c *cache, o *fakeStore) {
		s := &lossTest{T: t, cache: c, o: o, users: makeUsers(t, 10)}
		for _, u := range s.users {
			o.set(u, MatchUser, "east")
			checkBackend(t, c, u, "east", event.OriginRedis)
		}
		o.acceptLoss(100, "carol")
		s.startInspections()
		advance(holdingInterval)
		o.clearRecords()
		s.suspectAll()
		advance(2 * lossConfirmDelay)
		checkUnavailable(t, c, user(t, "unknown"))
		s.checkAlarms(StoreEmptied)
	})
}

// An acceptance may reach a gateway before it detects the loss.
func TestAnAcceptanceAppliesToALossDetectedSoonAfter(t *testing.T) {
	runLossTest(t, 10, func(t *testing.T, s *lossTest) {
		advance(holdingInterval)
		s.o.acceptLoss(100, "carol")
		advance(holdingInterval)
		s.o.clearRecords()
		advance(2 * holdingInterval)
		checkBackend(t, s.cache, user(t, "unknown"), "", event.OriginRedis)
		s.checkAlarms()
	})
}

// nodeByUser puts the records of user0 to user4 on one node, and all others on another.
func nodeByUser(first, second string) func(string) string {
	return func(key string) string {
		if name := strings.TrimSuffix(key, "@example.org"); name[len(name)-1] < '5' && name[len(name)-1] >= '0' {
			return first
		}
		return second
	}
}

func TestALostNodeAffectsOnlyItsUsers(t *testing.T) {
	for name, failover := range map[string]bool{"flushed": false, "failed over to an empty replica": true} {
		t.Run(name, func(t *testing.T) {
			runWithCache(t, func(t *testing.T, c *cache, o *fakeStore) {
				o.nodes = nodeByUser("a", "b")
				s := &lossTest{T: t, cache: c, o: o, users: makeUsers(t, 10)}
				for _, u := range s.users {
					o.set(u, MatchUser, "east")
					checkBackend(t, c, u, "east", event.OriginRedis)
				}
				lost, intact := s.users[:5], s.users[5:]
				for _, u := range lost {
					o.set(u, MatchNone, "")
				}
				if failover {
					o.mu.Lock()
					o.nodes = nodeByUser("c", "b")
					o.mu.Unlock()
				}
				c.suspectAll()
				s.checkLastGood(lost...) // before the first inspection
				checkUnavailable(t, c, user(t, "unknown3"))
				s.startInspections()
				advance(time.Minute)
				s.checkLastGood(lost...)
				checkUnavailable(t, c, user(t, "unknown3"))
				checkBackend(t, c, user(t, "unknown7"), "", event.OriginRedis)
				for _, u := range intact {
					checkBackend(t, c, u, "east", event.OriginRedis)
				}
				s.checkAlarms(StoreEmptied)
				if st := c.storeStatus(); st.Missing != 5 || st.Node != c.store.sample.addressOf(t, lost[0], c.keys) {
					t.Errorf("%+v", st)
				}
			})
		})
	}
}

// A failover may be noticed during a query.
func TestAReadFromARemovedNodeIsNotTrusted(t *testing.T) {
	runWithCache(t, func(t *testing.T, c *cache, o *fakeStore) {
		o.nodes = nodeByUser("a", "b")
		for _, u := range makeUsers(t, 10) {
			o.set(u, MatchUser, "east")
			checkBackend(t, c, u, "east", event.OriginRedis)
		}
		for _, u := range makeUsers(t, 5) {
			o.set(u, MatchNone, "")
		}
		unknown := user(t, "unknown3")
		plan := c.planRead(t.Context(), unknown)
		o.nodes = nodeByUser("c", "b")
		r, err := o.read(t.Context(), unknown, plan.samples)
		if err != nil || len(r.missingSamples) == 0 {
			t.Fatalf("%+v, %v", r, err)
		}
		c.reassignNodes(t.Context())
		for _, node := range c.claimInspections(plan, r) {
			c.inspectNode(t.Context(), node)
		}
		if c.trustsAbsence(plan, r) {
			t.Error("the absence is trusted")
		}
	})
}

// addressOf returns the node of a user's record in the sample.
func (s *sample) addressOf(t *testing.T, u identity.User, k keys) string {
	t.Helper()
	for address, n := range s.nodes {
		if s.nodeByKey[k.user(u)] == n {
			return address
		}
	}
	t.Errorf("%s is not in the sample", u)
	return ""
}

func TestTheSampleIsBounded(t *testing.T) {
	runLossTest(t, 5*maxSample, func(t *testing.T, s *lossTest) {
		if n := len(s.store.sample.nodeByKey); n != maxSample || len(s.store.sample.nodes[""].keys) != n {
			t.Errorf("%d records in the sample", n)
		}
		before := s.o.clearRecords()
		s.suspectAll()
		advance(2 * lossConfirmDelay)
		s.o.restore(before)
		advance(2 * emptiedInterval)
		s.checkAlarms(StoreEmptied, StoreHolding)
	})
}

func TestTheSampleSurvivesARestart(t *testing.T) {
	for name, text := range map[string]string{
		"written by this version": "",
		"written by an earlier one": `{"version":1,"routes":[{"user":"alice","backend":"east","source":"user","learned":"` +
			"2000-01-01T00:00:00Z" + `"}]}`, // when time begins in a bubble
		"of users without routes": `{"version":1,"routes":[],"records":["user:alice","default"]}`,
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "routes.json")
			synctest.Test(t, func(t *testing.T) {
				if text != "" {
					writeFile(t, file, text)
				} else {
					first := routerWithFile(t, file, newFakeStore())
					o := newFakeStore()
					first.cache.reader = o.reader()
					o.set(user(t, "alice"), MatchUser, "east")
					if _, err := first.Lookup(t.Context(), user(t, "alice")); err != nil {
						t.Fatal(err)
					}
					if err := first.saveSnapshot(); err != nil {
						t.Fatal(err)
					}
				}
				o := newFakeStore()
				second := routerWithFile(t, file, o)
				o.fail(nil, 0) // it answers and is empty
				second.cache.store.hasLookups = true
				s := &lossTest{T: t, cache: second.cache, o: o}
				s.startInspections()
				for range 20 {
					if _, err := second.Lookup(t.Context(), user(t, "unknown")); !errors.Is(err, ErrUnavailable) {
						t.Fatalf("an unknown user: %v", err)
					}
					advance(time.Second)
				}
				s.checkAlarms(StoreEmptied)
				if name != "of users without routes" {
					s.checkLastGood(user(t, "alice"))
				}
				o.acceptLoss(1, "carol")
				advance(2 * emptiedInterval)
				checkBackend(t, second.cache, user(t, "unknown"), "", event.OriginRedis)
				if err := second.saveSnapshot(); err != nil {
					t.Fatal(err)
				}
				third := routerWithFile(t, file, o)
				if third.cache.store.acceptance.At != 1 || len(third.cache.store.sample.nodeByKey) != 0 {
					t.Errorf("the acceptance is lost: %+v, %d records", third.cache.store.acceptance, len(third.cache.store.sample.nodeByKey))
				}
			})
		})
	}
}
