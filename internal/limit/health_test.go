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

// watched is a gateway whose word on sharing is listened to.
type watched struct {
	*gateway
	shared atomic.Int32 // imapgate_limits_cluster_connected; -1 before the first word
	log    *observer.ObservedLogs
}

func runWatched(t *testing.T, cfg Config, client redis.UniversalClient) *watched {
	t.Helper()
	w := &watched{}
	w.shared.Store(-1)
	core, logs := observer.New(zapcore.InfoLevel)
	w.log = logs
	g, err := New(cfg, client, Hooks{OnRedis: func(up bool) {
		w.shared.Store(0)
		if up {
			w.shared.Store(1)
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
	w.gateway = &gateway{g, cancel}
	return w
}

// want waits until all gateways say that limits are shared, or are not.
func want(t *testing.T, shared int32, gates ...*watched) {
	t.Helper()
	for i, g := range gates {
		testkit.Eventually(t, fmt.Sprintf("gateway %d to say %d", i, shared), func() bool { return g.shared.Load() == shared })
	}
}

// saysWhy reports whether the last words of the log are a warning with Redis's own.
func (w *watched) saysWhy(words string) bool {
	all := w.log.FilterMessageSnippet("limits are ").All()
	if len(all) == 0 {
		return false
	}
	last := all[len(all)-1]
	return last.Level == zapcore.WarnLevel && regexp.MustCompile(words).MatchString(fmt.Sprint(last.ContextMap()["error"]))
}

// sick is how a Redis comes to refuse what is written, while it answers.
type sick struct {
	name, words string
	settings    []string
	harm, cure  func(t *testing.T, r *testbed.Redis)
}

func set(args ...string) func(*testing.T, *testbed.Redis) {
	return func(_ *testing.T, r *testbed.Redis) { r.CLI(args...) }
}

// saves has the server save what it knows, and waits until that has ended in a way.
func saves(t *testing.T, r *testbed.Redis, how string) {
	t.Helper()
	testkit.Eventually(t, "a save to begin", func() bool { _, err := r.TryCLI("bgsave"); return err == nil })
	testkit.Eventually(t, "the save to be "+how, func() bool {
		info := r.CLI("info", "persistence")
		return strings.Contains(info, "rdb_bgsave_in_progress:0") && strings.Contains(info, "rdb_last_bgsave_status:"+how)
	})
}

// dumpOf is the path at which the server saves; it is in a folder of the test's.
func dumpOf(r *testbed.Redis) string {
	return filepath.Join(r.Dir(), "dump.rdb")
}

var sicknesses = []sick{
	{"replica", "READONLY", nil, set("replicaof", "127.0.0.1", "1"), set("replicaof", "no", "one")},
	{"full", "OOM", nil, set("config", "set", "maxmemory", "1"), set("config", "set", "maxmemory", "0")},
	{"without replicas", "NOREPLICAS", nil, set("config", "set", "min-replicas-to-write", "1"), set("config", "set", "min-replicas-to-write", "0")},
	{"without rights", "can't run this command|no permissions to run the 'hset' command", nil, set("acl", "setuser", "default", "-hset"), set("acl", "setuser", "default", "+hset")},
	{"without rights for the bans", "NOPERM", nil,
		set("acl", "setuser", "default", "resetkeys", "~imapgate:limit:*", "%R~imapgate:ban:*"), set("acl", "setuser", "default", "allkeys")},
	{"cannot save", "MISCONF", []string{"--save", "3600 1"}, func(t *testing.T, r *testbed.Redis) {
		if err := os.Mkdir(dumpOf(r), 0o700); err != nil {
			t.Fatal(err)
		}
		saves(t, r, "err")
	}, func(t *testing.T, r *testbed.Redis) {
		if err := os.Remove(dumpOf(r)); err != nil {
			t.Fatal(err)
		}
		saves(t, r, "ok")
	}},
}

// Everything that is read succeeds all the while, of bans twice a second.
func TestARedisThatRefusesWritesIsNotShared(t *testing.T) {
	for _, s := range sicknesses {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			r := testbed.StartRedis(t, s.settings...)
			cfg := quick()
			cfg.Connections.Total = 4
			one, two := runWatched(t, cfg, dial(t, r.Address)), runWatched(t, cfg, dial(t, r.Address))
			want(t, 1, one, two)
			for _, g := range []*watched{one, two} {
				testkit.Eventually(t, "them to know of each other", func() bool { return g.alive() == 2 })
			}
			s.harm(t, r)
			for i, g := range []*watched{one, two} {
				if strings.Contains(s.name, "bans") { // which are all that is written there
					_ = g.Ban(t.Context(), netip.MustParsePrefix("203.0.113.0/24"), time.Hour, "")
				} else if v, err := enter(t, g.gateway, at("192.0.2.1"), user(t, fmt.Sprint("first", i))); err != nil {
					t.Fatal(err)
				} else {
					v.Close()
				}
			}
			want(t, 0, one, two)
			for _, g := range []*watched{one, two} {
				if !g.saysWhy(s.words) {
					t.Errorf("the log does not say %s: %v", s.words, g.log.All())
				}
			}
			var in []*Conn
			for i, g := range []*watched{one, two} {
				in = append(in, g.fill(t, byte(i), 2)...)
			}
			s.cure(t, r)
			want(t, 1, one, two)
			testkit.Eventually(t, "all sessions to be counted together", func() bool {
				n, err := one.cluster.Sessions(t.Context(), counter.Key{Scope: counter.AllSessions})
				return err == nil && n == 4
			})
			for i, g := range []*watched{one, two} {
				g.fill(t, 100+byte(i), 0)
			}
			leaveAll(in)
		})
	}
}

// alive is how many gateways there are, as this one knows.
func (w *watched) alive() int { return w.cluster.Gateways() }

// fill has users come in until one is refused, who must be the one behind n.
func (w *watched) fill(t *testing.T, net byte, n int) (in []*Conn) {
	t.Helper()
	for i := range byte(10) {
		v, err := enter(t, w.gateway, netip.AddrFrom4([4]byte{10, 0, net, i}), user(t, fmt.Sprintf("user-%d-%d", net, i)))
		if reason(err) == event.LimitTotal {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		in = append(in, v)
	}
	if len(in) != n {
		t.Errorf("%d came in, want %d", len(in), n)
	}
	return in
}

// A part of the slots has no server. Most writes succeed.
func TestAClusterOfWhichAPartIsDownIsNotShared(t *testing.T) {
	c := testbed.StartRedisCluster(t)
	for _, n := range c.Nodes {
		n.CLI("config", "set", "cluster-require-full-coverage", "no")
	}
	one, two := runWatched(t, quick(), dial(t, c.Addresses...)), runWatched(t, quick(), dial(t, c.Addresses...))
	want(t, 1, one, two)
	alice := user(t, "alice")
	key := "imapgate:limit:sessions:user:" + alice.String()
	slot, node := c.Nodes[1].CLI("cluster", "keyslot", key), c.PrimaryOf(key)
	for _, n := range c.Nodes[:3] {
		n.CLI("cluster", "delslots", slot)
	}
	for i, g := range []*watched{one, two} {
		if _, err := enter(t, g.gateway, netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), alice); err != nil {
			t.Fatal(err)
		}
	}
	want(t, 0, one, two)
	for i := range byte(20) { // others, whose places are all where they were
		for _, g := range []*watched{one, two} {
			if _, err := enter(t, g.gateway, netip.AddrFrom4([4]byte{10, 1, 0, i}), user(t, fmt.Sprint("user", i))); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, g := range []*watched{one, two} {
		if g.shared.Load() != 0 || !g.saysWhy("CLUSTERDOWN") {
			t.Errorf("limits are said to be shared: %v", g.log.All())
		}
	}
	node.CLI("cluster", "addslots", slot)
	want(t, 1, one, two)
	testkit.Eventually(t, "the user's sessions to be counted together", func() bool { return sessionsOf(t, one.gateway, alice) == 2 })
}

// stall is a hook that answers no question whose context has it as a value.
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
func TestTheDeadlineOfAClientIsNoFailureOfRedis(t *testing.T) {
	t.Parallel()
	client := dial(t, testbed.StartRedis(t).Address)
	client.AddHook(stall{})
	g := runGate(t, quick(), client)
	ask := func(cause error) {
		for range 10 {
			ctx, cancel := context.WithTimeoutCause(context.WithValue(t.Context(), stall{}, true), time.Millisecond, cause)
			if _, err := g.cluster.Sessions(ctx, counter.Key{Scope: counter.AllSessions}); err == nil {
				t.Fatal("a stalled Redis has answered")
			}
			cancel()
		}
	}
	if ask(nil); g.cluster.IsDown() {
		t.Error("deadlines of clients have ended the sharing of limits")
	}
	if ask(cluster.ErrBudgetSpent); !g.cluster.IsDown() {
		t.Error("a Redis that lets all logins wait for too long is shared")
	}
}
