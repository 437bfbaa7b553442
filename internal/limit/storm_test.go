//go:build unix

package limit

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"imapgate/internal/cluster"
	"imapgate/internal/event"
	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
)

func TestWhatWasGrantedIsGivenBackWhenSomethingElseIsFull(t *testing.T) {
	r := testbed.StartRedis(t)
	cfg := quick()
	cfg.Connections.PerUser, cfg.Connections.PerUserAddress = 50, 1
	one, two := runGate(t, cfg, dial(t, r.Address)), runGate(t, cfg, dial(t, r.Address))
	alice := user(t, "alice")
	v, err := enter(t, one, at("192.0.2.1"), alice)
	if err != nil {
		t.Fatal(err)
	}
	for range 60 { // each is granted the user's place, and denied the pair's
		if _, err := enter(t, two, at("192.0.2.1"), alice); reason(err) != event.LimitUserAddress {
			t.Fatal(err)
		}
	}
	testkit.Eventually(t, "the user to have one session", func() bool { return sessionsOf(t, two, alice) == 1 })
	v.Close()
	testkit.Eventually(t, "the user to have none", func() bool { return sessionsOf(t, two, alice) == 0 })
}

// Clients come and go at two gateways while Redis hangs, dies and comes back. When
// it is over Redis has the numbers of the sessions that are left.
func TestAfterAStormTheNumbersAreRight(t *testing.T) {
	seed := testbed.Seed(t)
	r := testbed.StartRedis(t)
	cfg := quick()
	cfg.Connections.PerUser, cfg.Connections.Total, cfg.wait = 20, 1000, cluster.Wait
	gates := []*gateway{runGate(t, cfg, dial(t, r.Address)), runGate(t, cfg, dial(t, r.Address))}
	const workers, people = 8, 5
	var all sync.WaitGroup
	stop := make(chan struct{})
	here := make([][people][]*Conn, workers)
	for w := range workers {
		rnd := rand.New(rand.NewPCG(seed, uint64(w)))
		all.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				who := rnd.IntN(people)
				mine := &here[w][who]
				if len(*mine) > 3 || len(*mine) > 0 && rnd.IntN(2) == 0 {
					(*mine)[0].Close()
					*mine = (*mine)[1:]
					continue
				}
				addr := netip.AddrFrom4([4]byte{10, byte(w), byte(who), byte(rnd.IntN(3))})
				if v, err := enter(t, gates[w%2], addr, user(t, fmt.Sprintf("user%d", who))); err == nil {
					*mine = append(*mine, v)
				}
			}
		})
	}
	storm(t, r)
	close(stop)
	all.Wait()
	for who := range people {
		want := 0
		for w := range workers {
			want += len(here[w][who])
		}
		u, seen := user(t, fmt.Sprintf("user%d", who)), 0
		testkit.Eventually(t, fmt.Sprintf("%v to have %d sessions in Redis", u, want), func() bool {
			seen = sessionsOf(t, gates[0], u)
			return seen == want
		})
	}
	for w := range workers {
		for who := range people {
			leaveAll(here[w][who])
		}
	}
	testkit.Eventually(t, "Redis to forget everybody", func() bool { return r.CLI("keys", "imapgate:limit:sessions:*") == "" })
	for _, g := range gates {
		testkit.Eventually(t, "the gateway to forget everybody", func() bool { return g.CountersInUse() == 0 && g.cluster.Idle() })
	}
}

func TestAFailoverKeepsTheLimit(t *testing.T) {
	c := testbed.StartRedisSentinel(t)
	sentinel := func() redis.UniversalClient {
		made := redis.NewUniversalClient(&redis.UniversalOptions{
			Addrs: c.Addresses, MasterName: testbed.SentinelName, Protocol: 2, DisableIdentity: true, DialTimeout: time.Second,
			ReadTimeout: cluster.Wait, WriteTimeout: cluster.Wait, PoolTimeout: cluster.Wait, ContextTimeoutEnabled: true, MaxRetries: 1,
		})
		t.Cleanup(func() { _ = made.Close() })
		return made
	}
	cfg := wide() // its leases outlast a failover, as they must
	cfg.Connections.PerUser, cfg.wait = 10, cluster.Wait
	one, two := runGate(t, cfg, sentinel()), runGate(t, cfg, sentinel())
	alice := user(t, "alice")
	testkit.Eventually(t, "Redis to be asked", func() bool { return sessionsOf(t, two, alice) == 0 })
	in := hammer(t, 6, alice, one)
	c.Failover()
	c.AwaitDemotion()
	testkit.Eventually(t, "the new primary to know of 6", func() bool { return sessionsOf(t, two, alice) == 6 })
	for i := range 20 { // one by one: each connection to the new primary is still to be made
		if v, err := enter(t, two, netip.AddrFrom4([4]byte{10, 1, 0, byte(i)}), alice); err == nil {
			in = append(in, v)
		}
	}
	if len(in) != 10 {
		t.Fatalf("behind the failover %d are in, the limit is 10", len(in))
	}
	leaveAll(in)
}

// storm harms Redis in turns, with quiet in between.
func storm(t *testing.T, r *testbed.Redis) {
	t.Helper()
	for _, harm := range []func(){r.Freeze, r.Thaw, r.Kill, r.Restart, func() { r.CLI("flushall") }, r.Freeze, r.Thaw, func() { r.CLI("script", "flush") }} {
		pass(t, 300*time.Millisecond)
		harm()
	}
	pass(t, 300*time.Millisecond)
}

// pass lets time go by.
func pass(t *testing.T, d time.Duration) {
	t.Helper()
	until := time.Now().Add(d)
	testkit.Eventually(t, "time to pass", func() bool { return time.Now().After(until) })
}
