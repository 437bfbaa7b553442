package routing

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync/atomic"
	"testing"

	"imapgate/internal/identity"
	"imapgate/internal/testbed"
	"imapgate/internal/testkit"

	"github.com/redis/go-redis/v9"
)

// redisLossTest is a Router with entries for some users of a real Redis.
type redisLossTest struct {
	// Set once.
	*testing.T
	r     *Router
	users []identity.User
	alarm atomic.Bool
}

const lossTestUsers = 30 // enough for every primary of a cluster to have some

// newRedisLossTest writes a record for each user, runs a Router and looks all users up.
func newRedisLossTest(t *testing.T, rdb redis.UniversalClient, write func(...string) string, change ...func(*Config)) *redisLossTest {
	t.Helper()
	b := &redisLossTest{T: t, users: makeUsers(t, lossTestUsers)}
	cfg := testConfig
	for _, f := range change {
		f(&cfg)
	}
	var err error
	b.r, err = New(testbed.WithDefaults(cfg), rdb, Metrics{Store: func(s StoreStatus) { b.alarm.Store(s.State == StoreEmptied) }}, testLogger(t))
	if err != nil {
		t.Fatal(err)
	}
	if write != nil {
		b.writeRecords(write)
		for _, u := range b.users {
			awaitBackend(t, b.r, u, "east")
		}
	}
	startAndAwaitUp(t, b.r)
	return b
}

func (b *redisLossTest) writeRecords(cli func(...string) string) {
	b.Helper()
	for _, u := range b.users {
		cli("hset", "imapgate:user:"+u.String(), "backend", "east", "password", "{PLAIN}canary")
	}
}

// awaitLoss checks that no user is denied until an alarm is raised, and once after that.
func (b *redisLossTest) awaitLoss(users []identity.User, unknownUsers ...string) {
	b.Helper()
	testkit.Eventually(b, "an alarm", func() bool {
		raised := b.alarm.Load()
		for _, u := range users {
			if got, err := b.r.Lookup(b.Context(), u); err != nil || got.Backend != "east" {
				b.Fatalf("%s goes: %+v, %v", u, got, err)
			}
			if hash, err := b.r.Password(b.Context(), u); err != nil && !errors.Is(err, ErrUnavailable) || err == nil && hash.Reveal() != "{PLAIN}canary" {
				b.Fatalf("%s has the password %q, %v", u, hash.Reveal(), err)
			}
		}
		for _, name := range unknownUsers {
			if got, err := b.r.Lookup(b.Context(), user(b, name)); !errors.Is(err, ErrUnavailable) {
				b.Fatalf("%s: %+v, %v", name, got, err)
			}
			if _, err := b.r.Password(b.Context(), user(b, name)); !errors.Is(err, ErrUnavailable) {
				b.Fatalf("the password of %s: %v", name, err)
			}
		}
		return raised
	})
}

// awaitRecovery waits for the end of the alarm, and for users without a record to be unknown
// again.
func (b *redisLossTest) awaitRecovery(unknownUsers ...string) {
	b.Helper()
	testkit.Eventually(b, "the alarm to end", func() bool { return !b.alarm.Load() })
	for _, name := range unknownUsers {
		testkit.Eventually(b, name+" to be unknown", func() bool {
			_, err := b.r.Lookup(b.Context(), user(b, name))
			return errors.Is(err, ErrNoUser)
		})
	}
}

func dialSingle(t *testing.T, s *testbed.Redis) redis.UniversalClient {
	t.Helper()
	return dialRedis(t, RedisConfig{RedisSettings: RedisSettings{Addresses: []string{s.Address}}})
}

func TestLostRecordsDenyNoUser(t *testing.T) {
	for name, clearStore := range map[string]func(*testbed.Redis){
		"FLUSHALL":           func(s *testbed.Redis) { s.CLI("flushall") },
		"FLUSHDB":            func(s *testbed.Redis) { s.CLI("flushdb", "async") },
		"another database":   func(s *testbed.Redis) { s.CLI("swapdb", "0", "1") },
		"a volume lost":      (*testbed.Redis).RestartEmpty,
		"one record is back": func(s *testbed.Redis) { s.CLI("flushall"); s.CLI("hset", "imapgate:default", "backend", "west") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := testbed.StartRedis(t)
			b := newRedisLossTest(t, dialSingle(t, s), s.CLI)
			clearStore(s)
			b.awaitLoss(b.users, "unknown")
			b.writeRecords(s.CLI)
			s.CLI("del", "imapgate:default")
			b.awaitRecovery("unknown")
			for _, u := range b.users {
				awaitBackend(t, b.r, u, "east")
			}
		})
	}
}

func TestAFailoverToAnEmptyReplicaDeniesNoUser(t *testing.T) {
	t.Run("sentinel", func(t *testing.T) {
		t.Parallel()
		s := testbed.StartRedisSentinel(t)
		b := newRedisLossTest(t, dialRedis(t, RedisConfig{RedisSettings: RedisSettings{Addresses: s.Addresses, SentinelMaster: testbed.SentinelName}}), s.Primary().CLI)
		awaitReplica(t, s.Servers()[1], lossTestUsers)
		flushReplica(s.Servers()[1])
		s.Failover()
		b.awaitLoss(b.users) // until go-redis notices, the old primary answers
		b.awaitLoss(b.users, "unknown")
		b.writeRecords(s.Primary().CLI)
		b.awaitRecovery("unknown")
	})
	t.Run("cluster", func(t *testing.T) {
		t.Parallel()
		c := testbed.StartRedisCluster(t)
		b := newRedisLossTest(t, dialRedis(t, RedisConfig{RedisSettings: RedisSettings{Addresses: c.Addresses[:2], Cluster: true}}), c.CLI)
		held, err := strconv.Atoi(c.Nodes[0].CLI("dbsize"))
		if err != nil {
			t.Fatal(err)
		}
		awaitReplica(t, c.Nodes[3], held) // what arrives after the flush would stay
		flushReplica(c.Nodes[3])
		c.Failover()
		b.awaitLoss(b.users, userOnNode(t, c, c.Nodes[0]))
	})
}

// awaitReplica waits until a replica has n keys.
func awaitReplica(t *testing.T, replica *testbed.Redis, n int) {
	t.Helper()
	testkit.Eventually(t, "the replica to be in sync", func() bool { return replica.CLI("dbsize") == fmt.Sprint(n) })
}

// flushReplica removes a replica's copy, as a fault would.
func flushReplica(replica *testbed.Redis) {
	replica.CLI("config", "set", "replica-read-only", "no")
	replica.CLI("flushall")
}

// userOnNode returns a user without a record, whose record would be on a node.
func userOnNode(t *testing.T, c *testbed.RedisCluster, n *testbed.Redis) string {
	t.Helper()
	for i := range 100 {
		if name := fmt.Sprintf("unknown%d@example.org", i); c.PrimaryOf("imapgate:user:"+name) == n {
			return name
		}
	}
	t.Fatal("no user name belongs to the node")
	return ""
}

func TestALostClusterNodeDeniesNoUser(t *testing.T) {
	c := testbed.StartRedisCluster(t)
	b := newRedisLossTest(t, dialRedis(t, RedisConfig{RedisSettings: RedisSettings{Addresses: c.Addresses[:2], Cluster: true}}), c.CLI)
	lost, intact := c.Nodes[1], c.Nodes[2]
	lost.CLI("flushall")
	b.awaitLoss(b.users, userOnNode(t, c, lost))
	if x := b.r.Explain(t.Context(), b.users[0]); x.Store.State != StoreEmptied || x.Store.Node != lost.Address || x.Store.Missing == 0 {
		t.Errorf("explained as %+v", x.Store)
	}
	// On other nodes users are unknown, or deleted, as before. The records of the domain and
	// the default must also be known to be absent.
	for _, u := range b.users {
		if key := "imapgate:user:" + u.String(); c.PrimaryOf(key) == intact {
			c.CLI("hset", key, "backend", "west")
			awaitBackend(t, b.r, u, "west")
			break
		}
	}
	b.writeRecords(c.CLI)
	b.awaitRecovery()
}

func TestDeletionOfTheLastRecordTakesEffectAtOnce(t *testing.T) {
	s := testbed.StartRedis(t)
	b := newRedisLossTest(t, dialSingle(t, s), s.CLI)
	for _, u := range b.users {
		if u == b.users[7] {
			s.CLI("unlink", "imapgate:user:"+u.String())
		} else {
			s.CLI("del", "imapgate:user:"+u.String())
		}
		testkit.Eventually(t, u.String()+" to be gone", func() bool {
			_, err := b.r.Lookup(t.Context(), u)
			return errors.Is(err, ErrNoUser)
		})
	}
	s.CLI("hset", "imapgate:user:"+b.users[0].String(), "backend", "east")
	awaitBackend(t, b.r, b.users[0], "east")
	for _, cmd := range [][]string{{"hdel", "imapgate:user:" + b.users[0].String(), "backend"}} {
		s.CLI(cmd...)
		testkit.Eventually(t, "the last record to be gone", func() bool {
			_, err := b.r.Lookup(t.Context(), b.users[0])
			return errors.Is(err, ErrNoUser)
		})
	}
	if b.alarm.Load() {
		t.Error("an alarm was raised")
	}
}

func TestARestartWithASnapshotDetectsAnEmptyRedis(t *testing.T) {
	for name, prefix := range map[string]string{"empty": DefaultPrefix, "another prefix": "other:"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := testbed.StartRedis(t)
			file := t.TempDir() + "/routes.json"
			keep := func(c *Config) { c.Snapshot = file }
			first := newRedisLossTest(t, dialSingle(t, s), s.CLI, keep)
			if err := first.r.saveSnapshot(); err != nil {
				t.Fatal(err)
			}
			if prefix == DefaultPrefix {
				s.CLI("flushall")
			}
			second := newRedisLossTest(t, dialSingle(t, s), nil, keep, func(c *Config) { c.Prefix = prefix })
			second.awaitLoss(second.users, "unknown")
			if err := second.r.AcceptEmpty(t.Context(), "carol"); err != nil {
				t.Fatal(err)
			}
			second.awaitRecovery("unknown", second.users[0].String())
			if x := second.r.Explain(t.Context(), second.users[0]); x.Store.AcceptedBy != "carol" || x.Store.State == StoreEmptied {
				t.Errorf("explained as %+v", x.Store)
			}
		})
	}
}

func TestAcceptEmptyAppliesToAllNodesOfACluster(t *testing.T) {
	c := testbed.StartRedisCluster(t)
	rdb := dialRedis(t, RedisConfig{RedisSettings: RedisSettings{Addresses: c.Addresses[:2], Cluster: true}})
	b := newRedisLossTest(t, rdb, c.CLI)
	for _, n := range c.Nodes[:3] {
		n.CLI("flushall")
	}
	b.awaitLoss(b.users)
	operator := newRouter(t, dialRedis(t, RedisConfig{RedisSettings: RedisSettings{Addresses: c.Addresses[:1], Cluster: true}}))
	if err := operator.AcceptEmpty(context.Background(), "carol"); err != nil {
		t.Fatal(err)
	}
	b.awaitRecovery("unknown")
	testkit.Eventually(t, "a user to be unknown", func() bool {
		_, err := b.r.Lookup(t.Context(), b.users[0])
		return errors.Is(err, ErrNoUser)
	})
}
