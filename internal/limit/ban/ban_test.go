package ban

import (
	"fmt"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"imapgate/internal/event"
)

func TestFullTableKeepsAllBans(t *testing.T) {
	b := New()
	addr := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{byte(11 + i>>16), byte(i >> 8), byte(i), 1}) }
	const n = 3 * Max
	for i := range n {
		b.Impose(Ban{Net: netip.PrefixFrom(addr(i), 32), Reason: event.BanFailures}, time.Hour, time.Hour)
	}
	for i := range n {
		if _, ok := b.Find(addr(i)); !ok {
			t.Fatalf("%v is no longer banned", addr(i))
		}
	}
	if len(b.nets) > Max {
		t.Fatalf("the table has %d bans", len(b.nets))
	}
	if _, ok := b.Find(netip.MustParseAddr("200.0.2.1")); ok {
		t.Fatal("an address far from all banned ones is banned too")
	}
}

func TestOperatorsBansAreNotMerged(t *testing.T) {
	b := New()
	for i := range Max {
		net := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 1}), 32)
		if err := b.Put(Ban{Net: net, Reason: event.BanOperator, Remaining: time.Hour}); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Put(Ban{Net: netip.MustParsePrefix("192.0.2.1/32"), Remaining: time.Hour}); err == nil {
		t.Fatal("a ban beyond the bound of the table was accepted")
	}
	if n := len(b.nets); n != Max {
		t.Fatalf("the table has %d bans", n)
	}
}

func TestBansDoubleUpToADay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const day = 24 * time.Hour
		table, ban := New(), Ban{Net: netip.MustParsePrefix("192.0.2.1/32"), Reason: event.BanFailures}
		want := 10 * time.Minute
		for i := range 10 {
			table.Impose(ban, 10*time.Minute, day)
			b, ok := table.Find(ban.Net.Addr())
			if !ok || b.Remaining != want || b.Count != i+1 {
				t.Fatalf("ban %d: %+v, want %v", i, b, want)
			}
			if _, isNew := table.Impose(ban, 10*time.Minute, day); isNew {
				t.Fatal("a ban that has not ended was imposed again")
			}
			time.Sleep(b.Remaining + time.Minute)
			want = min(2*want, day)
		}
		time.Sleep(2 * day)
		table.Impose(ban, 10*time.Minute, day)
		if b, _ := table.Find(ban.Net.Addr()); b.Remaining != 10*time.Minute {
			t.Fatalf("after two days without a ban: %+v", b)
		}
	})
}

func TestEightBansCrowdTheirNetwork(t *testing.T) {
	b := New()
	for i := range ManyNeighbors {
		net := netip.MustParsePrefix(fmt.Sprintf("2001:db8:1:%x::/64", i))
		b.Impose(Ban{Net: net, Reason: event.BanFailures}, time.Hour, time.Hour)
		up, ok := b.CrowdedParent(net)
		if want := i == ManyNeighbors-1; ok != want || ok && up != netip.MustParsePrefix("2001:db8:1::/48") {
			t.Fatalf("after %d bans: %v, %v", i+1, up, ok)
		}
	}
}
