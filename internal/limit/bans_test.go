package limit

import (
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"imapgate/internal/event"
	"imapgate/internal/identity"
	"imapgate/internal/testbed"
)

func TestUnbanLiftsEverythingAround(t *testing.T) {
	g := newGate(t, wide(), nil)
	for _, net := range []string{"192.0.2.1/32", "192.0.2.0/24", "192.0.3.0/24", "2001:db8::/48"} {
		if err := g.Ban(t.Context(), netip.MustParsePrefix(net), time.Hour, "by hand"); err != nil {
			t.Fatal(err)
		}
	}
	lifted, err := g.Unban(t.Context(), netip.MustParsePrefix("192.0.2.1/32"))
	if err != nil || len(lifted) != 2 {
		t.Fatalf("lifted %v: %v", lifted, err)
	}
	if _, ok := g.bans.Find(at("192.0.2.1")); ok {
		t.Fatal("it is banned still")
	}
	if left, _ := g.Bans(t.Context()); len(left) != 2 {
		t.Fatalf("left are %v", left)
	}
}

func TestOnlyABanThatWasThereIsRemoved(t *testing.T) {
	r := testbed.StartRedis(t)
	for name, client := range map[string]redis.UniversalClient{"alone": nil, "with Redis": dial(t, r.Address)} {
		t.Run(name, func(t *testing.T) {
			orders := make(chan BanRequest, 16) // more than there are
			g := runHooked(t, quick(), client, Hooks{OnBanRequest: func(o BanRequest) { orders <- o }}).Limiter
			operator := g
			if client != nil {
				operator = newGate(t, quick(), client) // which runs nowhere
				following(t, &gateway{g, nil})
			}
			one, other := netip.MustParsePrefix("192.0.2.1/32"), netip.MustParsePrefix("192.0.3.1/32")
			for _, net := range []netip.Prefix{one, other} {
				if err := operator.Ban(t.Context(), net, time.Hour, "by hand"); err != nil {
					t.Fatal(err)
				}
				expectOrder(t, orders, BanRequest{Net: net, Duration: time.Hour, Note: "by hand"})
			}
			for range 2 {
				if _, err := operator.Unban(t.Context(), netip.MustParsePrefix("192.0.2.0/24")); err != nil {
					t.Fatal(err)
				}
			}
			expectOrder(t, orders, BanRequest{Net: one})
			if _, err := g.Unban(t.Context(), other); err != nil {
				t.Fatal(err)
			}
			expectOrder(t, orders, BanRequest{Net: other}) // and nothing between them
		})
	}
}

// expectOrder waits for the next order that is not of the probe of following, about the
// one wanted.
func expectOrder(t *testing.T, orders <-chan BanRequest, want BanRequest) {
	t.Helper()
	for {
		select {
		case o := <-orders:
			if o.Net == probe {
				continue
			}
			if o.Net != want.Net || o.Note != want.Note || !within(o.Duration, want.Duration) {
				t.Fatalf("told %+v, not %+v", o, want)
			}
			return
		case <-time.After(patienceOf):
			t.Fatalf("nothing is told, not %+v", want)
		}
	}
}

// A million addresses and users, one failure each: nothing of it may stay but
// what the tables hold, and bans are none of them. `make memory` runs it.
func TestMillionFailuresFit(t *testing.T) {
	if os.Getenv("IMAPGATE_SOAK") != "1" {
		t.Skip("IMAPGATE_SOAK is not set to 1")
	}
	cfg := usual()
	cfg.Failures.Delay = 0 // no login waits
	g := newGate(t, cfg, nil)
	banned := []netip.Prefix{netip.MustParsePrefix("192.0.2.1/32"), netip.MustParsePrefix("2a00::/64")}
	for _, net := range banned {
		g.ban(t.Context(), net, event.BanFailures)
	}
	alloc, sys := memory()
	for i := range 1_000_000 {
		addr := netip.AddrFrom16([16]byte{0x20, 1, byte(i >> 16), byte(i >> 8), byte(i), 0, 0, byte(i), 15: 1})
		v, err := g.Open("imaps", addr)
		if err != nil {
			t.Fatal(err)
		}
		v.LoginFailed(t.Context(), user(t, "user"+digits(i)), identity.NewSecret("Summer2024"))
		v.Close()
	}
	alloc2, sys2 := memory()
	grown, process := (alloc2-alloc)>>20, (sys2-sys)>>20
	t.Logf("a million failures: %d MB are live, the process has %d MB more", grown, process)
	if grown > 64 || process > 64 {
		t.Errorf("more than 64 MB")
	}
	for _, net := range banned {
		if _, ok := g.bans.Find(net.Addr()); !ok {
			t.Errorf("%v is banned no more", net)
		}
	}
	runtime.KeepAlive(g)
}

func digits(i int) string {
	var b [7]byte
	for k := range b {
		b[len(b)-1-k] = byte('0' + i%10)
		i /= 10
	}
	return string(b[:])
}
