package limit

import (
	"fmt"
	"imapgate/internal/event"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"
)

func TestAnAddressHasSoManyConnections(t *testing.T) {
	for _, c := range []struct {
		name        string
		cfg         Connections
		first, same string // two addresses that count as one
		other       string
		want        event.Limit
	}{
		{"before the login", Connections{PreauthPerAddress: 3}, "192.0.2.1", "192.0.2.1", "192.0.2.2", event.LimitPreauthAddress},
		{"altogether", Connections{PerAddress: 3}, "192.0.2.1", "::ffff:192.0.2.1", "192.0.2.2", event.LimitAddress},
		{"in a /64", Connections{PerAddress: 3}, "2001:db8::1", "2001:db8::ffff:1", "2001:db8:0:1::1", event.LimitAddress},
		{"in a minute", Connections{NewPerMinute: 60, NewBurst: 3}, "192.0.2.1", "192.0.2.1", "192.0.2.2", event.LimitConnectionRate},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := usual()
			cfg.Connections = c.cfg
			g := newGate(t, cfg, nil)
			var in []*Conn
			for range 3 {
				in = append(in, arrive(t, g, at(c.first)))
			}
			if _, err := g.Open("imaps", at(c.same)); reason(err) != c.want {
				t.Fatalf("the fourth gets %v, want %s", err, c.want)
			}
			arrive(t, g, at(c.other)).Close()
			for _, v := range in {
				v.Close()
			}
			if c.want != event.LimitConnectionRate {
				arrive(t, g, at(c.same)).Close()
			}
			if n := g.CountersInUse(); n != 0 {
				t.Fatalf("%d places are held by nobody", n)
			}
		})
	}
}

func TestTheRateOfConnectionsRecovers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(t, usual(), nil)
		come := func() error {
			v, err := g.Open("imaps", at("192.0.2.1"))
			if err == nil {
				v.Close()
			}
			return err
		}
		for i := range 30 {
			if err := come(); err != nil {
				t.Fatalf("connection %d: %v", i, err)
			}
		}
		if err := come(); reason(err) != event.LimitConnectionRate {
			t.Fatalf("beyond the burst: %v", err)
		}
		time.Sleep(time.Second) // by the test's clock: one more, at 60 a minute
		if err := come(); err != nil {
			t.Fatal(err)
		}
		if err := come(); reason(err) != event.LimitConnectionRate {
			t.Fatalf("beyond the rate: %v", err)
		}
	})
}

func TestAUserHasSoManySessions(t *testing.T) {
	for _, c := range []struct {
		cfg  Connections
		addr func(i int) netip.Addr
		want event.Limit
	}{
		{Connections{PerUser: 3}, func(i int) netip.Addr { return at(fmt.Sprintf("192.0.2.%d", i)) }, event.LimitUser},
		{Connections{PerUserAddress: 3}, func(int) netip.Addr { return at("192.0.2.1") }, event.LimitUserAddress},
		{Connections{Total: 3}, func(i int) netip.Addr { return at(fmt.Sprintf("192.0.2.%d", i)) }, event.LimitTotal},
	} {
		cfg := usual()
		cfg.Connections = c.cfg
		g, alice := newGate(t, cfg, nil), user(t, "alice")
		var in []*Conn
		for i := range 4 {
			v := arrive(t, g, c.addr(i))
			in = append(in, v)
			err := v.BeginSession(t.Context(), alice)
			if i < 3 && err != nil {
				t.Fatalf("%s: session %d: %v", c.want, i, err)
			}
			if i == 3 && reason(err) != c.want {
				t.Fatalf("session %d: %v, want %s", i, err, c.want)
			}
		}
		if c.want != event.LimitTotal {
			if err := in[3].BeginSession(t.Context(), user(t, "bob")); err != nil {
				t.Fatalf("another login on the connection that was refused: %v", err)
			}
		}
		for _, v := range in {
			v.Close()
		}
		if n := g.CountersInUse(); n != 0 {
			t.Fatalf("%d places are held by nobody", n)
		}
	}
}

func TestLoginReleasesThePreauthCount(t *testing.T) {
	cfg := usual()
	cfg.Connections = Connections{PreauthPerAddress: 1, PerAddress: 2}
	g := newGate(t, cfg, nil)
	first := arrive(t, g, at("192.0.2.1"))
	if err := first.BeginSession(t.Context(), user(t, "alice")); err != nil {
		t.Fatal(err)
	}
	second := arrive(t, g, at("192.0.2.1"))
	if _, err := g.Open("imaps", at("192.0.2.1")); err == nil {
		t.Fatal("a third connection came in")
	}
	second.Close()
	first.Close()
}

func TestABalancersConnectionsAreTheirClients(t *testing.T) {
	cfg := usual()
	cfg.Connections = Connections{PreauthPerAddress: 1}
	g := newGate(t, cfg, nil)
	var in []*Conn
	for i := range 5 {
		v := arrive(t, g, netip.Addr{}) // the header is still to come
		if err := v.SetAddr(at(fmt.Sprintf("192.0.2.%d", i))); err != nil {
			t.Fatal(err)
		}
		in = append(in, v)
	}
	v := arrive(t, g, at("198.51.100.1"))
	if err := v.SetAddr(at("192.0.2.1")); reason(err) != event.LimitPreauthAddress {
		t.Fatalf("a second connection of an address: %v", err)
	}
	v.Close()
	arrive(t, g, at("198.51.100.1")).Close() // its place there is free again
	for _, v := range in {
		v.Close()
	}
	if n := g.CountersInUse(); n != 0 {
		t.Fatalf("%d places are held by nobody", n)
	}
}

func TestEachListenerHasItsOwnLimits(t *testing.T) {
	cfg := usual()
	inside := cfg.Connections
	inside.PerUser = 2
	cfg.Listeners = map[string]Settings{"webmail": {Connections: inside, Failures: cfg.Failures, ExemptNetworks: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}}}
	g := newGate(t, cfg, nil)
	for i := range 200 { // far beyond every limit of an address
		v, err := g.Open("webmail", at("192.0.2.1"))
		if err != nil {
			t.Fatalf("connection %d of an exempt network: %v", i, err)
		}
		if d := v.LoginFailed(t.Context(), user(t, "bob"), secret("%d", i)); d != 0 {
			t.Fatalf("an exempt network is delayed by %v", d)
		}
		if err := v.BeginLogin(t.Context(), user(t, "bob")); err != nil {
			t.Fatalf("attempt %d: %v", i, err)
		}
		err = v.BeginSession(t.Context(), user(t, "alice"))
		if i < 2 != (err == nil) {
			t.Fatalf("session %d of a user with 2: %v", i, err)
		}
		defer v.Close()
	}
	if g.BanCount() != 0 {
		t.Fatal("an exempt network was banned")
	}
}

// preauthConfig has the limits of the gateway whose descriptors leave room for 484 connections
// before the login.
func preauthConfig() Config {
	c := usual()
	c.Preauth, c.Connections.PreauthNetworkPercent, c.Connections.NewPerMinute = 484, 25, 0
	return c
}

// crowdIn has so many connections arrive from each address, and gives those that may.
func crowdIn(t *testing.T, g *Limiter, each int, addresses ...netip.Addr) (in []*Conn) {
	t.Helper()
	for _, addr := range addresses {
		for range each {
			v, err := g.Open("imaps", addr)
			if err == nil {
				in = append(in, v)
			} else if r := reason(err); r != event.LimitPreauthNetwork && r != event.LimitPreauthAddress {
				t.Fatalf("from %v: %v", addr, err)
			}
		}
	}
	return in
}

// nets are addresses in so many networks of 64 bits behind one another.
func nets(n int) (all []netip.Addr) {
	for i := range n {
		all = append(all, netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 0, 1, byte(i >> 8), byte(i), 15: 1}))
	}
	return all
}

func TestOneNetworkDoesNotTakeEveryPlaceBeforeTheLogin(t *testing.T) {
	var street []netip.Addr
	for i := range byte(255) {
		street = append(street, netip.AddrFrom4([4]byte{192, 0, 2, i}))
	}
	for name, test := range map[string]struct {
		from []netip.Addr
		most int
	}{
		"an address": {street[:1], 20}, "a /24": {street, 121}, "a /64": {nets(1), 20}, "a /59": {nets(32), 60}, "a /56": {nets(256), 60},
		"a /48": {nets(2048), 121},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGate(t, preauthConfig(), nil)
			in := crowdIn(t, g, 30, test.from...)
			if len(in) != test.most {
				t.Errorf("%d came in, %d may", len(in), test.most)
			}
			for _, other := range []netip.Addr{at("2001:db8:2::1"), at("198.51.100.1")} {
				v := arrive(t, g, other)
				v.Close()
			}
			if err := in[0].BeginSession(t.Context(), user(t, "alice")); err != nil {
				t.Fatal(err)
			}
			if again := crowdIn(t, g, 1, test.from[0]); len(again) != 1 {
				t.Error("who has logged in still has the place of a other")
			} else {
				leaveAll(again)
			}
			leaveAll(in)
			if n := g.CountersInUse(); n != 0 {
				t.Errorf("%d places are still taken", n)
			}
		})
	}
}

// A carrier's address, or the only one behind a balancer, is given more by its operator:
// the network around it has no less.
func TestANetworkMayHaveWhatAnAddressMay(t *testing.T) {
	for _, test := range []struct{ perAddress, share, want int }{
		{300, 25, 300}, {0, 25, 1000}, {20, 0, 640}, {20, 100, 242},
	} {
		cfg := preauthConfig()
		cfg.Connections.PreauthPerAddress, cfg.Connections.PreauthNetworkPercent, cfg.Connections.PerAddress = test.perAddress, test.share, 0
		from, each := nets(1), 1000
		if test.perAddress == 20 {
			from, each = nets(32), 30
		}
		in := crowdIn(t, newGate(t, cfg, nil), each, from...)
		if len(in) != test.want {
			t.Errorf("%d of an address and %d percent: %d came in, want %d", test.perAddress, test.share, len(in), test.want)
		}
		leaveAll(in)
	}
}
