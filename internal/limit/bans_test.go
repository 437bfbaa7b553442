package limit

import (
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"imapgate/internal/event"
	"imapgate/internal/identity"
	"imapgate/internal/testbed"
)

func TestUnbanRemovesTheBansOfNetworksAroundToo(t *testing.T) {
	l := newLimiter(t, noConnLimits(), nil)
	for _, net := range []string{"192.0.2.1/32", "192.0.2.0/24", "192.0.3.0/24", "2001:db8::/48"} {
		if err := l.Ban(t.Context(), netip.MustParsePrefix(net), time.Hour, "by hand"); err != nil {
			t.Fatal(err)
		}
	}
	ended, err := l.Unban(t.Context(), netip.MustParsePrefix("192.0.2.1/32"))
	if err != nil || len(ended) != 2 {
		t.Fatalf("Unban ended %v: %v", ended, err)
	}
	if _, ok := l.bans.Find(ip("192.0.2.1")); ok {
		t.Fatal("the address is still banned")
	}
	if left, _ := l.Bans(t.Context()); len(left) != 2 {
		t.Fatalf("the bans left are %v", left)
	}
}

func TestUnbanReportsWhetherThereWasABan(t *testing.T) {
	r := testbed.StartRedis(t)
	for name, client := range map[string]redis.UniversalClient{"alone": nil, "with Redis": dialRedis(t, r.Address)} {
		t.Run(name, func(t *testing.T) {
			requests := make(chan BanRequest, 16) // more than there are
			l := runWithHooks(t, shortTTL(), client, Hooks{OnBanRequest: func(r BanRequest) { requests <- r }}).Limiter
			operator := l
			if client != nil {
				operator = newLimiter(t, shortTTL(), client) // it does not run
				awaitSharedBans(t, &gateway{l, nil})
			}
			one, other := netip.MustParsePrefix("192.0.2.1/32"), netip.MustParsePrefix("192.0.3.1/32")
			for _, net := range []netip.Prefix{one, other} {
				if err := operator.Ban(t.Context(), net, time.Hour, "by hand"); err != nil {
					t.Fatal(err)
				}
				expectBanRequest(t, requests, BanRequest{Net: net, Duration: time.Hour, Note: "by hand"})
			}
			for range 2 {
				if _, err := operator.Unban(t.Context(), netip.MustParsePrefix("192.0.2.0/24")); err != nil {
					t.Fatal(err)
				}
			}
			expectBanRequest(t, requests, BanRequest{Net: one})
			if _, err := l.Unban(t.Context(), other); err != nil {
				t.Fatal(err)
			}
			expectBanRequest(t, requests, BanRequest{Net: other}) // no request for one in between
		})
	}
}

// expectBanRequest waits for the next request that is not about markerNet, which must be want.
func expectBanRequest(t *testing.T, requests <-chan BanRequest, want BanRequest) {
	t.Helper()
	for {
		select {
		case got := <-requests:
			if got.Net == markerNet {
				continue
			}
			if got.Net != want.Net || got.Note != want.Note || !isAbout(got.Duration, want.Duration) {
				t.Fatalf("request %+v, want %+v", got, want)
			}
			return
		case <-time.After(timeout):
			t.Fatalf("no request, want %+v", want)
		}
	}
}

// A million addresses and users have one failure each. The gateway may keep only what its
// bounded tables hold, and must keep all bans. `make memory` runs it.
func TestMemoryOfAMillionFailuresIsBounded(t *testing.T) {
	if os.Getenv("IMAPGATE_SOAK") != "1" {
		t.Skip("IMAPGATE_SOAK is not set to 1")
	}
	cfg := defaultConfig()
	cfg.Failures.Delay = 0 // without delays
	l := newLimiter(t, cfg, nil)
	banned := []netip.Prefix{netip.MustParsePrefix("192.0.2.1/32"), netip.MustParsePrefix("2a00::/64")}
	for _, net := range banned {
		l.ban(t.Context(), net, event.BanFailures)
	}
	alloc, sys := memory()
	for i := range 1_000_000 {
		addr := netip.AddrFrom16([16]byte{0x20, 1, byte(i >> 16), byte(i >> 8), byte(i), 0, 0, byte(i), 15: 1})
		conn, err := l.Open("imaps", addr)
		if err != nil {
			t.Fatal(err)
		}
		conn.LoginFailed(t.Context(), user(t, "user"+digits(i)), identity.NewSecret("Summer2024"))
		conn.Close()
	}
	alloc2, sys2 := memory()
	grown, process := (alloc2-alloc)>>20, (sys2-sys)>>20
	t.Logf("after a million failures the heap has %d MB more, the process %d MB", grown, process)
	if grown > 64 || process > 64 {
		t.Errorf("more than 64 MB")
	}
	for _, net := range banned {
		if _, ok := l.bans.Find(net.Addr()); !ok {
			t.Errorf("%v is no longer banned", net)
		}
	}
	runtime.KeepAlive(l)
}

func digits(i int) string {
	var b [7]byte
	for k := range b {
		b[len(b)-1-k] = byte('0' + i%10)
		i /= 10
	}
	return string(b[:])
}

// memory returns the bytes that are live in the heap, and the resident bytes of the process.
func memory() (live, resident int64) {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	resident = int64(m.Sys - m.HeapReleased)
	if statm, err := os.ReadFile("/proc/self/statm"); err == nil {
		if f := strings.Fields(string(statm)); len(f) > 1 {
			if pages, err := strconv.ParseInt(f[1], 10, 64); err == nil {
				resident = pages * int64(os.Getpagesize())
			}
		}
	}
	return int64(m.HeapAlloc), resident
}
