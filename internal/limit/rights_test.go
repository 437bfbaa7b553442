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

	"imapgate/internal/event"
	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
)

func TestRedisNeedsNoMoreRightsThanTheManualSays(t *testing.T) {
	for name, only := range map[string]string{
		"all keys": "~imapgate:*", "routes only to read": "%R~imapgate:* ~imapgate:limit:* ~imapgate:ban:*",
	} {
		t.Run(name, func(t *testing.T) {
			r := testbed.StartRedis(t)
			r.CLI(strings.Fields(strings.Replace(manualACL(t), "~imapgate:*", only, 1))...)
			c := redis.NewUniversalClient(&redis.UniversalOptions{
				Addrs: []string{r.Address}, Username: "imapgate", Password: "PASSWORD", Protocol: 2, DisableIdentity: true,
			})
			t.Cleanup(func() { _ = c.Close() })
			everything(t, r, c)
			if log := r.CLI("acl", "log"); log != "" {
				t.Fatalf("Redis refused: %s", log)
			}
		})
	}
}

// everything asks Redis everything that a gate ever does.
func everything(t *testing.T, r *testbed.Redis, c redis.UniversalClient) {
	t.Helper()
	var away atomic.Int64
	cfg := usual()
	cfg.HeartbeatTTL = quick().HeartbeatTTL
	g := runHooked(t, cfg, c, Hooks{OnRedis: func(up bool) {
		if !up {
			away.Add(1)
		}
	}})
	alice, addr := user(t, "alice"), at("192.0.2.1")
	v, err := enter(t, g, addr, alice)
	if err != nil {
		t.Fatal(err)
	}
	following(t, g)
	if n := sessionsOf(t, g, alice); n != 1 {
		t.Fatalf("%d sessions", n)
	}
	unknown := arrive(t, g.Limiter, addr)
	for i := range 12 {
		unknown.LoginFailed(t.Context(), user(t, "bob"), secret("%d", i))
	}
	if err := unknown.BeginLogin(t.Context(), user(t, "bob")); reason(err) != event.LimitBanned {
		t.Fatalf("behind 12 failures: %v", err)
	}
	unknown.Close()
	if _, err := g.InspectAddress(t.Context(), addr); err != nil {
		t.Fatal(err)
	}
	if _, err := g.Unban(t.Context(), home(addr)); err != nil {
		t.Fatal(err)
	}
	if err := g.ResetUser(t.Context(), alice); err != nil {
		t.Fatal(err)
	}
	v.Close()
	if away.Load() != 0 {
		t.Fatal("Redis was thought to be down")
	}
	r.CLI("replicaof", "127.0.0.1", "1") // so that the gateway probes
	_ = g.Ban(t.Context(), netip.MustParsePrefix("203.0.113.0/24"), time.Hour, "")
	if v, err = enter(t, g, addr, alice); err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	testkit.Eventually(t, "Redis to be down", func() bool { return away.Load() > 0 })
	r.CLI("replicaof", "no", "one")
	testkit.Eventually(t, "Redis to be up", func() bool { return !g.cluster.IsDown() })
}

// manualACL is the user that docs/operating/redis.md gives the gateway.
func manualACL(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("../../docs/operating/redis.md")
	if err != nil {
		t.Fatal(err)
	}
	_, behind, found := strings.Cut(string(text), "\n    ACL SETUSER ")
	acl, _, ended := strings.Cut(behind, "\n\n")
	if !found || !ended {
		t.Fatal("the manual has no ACL user")
	}
	return "ACL SETUSER " + acl
}
