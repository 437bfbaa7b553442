//go:build unix

package limit

import (
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"

	"imapgate/internal/event"
	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
)

func TestDocumentedRedisPermissionsSuffice(t *testing.T) {
	for name, only := range map[string]string{
		"all keys": "~imapgate:*", "read-only routes": "%R~imapgate:* ~imapgate:limit:* ~imapgate:ban:*",
	} {
		t.Run(name, func(t *testing.T) {
			r := testbed.StartRedis(t)
			r.CLI(strings.Fields(strings.Replace(documentedACL(t), "~imapgate:*", only, 1))...)
			c := redis.NewUniversalClient(&redis.UniversalOptions{
				Addrs: []string{r.Address}, Username: "imapgate", Password: "PASSWORD", Protocol: 2, DisableIdentity: true,
			})
			t.Cleanup(func() { _ = c.Close() })
			sendEveryCommand(t, r, c)
			if log := r.CLI("acl", "log"); log != "" {
				t.Fatalf("Redis refused: %s", log)
			}
		})
	}
}

// sendEveryCommand makes a gateway send every command to Redis that it ever sends.
func sendEveryCommand(t *testing.T, r *testbed.Redis, c redis.UniversalClient) {
	t.Helper()
	var outages atomic.Int64
	cfg := defaultConfig()
	cfg.HeartbeatTTL = shortTTL().HeartbeatTTL
	g := runWithHooks(t, cfg, c, Hooks{OnRedis: func(up bool) {
		if !up {
			outages.Add(1)
		}
	}})
	alice, addr := user(t, "alice"), ip("192.0.2.1")
	conn, err := openSession(t, g, addr, alice)
	if err != nil {
		t.Fatal(err)
	}
	awaitSharedBans(t, g)
	if n := sessionCount(t, g, alice); n != 1 {
		t.Fatalf("%d sessions", n)
	}
	unknown := openConn(t, g.Limiter, addr)
	for i := range 12 {
		unknown.LoginFailed(t.Context(), user(t, "bob"), secret("%d", i))
	}
	if err := unknown.BeginLogin(t.Context(), user(t, "bob")); reason(err) != event.LimitBanned {
		t.Fatalf("after 12 failures: %v", err)
	}
	unknown.Close()
	if _, err := g.InspectAddress(t.Context(), addr); err != nil {
		t.Fatal(err)
	}
	if _, err := g.Unban(t.Context(), addrPrefix(addr)); err != nil {
		t.Fatal(err)
	}
	if err := g.ResetUser(t.Context(), alice); err != nil {
		t.Fatal(err)
	}
	conn.Close()
	if outages.Load() != 0 {
		t.Fatal("Redis was reported as down")
	}
	r.CLI("replicaof", "127.0.0.1", "1") // so that the gateway sends probes
	_ = g.Ban(t.Context(), netip.MustParsePrefix("203.0.113.0/24"), time.Hour, "")
	if conn, err = openSession(t, g, addr, alice); err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	testkit.Eventually(t, "Redis to be down", func() bool { return outages.Load() > 0 })
	r.CLI("replicaof", "no", "one")
	testkit.Eventually(t, "Redis to be up", func() bool { return !g.cluster.IsDown() })
}

// documentedACL returns the ACL command of docs/operating/redis.md for the gateway's user.
func documentedACL(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("../../docs/operating/redis.md")
	if err != nil {
		t.Fatal(err)
	}
	_, after, found := strings.Cut(string(text), "\n    ACL SETUSER ")
	acl, _, ended := strings.Cut(after, "\n\n")
	if !found || !ended {
		t.Fatal("docs/operating/redis.md has no ACL SETUSER")
	}
	return "ACL SETUSER " + acl
}

// A request that Redis would refuse half way is not begun.
func TestARefusedOperationChangesNothing(t *testing.T) {
	t.Parallel()
	r := testbed.StartRedis(t)
	full := strings.Fields(documentedACL(t))
	dial := func() redis.UniversalClient {
		c := redis.NewUniversalClient(&redis.UniversalOptions{
			Addrs: []string{r.Address}, Username: "imapgate", Password: "PASSWORD", Protocol: 2, DisableIdentity: true,
		})
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	newLimiter := func() *Limiter {
		l, err := New(defaultConfig(), dial(), Hooks{}, zap.NewNop())
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	net := addrPrefix(ip("192.0.2.7"))
	state := func() string {
		return r.CLI("EVAL", `local s = {}
for _, k in ipairs(redis.call('KEYS', '*')) do s[#s+1] = k .. '=' .. redis.sha1hex(redis.call('DUMP', k)) end
table.sort(s)
return table.concat(s, '\n')`, "0")
	}
	operations := map[string]func(*Limiter) error{
		"ban":   func(l *Limiter) error { return l.Ban(t.Context(), addrPrefix(ip("192.0.2.9")), time.Hour, "") },
		"unban": func(l *Limiter) error { _, err := l.Unban(t.Context(), net); return err },
		"reset": func(l *Limiter) error { return l.ResetUser(t.Context(), user(t, "alice")) },
	}
	needed := 0
	for name, operation := range operations {
		for _, command := range []string{"evalsha", "eval", "hset", "hdel", "zadd", "zrem", "xadd", "incr", "del", "hscan", "time"} {
			r.CLI("FLUSHALL")
			r.CLI("SCRIPT", "FLUSH")
			r.CLI(full...)
			l := newLimiter()
			if err := l.Ban(t.Context(), net, time.Hour, "before"); err != nil {
				t.Fatal(err)
			}
			for _, key := range []string{"imapgate:limit:failed:net:192.0.2.7/32", "imapgate:limit:failed:user:alice@example.org"} {
				r.CLI("HSET", key, "a", "1 3 0")
			}
			before := state()
			r.CLI("ACL", "SETUSER", "imapgate", "-"+command)
			err := operation(newLimiter())
			if err == nil {
				continue // the operation does not need this command
			}
			needed++
			if after := state(); after != before {
				t.Errorf("%s without %s: %v, but\n%s\nbecame\n%s", name, command, err, before, after)
			}
		}
	}
	if needed < 15 {
		t.Errorf("only %d operations were refused", needed)
	}
}

func TestAnOperationWithoutAnAnswerMayHaveBeenDone(t *testing.T) {
	t.Parallel()
	r := testbed.StartRedis(t)
	c := redis.NewUniversalClient(&redis.UniversalOptions{Addrs: []string{r.Address}, Protocol: 2, DisableIdentity: true,
		DialTimeout: time.Second, ReadTimeout: time.Second, MaxRetries: 1, DialerRetries: 1})
	t.Cleanup(func() { _ = c.Close() })
	g, err := New(defaultConfig(), c, Hooks{}, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	r.Freeze()
	err = g.ResetUser(t.Context(), user(t, "alice"))
	if err == nil || !strings.Contains(err.Error(), "may have been done") {
		t.Errorf("%v", err)
	}
}
