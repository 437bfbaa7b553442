//go:build unix

package limit

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"imapgate/internal/cluster"
	"imapgate/internal/event"
	"imapgate/internal/limit/counter"
	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
)

// observedGateway is a gateway whose reports about Redis are recorded.
type observedGateway struct {
	*gateway
	shared atomic.Int32 // imapgate_limits_cluster_connected; -1 before the first report
	log    *observer.ObservedLogs
}

func runObserved(t *testing.T, cfg Config, client redis.UniversalClient) *observedGateway {
	t.Helper()
	o := &observedGateway{}
	o.shared.Store(-1)
	core, logs := observer.New(zapcore.InfoLevel)
	o.log = logs
	g, err := New(cfg, client, Hooks{OnRedis: func(up bool) {
		o.shared.Store(0)
		if up {
			o.shared.Store(1)
		}
	}}, zap.New(core))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { g.cluster.Run(ctx); done <- nil }() // ends with ctx; waited for below
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	o.gateway = &gateway{g, cancel}
	return o
}

// awaitShared waits until all gateways report shared, 1 for up and 0 for down.
func awaitShared(t *testing.T, shared int32, gateways ...*observedGateway) {
	t.Helper()
	for i, g := range gateways {
		testkit.Eventually(t, fmt.Sprintf("gateway %d to report %d", i, shared), func() bool { return g.shared.Load() == shared })
	}
}

// hasWarned reports whether the last line of the log about limits is a warning whose error
// matches pattern.
func (o *observedGateway) hasWarned(pattern string) bool {
	all := o.log.FilterMessageSnippet("limits are ").All()
	if len(all) == 0 {
		return false
	}
	last := all[len(all)-1]
	return last.Level == zapcore.WarnLevel && regexp.MustCompile(pattern).MatchString(fmt.Sprint(last.ContextMap()["error"]))
}

// redisFault is a state of Redis in which it answers but refuses writes. inject causes it,
// repair ends it, and the errors match pattern.
type redisFault struct {
	name, pattern  string
	settings       []string
	inject, repair func(t *testing.T, r *testbed.Redis)
}

func runCLI(args ...string) func(*testing.T, *testbed.Redis) {
	return func(_ *testing.T, r *testbed.Redis) { r.CLI(args...) }
}

// saveDump makes the server save its data, and waits until that ends with status.
func saveDump(t *testing.T, r *testbed.Redis, status string) {
	t.Helper()
	testkit.Eventually(t, "a save to begin", func() bool { _, err := r.TryCLI("bgsave"); return err == nil })
	testkit.Eventually(t, "the save to end with "+status, func() bool {
		info := r.CLI("info", "persistence")
		return strings.Contains(info, "rdb_bgsave_in_progress:0") && strings.Contains(info, "rdb_last_bgsave_status:"+status)
	})
}

// dumpPath returns the file in which the server saves its data, in a folder of the test.
func dumpPath(r *testbed.Redis) string {
	return filepath.Join(r.Dir(), "dump.rdb")
}

var redisFaults = []redisFault{
	{"replica", "READONLY", nil, runCLI("replicaof", "127.0.0.1", "1"), runCLI("replicaof", "no", "one")},
	{"full", "OOM", nil, runCLI("config", "set", "maxmemory", "1"), runCLI("config", "set", "maxmemory", "0")},
	{"without replicas", "NOREPLICAS", nil, runCLI("config", "set", "min-replicas-to-write", "1"), runCLI("config", "set", "min-replicas-to-write", "0")},
	{"without permissions", "can't run this command|no permissions to run the 'hset' command", nil, runCLI("acl", "setuser", "default", "-hset"), runCLI("acl", "setuser", "default", "+hset")},
	{"without permissions for bans", "NOPERM", nil,
		runCLI("acl", "setuser", "default", "resetkeys", "~imapgate:limit:*", "%R~imapgate:ban:*"), runCLI("acl", "setuser", "default", "allkeys")},
	{"cannot save", "MISCONF", []string{"--save", "3600 1"}, func(t *testing.T, r *testbed.Redis) {
		if err := os.Mkdir(dumpPath(r), 0o700); err != nil {
			t.Fatal(err)
		}
		saveDump(t, r, "err")
	}, func(t *testing.T, r *testbed.Redis) {
		if err := os.Remove(dumpPath(r)); err != nil {
			t.Fatal(err)
		}
		saveDump(t, r, "ok")
	}},
}

// All reads succeed meanwhile, among them those of bans twice a second.
func TestLimitsAreLocalWhileRedisRefusesWrites(t *testing.T) {
	for _, fault := range redisFaults {
		t.Run(fault.name, func(t *testing.T) {
			t.Parallel()
			r := testbed.StartRedis(t, fault.settings...)
			cfg := shortTTL()
			cfg.Connections.Total = 4
			one, two := runObserved(t, cfg, dialRedis(t, r.Address)), runObserved(t, cfg, dialRedis(t, r.Address))
			awaitShared(t, 1, one, two)
			for _, g := range []*observedGateway{one, two} {
				testkit.Eventually(t, "each gateway to know of the other", func() bool { return g.cluster.Gateways() == 2 })
			}
			fault.inject(t, r)
			for i, g := range []*observedGateway{one, two} {
				if strings.Contains(fault.name, "bans") { // only writes of bans fail
					_ = g.Ban(t.Context(), netip.MustParsePrefix("203.0.113.0/24"), time.Hour, "")
				} else if conn, err := openSession(t, g.gateway, ip("192.0.2.1"), user(t, fmt.Sprint("first", i))); err != nil {
					t.Fatal(err)
				} else {
					conn.Close()
				}
			}
			awaitShared(t, 0, one, two)
			for _, g := range []*observedGateway{one, two} {
				if !g.hasWarned(fault.pattern) {
					t.Errorf("the log has no warning with %s: %v", fault.pattern, g.log.All())
				}
			}
			var conns []*Conn
			for i, g := range []*observedGateway{one, two} {
				conns = append(conns, g.fillTotal(t, byte(i), 2)...)
			}
			fault.repair(t, r)
			awaitShared(t, 1, one, two)
			testkit.Eventually(t, "all sessions to be counted together", func() bool {
				n, err := one.cluster.Sessions(t.Context(), counter.Key{Scope: counter.AllSessions})
				return err == nil && n == 4
			})
			for i, g := range []*observedGateway{one, two} {
				g.fillTotal(t, 100+byte(i), 0)
			}
			closeAll(conns)
		})
	}
}

// fillTotal opens sessions of different users until the total limit refuses one, which must
// happen after n of them.
func (o *observedGateway) fillTotal(t *testing.T, net byte, n int) (conns []*Conn) {
	t.Helper()
	for i := range byte(10) {
		conn, err := openSession(t, o.gateway, netip.AddrFrom4([4]byte{10, 0, net, i}), user(t, fmt.Sprintf("user-%d-%d", net, i)))
		if reason(err) == event.LimitTotal {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, conn)
	}
	if len(conns) != n {
		t.Errorf("%d sessions were admitted, want %d", len(conns), n)
	}
	return conns
}

// Some hash slots of the cluster have no node. Most writes succeed.
func TestLimitsAreLocalWhilePartOfAClusterIsDown(t *testing.T) {
	c := testbed.StartRedisCluster(t)
	for _, n := range c.Nodes {
		n.CLI("config", "set", "cluster-require-full-coverage", "no")
	}
	one, two := runObserved(t, shortTTL(), dialRedis(t, c.Addresses...)), runObserved(t, shortTTL(), dialRedis(t, c.Addresses...))
	awaitShared(t, 1, one, two)
	alice := user(t, "alice")
	key := "imapgate:limit:sessions:user:" + alice.String()
	slot, node := c.Nodes[1].CLI("cluster", "keyslot", key), c.PrimaryOf(key)
	for _, n := range c.Nodes[:3] {
		n.CLI("cluster", "delslots", slot)
	}
	for i, g := range []*observedGateway{one, two} {
		if _, err := openSession(t, g.gateway, netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), alice); err != nil {
			t.Fatal(err)
		}
	}
	awaitShared(t, 0, one, two)
	for i := range byte(20) { // users whose hash slots are served
		for _, g := range []*observedGateway{one, two} {
			if _, err := openSession(t, g.gateway, netip.AddrFrom4([4]byte{10, 1, 0, i}), user(t, fmt.Sprint("user", i))); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, g := range []*observedGateway{one, two} {
		if g.shared.Load() != 0 || !g.hasWarned("CLUSTERDOWN") {
			t.Errorf("limits are reported as shared: %v", g.log.All())
		}
	}
	node.CLI("cluster", "addslots", slot)
	awaitShared(t, 1, one, two)
	testkit.Eventually(t, "the user's sessions to be counted together", func() bool { return sessionCount(t, one.gateway, alice) == 2 })
}

// stall is a hook that answers no pipeline whose context has it as a value.
type stall struct{}

func (stall) DialHook(next redis.DialHook) redis.DialHook { return next }

func (stall) ProcessHook(next redis.ProcessHook) redis.ProcessHook { return next }

func (s stall) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, commands []redis.Cmder) error {
		if ctx.Value(s) == nil {
			return next(ctx, commands)
		}
		<-ctx.Done()
		for _, command := range commands {
			command.SetErr(ctx.Err())
		}
		return ctx.Err()
	}
}

// Clients choose when they log in, so they could end the sharing of limits if their own
// deadlines counted as failures of Redis.
func TestAClientsDeadlineIsNoFailureOfRedis(t *testing.T) {
	t.Parallel()
	client := dialRedis(t, testbed.StartRedis(t).Address)
	client.AddHook(stall{})
	g := runGateway(t, shortTTL(), client)
	request := func(cause error) {
		for range 10 {
			ctx, cancel := context.WithTimeoutCause(context.WithValue(t.Context(), stall{}, true), time.Millisecond, cause)
			if _, err := g.cluster.Sessions(ctx, counter.Key{Scope: counter.AllSessions}); err == nil {
				t.Fatal("a stalled Redis has answered")
			}
			cancel()
		}
	}
	if request(nil); g.cluster.IsDown() {
		t.Error("deadlines of clients have ended the sharing of limits")
	}
	if request(cluster.ErrBudgetSpent); !g.cluster.IsDown() {
		t.Error("limits are shared although no request is answered in time")
	}
}
