//go:build unix

package limit

import (
	"net/netip"
	"testing"
	"time"

	"imapgate/internal/event"
	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
)

func TestBanWithoutRedisIsWrittenLater(t *testing.T) {
	r := testbed.StartRedis(t)
	reports := make(chan bool, 100)
	one := runWithHooks(t, shortTTL(), dialRedis(t, r.Address), Hooks{OnRedis: func(up bool) { reports <- up }})
	two := runGateway(t, shortTTL(), dialRedis(t, r.Address))
	awaitSharedBans(t, one, two)
	if up := <-reports; !up || len(reports) > 0 {
		t.Fatal("Redis was not reported as up exactly once")
	}
	r.Kill()
	conn := openConn(t, one.Limiter, ip("192.0.2.1"))
	for i := range 10 {
		conn.LoginFailed(t.Context(), user(t, "alice"), secret("%d", i))
	}
	conn.Close()
	r.Restart()
	testkit.Eventually(t, "the other gateway to have the ban", func() bool { _, ok := two.bans.Find(ip("192.0.2.1")); return ok })
}

func TestABanAppliesAtAllGatewaysWithinASecond(t *testing.T) {
	r := testbed.StartRedis(t)
	one, two := runGateway(t, shortTTL(), dialRedis(t, r.Address)), runGateway(t, shortTTL(), dialRedis(t, r.Address))
	addr := ip("192.0.2.1")
	awaitSharedBans(t, one, two)
	for i := range 5 { // five at each gateway
		for _, g := range []*gateway{one, two} {
			if conn, err := g.Open("imaps", addr); err == nil {
				conn.LoginFailed(t.Context(), user(t, "alice"), secret("%d %p", i, g))
				conn.Close()
			}
		}
	}
	testkit.Eventually(t, "the ban to apply at both gateways", func() bool {
		_, err1 := one.Open("imaps", addr)
		_, err2 := two.Open("imaps", addr)
		return reason(err1) == event.LimitBanned && reason(err2) == event.LimitBanned
	})
	third := runGateway(t, shortTTL(), dialRedis(t, r.Address))
	testkit.Eventually(t, "a gateway that starts later to have the ban", func() bool {
		_, err := third.Open("imaps", addr)
		return reason(err) == event.LimitBanned
	})
	operator := newLimiter(t, shortTTL(), dialRedis(t, r.Address)) // it does not run
	all, err := operator.Bans(t.Context())
	if err != nil || len(all) != 1 || all[0].Net != addrPrefix(addr) || all[0].Reason != event.BanFailures || !isAbout(all[0].Remaining, 10*time.Minute) {
		t.Fatalf("the bans are %+v: %v", all, err)
	}
	if ended, err := operator.Unban(t.Context(), addrPrefix(addr)); err != nil || len(ended) != 1 {
		t.Fatalf("Unban ended %v: %v", ended, err)
	}
	testkit.Eventually(t, "the ban to end at all gateways", func() bool {
		for _, g := range []*gateway{one, two, third} {
			if _, ok := g.bans.Find(addr); ok {
				return false
			}
		}
		return true
	})
	if _, err := guess(t, one.Limiter, addr, user(t, "alice"), secret("once more")); err != nil {
		t.Fatalf("a failure after Unban: %v", err)
	}
	if _, err := one.Open("imaps", addr); err != nil {
		t.Fatalf("a connection after Unban and one failure: %v", err)
	}
}

// The ban of a network ends for an address in it. Bans of other addresses there continue.
func TestUnbanEndsOnlyOverlappingBansAtAllGateways(t *testing.T) {
	r := testbed.StartRedis(t)
	one, two := runGateway(t, shortTTL(), dialRedis(t, r.Address)), runGateway(t, shortTTL(), dialRedis(t, r.Address))
	awaitSharedBans(t, one, two)
	operator := newLimiter(t, shortTTL(), dialRedis(t, r.Address)) // it does not run
	for _, net := range []string{"192.0.2.0/24", "192.0.2.9/32"} {
		testkit.NoError(t, operator.Ban(t.Context(), netip.MustParsePrefix(net), time.Hour, ""))
	}
	isBanned := func(g *gateway, addr string) bool { _, ok := g.bans.Find(ip(addr)); return ok }
	testkit.Eventually(t, "the bans at both gateways", func() bool { return one.bans.Len() == 2 && two.bans.Len() == 2 })
	if ended, err := operator.Unban(t.Context(), netip.MustParsePrefix("192.0.2.7/32")); err != nil || len(ended) != 1 {
		t.Fatalf("Unban ended %v: %v", ended, err)
	}
	for _, g := range []*gateway{one, two} {
		testkit.Eventually(t, "the network's ban to end", func() bool { return !isBanned(g, "192.0.2.8") })
	}
	awaitSharedBans(t, one, two) // all changes have been applied
	for _, g := range []*gateway{one, two} {
		if !isBanned(g, "192.0.2.9") {
			t.Error("the ban of another address has ended too")
		}
	}
}

func TestBansAreRereadAfterMoreChangesThanAreKept(t *testing.T) {
	r := testbed.StartRedis(t)
	client := dialRedis(t, r.Address)
	one := runGateway(t, shortTTL(), client)
	awaitSharedBans(t, one)
	r.CLI("eval", `for i = 1, 9000 do redis.call('XADD', 'imapgate:ban:{all}:changes', '*', 'n', redis.call('INCR', 'imapgate:ban:{all}:count'), 'ban', 'x') end
		redis.call('XTRIM', 'imapgate:ban:{all}:changes', 'MAXLEN', 10)`, "0")
	if err := newLimiter(t, shortTTL(), client).Ban(t.Context(), netip.MustParsePrefix("192.0.2.0/24"), time.Hour, "a gap"); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, "the ban after the gap", func() bool { _, ok := one.bans.Find(ip("192.0.2.9")); return ok })
}
