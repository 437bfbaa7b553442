//go:build unix

package limit

import (
	"fmt"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"imapgate/internal/cluster"
	"imapgate/internal/event"
	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
)

// The new primary has lost the last change and has had another one instead, so that its
// counter of changes is the same.
func TestRecordsLostByAFailoverAreWrittenAgain(t *testing.T) {
	r := testbed.StartRedis(t)
	var requests atomic.Int32
	g := runWithHooks(t, shortTTL(), dialRedis(t, r.Address), Hooks{OnBanRequest: countBanRequests(&requests)})
	awaitSharedBans(t, g)
	kept, unknown := netip.MustParsePrefix("203.0.113.0/24"), ip("198.51.100.9")
	if err := g.Ban(t.Context(), kept, time.Hour, ""); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, "the gateway to report its own ban", func() bool { return requests.Load() == 1 })
	r.CLI("eval", `local p = 'imapgate:ban:{all}:'
		local last = redis.call('XREVRANGE', p .. 'changes', '+', '-', 'COUNT', 1)[1]
		redis.call('XDEL', p .. 'changes', last[1])
		redis.call('DEL', p .. 'nets', p .. 'ends')
		redis.call('XADD', p .. 'changes', '*', 'n', redis.call('GET', p .. 'count'), 'ban', '198.51.100.9/32')
		local till = redis.call('TIME')[1] * 1000 + 3600000
		redis.call('HSET', p .. 'nets', '198.51.100.9/32', till .. ' 1 0 operator ')
		return redis.call('ZADD', p .. 'ends', till, '198.51.100.9/32')`, "0")
	testkit.Eventually(t, "the gateway to have the new ban", func() bool { _, ok := g.bans.Find(unknown); return ok })
	testkit.Eventually(t, "Redis to have the old ban again", func() bool {
		all, err := g.Bans(t.Context())
		return err == nil && len(all) == 2
	})
	if _, ok := g.bans.Find(ip("203.0.113.1")); !ok {
		t.Error("the gateway has lost the old ban")
	}
}

func TestALossIsRepairedOnceWithoutABanRequest(t *testing.T) {
	r := testbed.StartRedis(t)
	var requests atomic.Int32
	hooks := Hooks{OnBanRequest: countBanRequests(&requests)}
	var gateways []*gateway
	for range 3 {
		gateways = append(gateways, runWithHooks(t, shortTTL(), dialRedis(t, r.Address), hooks))
	}
	awaitSharedBans(t, gateways...)
	const bans = 5
	for i := range bans {
		if err := gateways[0].Ban(t.Context(), netip.MustParsePrefix(fmt.Sprintf("203.0.113.%d/32", i)), time.Hour, "by hand"); err != nil {
			t.Fatal(err)
		}
	}
	testkit.Eventually(t, "all gateways to report the bans", func() bool { return requests.Load() == int32(bans*len(gateways)) })
	r.CLI("flushall")
	testkit.Eventually(t, "Redis to have the bans again", func() bool { all, err := gateways[1].Bans(t.Context()); return err == nil && len(all) == bans })
	pause(t, 4*500*time.Millisecond) // long enough for all gateways to read them
	if n := r.CLI("get", "imapgate:ban:{all}:count"); n != fmt.Sprint(bans) {
		t.Errorf("%d bans were written %s times", bans, n)
	}
	if n := requests.Load(); n != int32(bans*len(gateways)) {
		t.Errorf("%d requests were reported, want %d", n, bans*len(gateways))
	}
}

func TestAForeignKeyDoesNotDisturbOthers(t *testing.T) {
	r := testbed.StartRedis(t)
	var down atomic.Bool
	hooks := Hooks{OnRedis: func(up bool) { down.Store(down.Load() || !up) }}
	cfg := shortTTL()
	cfg.Connections.PerUser = 2
	one, two := runWithHooks(t, cfg, dialRedis(t, r.Address), hooks), runWithHooks(t, cfg, dialRedis(t, r.Address), hooks)
	r.CLI("set", "imapgate:limit:sessions:user:victim@example.org", "x")
	var conns []*Conn
	for i := range 30 {
		for range 2 {
			conn, err := openSession(t, one, netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), user(t, fmt.Sprintf("user%d", i)))
			if err != nil {
				t.Fatal(err)
			}
			conns = append(conns, conn)
		}
		if _, err := openSession(t, two, ip("10.1.0.1"), user(t, fmt.Sprintf("user%d", i))); reason(err) != event.LimitUser {
			t.Fatalf("a third session of a user: %v", err)
		}
	}
	for range 2 {
		conn, err := openSession(t, one, ip("10.2.0.1"), user(t, "victim"))
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, conn)
	}
	if _, err := openSession(t, one, ip("10.2.0.1"), user(t, "victim")); reason(err) != event.LimitUser {
		t.Errorf("a third session of a user without a count in Redis: %v", err)
	}
	closeAll(conns)
	testkit.Eventually(t, "all other counts to be removed from Redis", func() bool {
		return r.CLI("keys", "imapgate:limit:sessions:*") == "imapgate:limit:sessions:user:victim@example.org"
	})
	if down.Load() {
		t.Error("Redis was reported as down")
	}
	r.CLI("del", "imapgate:limit:sessions:user:victim@example.org")
	testkit.Eventually(t, "the gateway to have written all its counts", func() bool { return one.cluster.Idle() })
}

func TestLimitsHoldDuringAFailover(t *testing.T) {
	c := testbed.StartRedisSentinel(t)
	dialSentinel := func() redis.UniversalClient {
		client := redis.NewUniversalClient(&redis.UniversalOptions{
			Addrs: c.Addresses, MasterName: testbed.SentinelName, Protocol: 2, DisableIdentity: true, DialTimeout: time.Second,
			ReadTimeout: cluster.Wait, WriteTimeout: cluster.Wait, PoolTimeout: cluster.Wait, ContextTimeoutEnabled: true, MaxRetries: 1,
		})
		t.Cleanup(func() { _ = client.Close() })
		return client
	}
	cfg := noConnLimits() // the heartbeat outlasts a failover, as it must
	cfg.Connections.PerUser, cfg.Wait = 10, cluster.Wait
	one, two := runGateway(t, cfg, dialSentinel()), runGateway(t, cfg, dialSentinel())
	alice := user(t, "alice")
	testkit.Eventually(t, "Redis to answer", func() bool { return sessionCount(t, two, alice) == 0 })
	conns := openSessions(t, 6, alice, one)
	c.Failover()
	c.AwaitDemotion()
	testkit.Eventually(t, "the new primary to count 6 sessions", func() bool { return sessionCount(t, two, alice) == 6 })
	for i := range 20 { // one at a time: the gateway still has to connect to the new primary
		if conn, err := openSession(t, two, netip.AddrFrom4([4]byte{10, 1, 0, byte(i)}), alice); err == nil {
			conns = append(conns, conn)
		}
	}
	if len(conns) != 10 {
		t.Fatalf("after the failover %d sessions are admitted, the limit is 10", len(conns))
	}
	closeAll(conns)
}
