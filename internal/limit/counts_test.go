//go:build unix

package limit

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"testing"
	"time"

	"imapgate/internal/cluster"
	"imapgate/internal/event"
	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
)

func TestARefusedSessionReleasesWhatItAcquired(t *testing.T) {
	r := testbed.StartRedis(t)
	cfg := shortTTL()
	cfg.Connections.PerUser, cfg.Connections.PerUserAddress = 50, 1
	one, two := runTwo(t, cfg, r)
	alice := user(t, "alice")
	conn, err := openSession(t, one, ip("192.0.2.1"), alice)
	if err != nil {
		t.Fatal(err)
	}
	for range 60 { // each acquires the user's slot and is denied one at the address
		if _, err := openSession(t, two, ip("192.0.2.1"), alice); reason(err) != event.LimitUserAddress {
			t.Fatal(err)
		}
	}
	testkit.Eventually(t, "the user to have one session", func() bool { return sessionCount(t, two, alice) == 1 })
	conn.Close()
	testkit.Eventually(t, "the user to have none", func() bool { return sessionCount(t, two, alice) == 0 })
}

// Sessions begin and end at two gateways while Redis hangs, stops and restarts. Afterwards
// Redis counts exactly the sessions that are left.
func TestCountsAreExactAfterAStormOfSessions(t *testing.T) {
	seed := testbed.Seed(t)
	r := testbed.StartRedis(t)
	cfg := shortTTL()
	cfg.Connections.PerUser, cfg.Connections.Total, cfg.Wait = 20, 1000, cluster.Wait
	gateways := []*gateway{runGateway(t, cfg, dialRedis(t, r.Address)), runGateway(t, cfg, dialRedis(t, r.Address))}
	const workers, users = 8, 5
	var all sync.WaitGroup
	stop := make(chan struct{})
	open := make([][users][]*Conn, workers)
	for w := range workers {
		rnd := rand.New(rand.NewPCG(seed, uint64(w)))
		all.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				n := rnd.IntN(users)
				mine := &open[w][n]
				if len(*mine) > 3 || len(*mine) > 0 && rnd.IntN(2) == 0 {
					(*mine)[0].Close()
					*mine = (*mine)[1:]
					continue
				}
				addr := netip.AddrFrom4([4]byte{10, byte(w), byte(n), byte(rnd.IntN(3))})
				if conn, err := openSession(t, gateways[w%2], addr, user(t, fmt.Sprintf("user%d", n))); err == nil {
					*mine = append(*mine, conn)
				}
			}
		})
	}
	disturbRedis(t, r)
	close(stop)
	all.Wait()
	for n := range users {
		want := 0
		for w := range workers {
			want += len(open[w][n])
		}
		u, seen := user(t, fmt.Sprintf("user%d", n)), 0
		testkit.Eventually(t, fmt.Sprintf("%v to have %d sessions in Redis", u, want), func() bool {
			seen = sessionCount(t, gateways[0], u)
			return seen == want
		})
	}
	for w := range workers {
		for n := range users {
			closeAll(open[w][n])
		}
	}
	testkit.Eventually(t, "Redis to have no counts of sessions", func() bool { return r.CLI("keys", "imapgate:limit:sessions:*") == "" })
	for _, g := range gateways {
		testkit.Eventually(t, "the gateway to have no counts", func() bool { return g.CountersInUse() == 0 && g.cluster.Idle() })
	}
}

// disturbRedis injects one fault after another into Redis, with pauses between them.
func disturbRedis(t *testing.T, r *testbed.Redis) {
	t.Helper()
	for _, fault := range []func(){r.Freeze, r.Thaw, r.Kill, r.Restart, func() { r.CLI("flushall") }, r.Freeze, r.Thaw, func() { r.CLI("script", "flush") }} {
		pause(t, 300*time.Millisecond)
		fault()
	}
	pause(t, 300*time.Millisecond)
}

// pause waits for d.
func pause(t *testing.T, d time.Duration) {
	t.Helper()
	until := time.Now().Add(d)
	testkit.Eventually(t, "time to pass", func() bool { return time.Now().After(until) })
}
