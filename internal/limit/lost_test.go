//go:build unix

package limit

import (
	"fmt"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"imapgate/internal/event"
	"imapgate/internal/testbed"
)

// A new primary has not had the last change, and another one in its place: the
// counter is where it was.
func TestWhatAFailoverLostIsWrittenAgain(t *testing.T) {
	r := testbed.StartRedis(t)
	var orders atomic.Int32
	g := runHooked(t, quick(), dial(t, r.Address), Hooks{OnBanRequest: countOrders(&orders)})
	following(t, g)
	kept, unheard := netip.MustParsePrefix("203.0.113.0/24"), at("198.51.100.9")
	if err := g.Ban(t.Context(), kept, time.Hour, ""); err != nil {
		t.Fatal(err)
	}
	testbed.Eventually(t, patienceOf, "the gateway to have heard of its own ban", func() bool { return orders.Load() == 1 })
	r.CLI("eval", `local p = 'imapgate:ban:{all}:'
		local last = redis.call('XREVRANGE', p .. 'changes', '+', '-', 'COUNT', 1)[1]
		redis.call('XDEL', p .. 'changes', last[1])
		redis.call('DEL', p .. 'nets', p .. 'ends')
		redis.call('XADD', p .. 'changes', '*', 'n', redis.call('GET', p .. 'count'), 'ban', '198.51.100.9/32')
		local till = redis.call('TIME')[1] * 1000 + 3600000
		redis.call('HSET', p .. 'nets', '198.51.100.9/32', till .. ' 1 0 operator ')
		return redis.call('ZADD', p .. 'ends', till, '198.51.100.9/32')`, "0")
	testbed.Eventually(t, patienceOf, "the gateway to know the new ban", func() bool { _, ok := g.bans.Find(unheard); return ok })
	testbed.Eventually(t, patienceOf, "Redis to know the old one again", func() bool {
		all, err := g.Bans(t.Context())
		return err == nil && len(all) == 2
	})
	if _, ok := g.bans.Find(at("203.0.113.1")); !ok {
		t.Error("the gateway has forgotten the old ban")
	}
}

func TestLossIsWrittenOnceAndIsNoNewOrder(t *testing.T) {
	r := testbed.StartRedis(t)
	var orders atomic.Int32
	hooks := Hooks{OnBanRequest: countOrders(&orders)}
	var gates []*gateway
	for range 3 {
		gates = append(gates, runHooked(t, quick(), dial(t, r.Address), hooks))
	}
	following(t, gates...)
	const bans = 5
	for i := range bans {
		if err := gates[0].Ban(t.Context(), netip.MustParsePrefix(fmt.Sprintf("203.0.113.%d/32", i)), time.Hour, "by hand"); err != nil {
			t.Fatal(err)
		}
	}
	testbed.Eventually(t, patienceOf, "all to have them on record", func() bool { return orders.Load() == int32(bans*len(gates)) })
	r.CLI("flushall")
	testbed.Eventually(t, patienceOf, "Redis to know them again", func() bool { all, err := gates[1].Bans(t.Context()); return err == nil && len(all) == bans })
	pass(t, 4*500*time.Millisecond) // all gateways have read it
	if n := r.CLI("get", "imapgate:ban:{all}:count"); n != fmt.Sprint(bans) {
		t.Errorf("%d bans were announced %s times", bans, n)
	}
	if n := orders.Load(); n != int32(bans*len(gates)) {
		t.Errorf("%d orders are on record, %d were given", n, bans*len(gates))
	}
}

func TestAKeyThatIsNotOursSpoilsNothingElse(t *testing.T) {
	r := testbed.StartRedis(t)
	var away atomic.Bool
	hooks := Hooks{OnRedis: func(up bool) { away.Store(away.Load() || !up) }}
	cfg := quick()
	cfg.Connections.PerUser = 2
	one, two := runHooked(t, cfg, dial(t, r.Address), hooks), runHooked(t, cfg, dial(t, r.Address), hooks)
	r.CLI("set", "imapgate:limit:sessions:user:victim@example.org", "x")
	var in []*Conn
	for i := range 30 {
		for range 2 {
			v, err := enter(t, one, netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), user(t, fmt.Sprintf("user%d", i)))
			if err != nil {
				t.Fatal(err)
			}
			in = append(in, v)
		}
		if _, err := enter(t, two, at("10.1.0.1"), user(t, fmt.Sprintf("user%d", i))); reason(err) != event.LimitUser {
			t.Fatalf("a third session of a user: %v", err)
		}
	}
	for range 2 {
		v, err := enter(t, one, at("10.2.0.1"), user(t, "victim"))
		if err != nil {
			t.Fatal(err)
		}
		in = append(in, v)
	}
	if _, err := enter(t, one, at("10.2.0.1"), user(t, "victim")); reason(err) != event.LimitUser {
		t.Errorf("where the number is lost the gateway's own does not hold: %v", err)
	}
	leaveAll(in)
	testbed.Eventually(t, patienceOf, "all other numbers to be written", func() bool {
		return r.CLI("keys", "imapgate:limit:sessions:*") == "imapgate:limit:sessions:user:victim@example.org"
	})
	if away.Load() {
		t.Error("Redis was thought to be away")
	}
	r.CLI("del", "imapgate:limit:sessions:user:victim@example.org")
	testbed.Eventually(t, patienceOf, "nothing to be left to tell", func() bool { return one.cluster.Idle() })
}
