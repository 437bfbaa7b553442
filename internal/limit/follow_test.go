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
	one := runHooked(t, quick(), dial(t, r.Address), Hooks{OnRedis: func(up bool) { reports <- up }})
	two := runGate(t, quick(), dial(t, r.Address))
	following(t, one, two)
	if up := <-reports; !up || len(reports) > 0 {
		t.Fatal("it was not reports, once, that Redis is there")
	}
	r.Kill()
	v := arrive(t, one.Limiter, at("192.0.2.1"))
	for i := range 10 {
		v.LoginFailed(t.Context(), user(t, "alice"), secret("%d", i))
	}
	v.Close()
	r.Restart()
	testkit.Eventually(t, "the other to know the ban", func() bool { _, ok := two.bans.Find(at("192.0.2.1")); return ok })
}

func TestABanHoldsEverywhereWithinASecond(t *testing.T) {
	r := testbed.StartRedis(t)
	one, two := runGate(t, quick(), dial(t, r.Address)), runGate(t, quick(), dial(t, r.Address))
	addr := at("192.0.2.1")
	following(t, one, two)
	for i := range 5 { // five here and five there
		for _, g := range []*gateway{one, two} {
			if v, err := g.Open("imaps", addr); err == nil {
				v.LoginFailed(t.Context(), user(t, "alice"), secret("%d %p", i, g))
				v.Close()
			}
		}
	}
	testkit.Eventually(t, "the ban to hold at both", func() bool {
		_, err1 := one.Open("imaps", addr)
		_, err2 := two.Open("imaps", addr)
		return reason(err1) == event.LimitBanned && reason(err2) == event.LimitBanned
	})
	late := runGate(t, quick(), dial(t, r.Address))
	testkit.Eventually(t, "a gateway that starts to know it", func() bool {
		_, err := late.Open("imaps", addr)
		return reason(err) == event.LimitBanned
	})
	operator := newGate(t, quick(), dial(t, r.Address)) // which runs nowhere
	all, err := operator.Bans(t.Context())
	if err != nil || len(all) != 1 || all[0].Net != home(addr) || all[0].Reason != event.BanFailures || !within(all[0].Remaining, 10*time.Minute) {
		t.Fatalf("the operator sees %+v: %v", all, err)
	}
	if lifted, err := operator.Unban(t.Context(), home(addr)); err != nil || len(lifted) != 1 {
		t.Fatalf("lifted %v: %v", lifted, err)
	}
	testkit.Eventually(t, "the ban to be lifted everywhere", func() bool {
		for _, g := range []*gateway{one, two, late} {
			if _, ok := g.bans.Find(addr); ok {
				return false
			}
		}
		return true
	})
	if _, err := guess(t, one.Limiter, addr, user(t, "alice"), secret("once more")); err != nil {
		t.Fatalf("behind the pardon: %v", err)
	}
	if _, err := one.Open("imaps", addr); err != nil {
		t.Fatalf("one failure behind the pardon: %v", err)
	}
}

func TestBansSurviveMoreChangesThanAreKept(t *testing.T) {
	r := testbed.StartRedis(t)
	client := dial(t, r.Address)
	one := runGate(t, quick(), client)
	following(t, one)
	r.CLI("eval", `for i = 1, 9000 do redis.call('XADD', 'imapgate:ban:{all}:changes', '*', 'n', redis.call('INCR', 'imapgate:ban:{all}:count'), 'ban', 'x') end
		redis.call('XTRIM', 'imapgate:ban:{all}:changes', 'MAXLEN', 10)`, "0")
	if err := newGate(t, quick(), client).Ban(t.Context(), netip.MustParsePrefix("192.0.2.0/24"), time.Hour, "a gap"); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, "the ban behind the gap", func() bool { _, ok := one.bans.Find(at("192.0.2.9")); return ok })
}
