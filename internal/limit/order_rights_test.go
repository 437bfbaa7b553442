//go:build unix

package limit

import (
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"

	"imapgate/internal/testbed"
)

// An order that Redis would refuse half way is not begun.
func TestAnOrderThatIsRefusedHasChangedNothing(t *testing.T) {
	t.Parallel()
	r := testbed.StartRedis(t)
	full := strings.Fields(manualACL(t))
	dial := func() redis.UniversalClient {
		c := redis.NewUniversalClient(&redis.UniversalOptions{
			Addrs: []string{r.Address}, Username: "imapgate", Password: "PASSWORD", Protocol: 2, DisableIdentity: true,
		})
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	gate := func() *Limiter {
		g, err := New(usual(), dial(), Hooks{}, zap.NewNop())
		if err != nil {
			t.Fatal(err)
		}
		return g
	}
	net := home(at("192.0.2.7"))
	state := func() string {
		return r.CLI("EVAL", `local s = {}
for _, k in ipairs(redis.call('KEYS', '*')) do s[#s+1] = k .. '=' .. redis.sha1hex(redis.call('DUMP', k)) end
table.sort(s)
return table.concat(s, '\n')`, "0")
	}
	orders := map[string]func(*Limiter) error{
		"ban":     func(g *Limiter) error { return g.Ban(t.Context(), home(at("192.0.2.9")), time.Hour, "") },
		"unban":   func(g *Limiter) error { _, err := g.Unban(t.Context(), net); return err },
		"forgive": func(g *Limiter) error { return g.ResetUser(t.Context(), user(t, "alice")) },
	}
	needed := 0
	for name, order := range orders {
		for _, command := range []string{"evalsha", "eval", "hset", "hdel", "zadd", "zrem", "xadd", "incr", "del", "hscan", "time"} {
			r.CLI("FLUSHALL")
			r.CLI("SCRIPT", "FLUSH")
			r.CLI(full...)
			g := gate()
			if err := g.Ban(t.Context(), net, time.Hour, "before"); err != nil {
				t.Fatal(err)
			}
			for _, key := range []string{"imapgate:limit:failed:net:192.0.2.7/32", "imapgate:limit:failed:user:alice@example.org"} {
				r.CLI("HSET", key, "a", "1 3 0")
			}
			before := state()
			r.CLI("ACL", "SETUSER", "imapgate", "-"+command)
			err := order(gate())
			if err == nil {
				continue // it needs another
			}
			needed++
			if after := state(); after != before {
				t.Errorf("%s without %s: %v, and yet\n%s\nbecame\n%s", name, command, err, before, after)
			}
		}
	}
	if needed < 15 {
		t.Errorf("only %d orders were refused", needed)
	}
}

func TestAnOrderWithoutAnAnswerMayHaveBeenDone(t *testing.T) {
	t.Parallel()
	r := testbed.StartRedis(t)
	c := redis.NewUniversalClient(&redis.UniversalOptions{Addrs: []string{r.Address}, Protocol: 2, DisableIdentity: true,
		DialTimeout: time.Second, ReadTimeout: time.Second, MaxRetries: 1, DialerRetries: 1})
	t.Cleanup(func() { _ = c.Close() })
	g, err := New(usual(), c, Hooks{}, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	r.Freeze()
	err = g.ResetUser(t.Context(), user(t, "alice"))
	if err == nil || !strings.Contains(err.Error(), "may have been done") {
		t.Errorf("%v", err)
	}
}
