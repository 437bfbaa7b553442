package limit

import (
	"fmt"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"imapgate/internal/event"
)

func TestConnectionsOfAnAddressAreBounded(t *testing.T) {
	for _, c := range []struct {
		name        string
		cfg         Connections
		first, same string // two spellings or addresses that count as one address
		other       string
		want        event.Limit
	}{
		{"before login", Connections{PreauthPerAddress: 3}, "192.0.2.1", "192.0.2.1", "192.0.2.2", event.LimitPreauthAddress},
		{"in all", Connections{PerAddress: 3}, "192.0.2.1", "::ffff:192.0.2.1", "192.0.2.2", event.LimitAddress},
		{"in a /64", Connections{PerAddress: 3}, "2001:db8::1", "2001:db8::ffff:1", "2001:db8:0:1::1", event.LimitAddress},
		{"in a minute", Connections{NewPerMinute: 60, NewBurst: 3}, "192.0.2.1", "192.0.2.1", "192.0.2.2", event.LimitConnectionRate},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := defaultConfig()
			cfg.Connections = c.cfg
			l := newLimiter(t, cfg, nil)
			var conns []*Conn
			for range 3 {
				conns = append(conns, openConn(t, l, ip(c.first)))
			}
			if _, err := l.Open("imaps", ip(c.same)); reason(err) != c.want {
				t.Fatalf("the fourth connection: %v, want %s", err, c.want)
			}
			openConn(t, l, ip(c.other)).Close()
			for _, conn := range conns {
				conn.Close()
			}
			if c.want != event.LimitConnectionRate {
				openConn(t, l, ip(c.same)).Close()
			}
			if n := l.CountersInUse(); n != 0 {
				t.Fatalf("%d counts are left after all connections closed", n)
			}
		})
	}
}

func TestTheRateOfConnectionsRecovers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(t, defaultConfig(), nil)
		open := func() error {
			conn, err := l.Open("imaps", ip("192.0.2.1"))
			if err == nil {
				conn.Close()
			}
			return err
		}
		for i := range 30 {
			if err := open(); err != nil {
				t.Fatalf("connection %d: %v", i, err)
			}
		}
		if err := open(); reason(err) != event.LimitConnectionRate {
			t.Fatalf("beyond the burst: %v", err)
		}
		time.Sleep(time.Second) // by the test's clock: the rate admits one more
		if err := open(); err != nil {
			t.Fatal(err)
		}
		if err := open(); reason(err) != event.LimitConnectionRate {
			t.Fatalf("beyond the rate: %v", err)
		}
	})
}

func TestSessionsOfAUserAreBounded(t *testing.T) {
	for _, c := range []struct {
		cfg  Connections
		addr func(i int) netip.Addr
		want event.Limit
	}{
		{Connections{PerUser: 3}, func(i int) netip.Addr { return ip(fmt.Sprintf("192.0.2.%d", i)) }, event.LimitUser},
		{Connections{PerUserAddress: 3}, func(int) netip.Addr { return ip("192.0.2.1") }, event.LimitUserAddress},
		{Connections{Total: 3}, func(i int) netip.Addr { return ip(fmt.Sprintf("192.0.2.%d", i)) }, event.LimitTotal},
	} {
		cfg := defaultConfig()
		cfg.Connections = c.cfg
		l, alice := newLimiter(t, cfg, nil), user(t, "alice")
		var conns []*Conn
		for i := range 4 {
			conn := openConn(t, l, c.addr(i))
			conns = append(conns, conn)
			err := conn.BeginSession(t.Context(), alice)
			if i < 3 && err != nil {
				t.Fatalf("%s: session %d: %v", c.want, i, err)
			}
			if i == 3 && reason(err) != c.want {
				t.Fatalf("session %d: %v, want %s", i, err, c.want)
			}
		}
		if c.want != event.LimitTotal {
			if err := conns[3].BeginSession(t.Context(), user(t, "bob")); err != nil {
				t.Fatalf("another user's session after a refused one: %v", err)
			}
		}
		for _, conn := range conns {
			conn.Close()
		}
		if n := l.CountersInUse(); n != 0 {
			t.Fatalf("%d counts are left after all connections closed", n)
		}
	}
}

func TestLoginReleasesThePreauthCount(t *testing.T) {
	cfg := defaultConfig()
	cfg.Connections = Connections{PreauthPerAddress: 1, PerAddress: 2}
	l := newLimiter(t, cfg, nil)
	first := openConn(t, l, ip("192.0.2.1"))
	if err := first.BeginSession(t.Context(), user(t, "alice")); err != nil {
		t.Fatal(err)
	}
	second := openConn(t, l, ip("192.0.2.1"))
	if _, err := l.Open("imaps", ip("192.0.2.1")); err == nil {
		t.Fatal("a third connection was admitted")
	}
	second.Close()
	first.Close()
}

func TestConnectionsFromABalancerCountForTheirClients(t *testing.T) {
	cfg := defaultConfig()
	cfg.Connections = Connections{PreauthPerAddress: 1}
	l := newLimiter(t, cfg, nil)
	var conns []*Conn
	for i := range 5 {
		conn := openConn(t, l, netip.Addr{}) // the PROXY header follows
		if err := conn.SetAddr(ip(fmt.Sprintf("192.0.2.%d", i))); err != nil {
			t.Fatal(err)
		}
		conns = append(conns, conn)
	}
	conn := openConn(t, l, ip("198.51.100.1"))
	if err := conn.SetAddr(ip("192.0.2.1")); reason(err) != event.LimitPreauthAddress {
		t.Fatalf("a second connection of an address: %v", err)
	}
	conn.Close()
	openConn(t, l, ip("198.51.100.1")).Close() // SetAddr released its first slot
	for _, conn := range conns {
		conn.Close()
	}
	if n := l.CountersInUse(); n != 0 {
		t.Fatalf("%d counts are left after all connections closed", n)
	}
}

func TestEachListenerHasItsOwnLimits(t *testing.T) {
	cfg := defaultConfig()
	webmail := cfg.Connections
	webmail.PerUser = 2
	cfg.Listeners = map[string]Settings{"webmail": {Connections: webmail, Failures: cfg.Failures, ExemptNetworks: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}}}
	l := newLimiter(t, cfg, nil)
	for i := range 200 { // far beyond every limit of an address
		conn, err := l.Open("webmail", ip("192.0.2.1"))
		if err != nil {
			t.Fatalf("connection %d of an exempt network: %v", i, err)
		}
		if d := conn.LoginFailed(t.Context(), user(t, "bob"), secret("%d", i)); d != 0 {
			t.Fatalf("an exempt network is delayed by %v", d)
		}
		if err := conn.BeginLogin(t.Context(), user(t, "bob")); err != nil {
			t.Fatalf("attempt %d: %v", i, err)
		}
		err = conn.BeginSession(t.Context(), user(t, "alice"))
		if i < 2 != (err == nil) {
			t.Fatalf("session %d of a user limited to 2: %v", i, err)
		}
		defer conn.Close()
	}
	if l.BanCount() != 0 {
		t.Fatal("an exempt network was banned")
	}
}

// preauthConfig returns the limits of a gateway whose descriptors allow 484 connections before
// login.
func preauthConfig() Config {
	c := defaultConfig()
	c.Preauth, c.Connections.PreauthNetworkPercent, c.Connections.NewPerMinute = 484, 25, 0
	return c
}

// openConns opens a number of connections from each address, and returns the admitted ones.
func openConns(t *testing.T, l *Limiter, each int, addresses ...netip.Addr) (conns []*Conn) {
	t.Helper()
	for _, addr := range addresses {
		for range each {
			conn, err := l.Open("imaps", addr)
			if err == nil {
				conns = append(conns, conn)
			} else if r := reason(err); r != event.LimitPreauthNetwork && r != event.LimitPreauthAddress {
				t.Fatalf("from %v: %v", addr, err)
			}
		}
	}
	return conns
}

// adjacentAddrs returns one address in each of n consecutive /64 networks.
func adjacentAddrs(n int) (all []netip.Addr) {
	for i := range n {
		all = append(all, netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 0, 1, byte(i >> 8), byte(i), 15: 1}))
	}
	return all
}

func TestOneNetworkCannotTakeAllPreauthSlots(t *testing.T) {
	var network []netip.Addr
	for i := range byte(255) {
		network = append(network, netip.AddrFrom4([4]byte{192, 0, 2, i}))
	}
	for name, test := range map[string]struct {
		from []netip.Addr
		most int
	}{
		"an address": {network[:1], 20}, "a /24": {network, 121}, "a /64": {adjacentAddrs(1), 20}, "a /59": {adjacentAddrs(32), 60}, "a /56": {adjacentAddrs(256), 60},
		"a /48": {adjacentAddrs(2048), 121},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLimiter(t, preauthConfig(), nil)
			conns := openConns(t, l, 30, test.from...)
			if len(conns) != test.most {
				t.Errorf("%d connections were admitted, the limit is %d", len(conns), test.most)
			}
			for _, other := range []netip.Addr{ip("2001:db8:2::1"), ip("198.51.100.1")} {
				conn := openConn(t, l, other)
				conn.Close()
			}
			if err := conns[0].BeginSession(t.Context(), user(t, "alice")); err != nil {
				t.Fatal(err)
			}
			if again := openConns(t, l, 1, test.from[0]); len(again) != 1 {
				t.Error("a connection still takes a preauth slot after its login")
			} else {
				closeAll(again)
			}
			closeAll(conns)
			if n := l.CountersInUse(); n != 0 {
				t.Errorf("%d counts are left after all connections closed", n)
			}
		})
	}
}

// An operator may raise the limit of an address, for a carrier or a balancer. The network
// around the address then has at least that limit.
func TestANetworkMayHaveAsManyPreauthConnectionsAsAnAddress(t *testing.T) {
	for _, test := range []struct{ perAddress, share, want int }{
		{300, 25, 300}, {0, 25, 1000}, {20, 0, 640}, {20, 100, 242},
	} {
		cfg := preauthConfig()
		cfg.Connections.PreauthPerAddress, cfg.Connections.PreauthNetworkPercent, cfg.Connections.PerAddress = test.perAddress, test.share, 0
		from, each := adjacentAddrs(1), 1000
		if test.perAddress == 20 {
			from, each = adjacentAddrs(32), 30
		}
		conns := openConns(t, newLimiter(t, cfg, nil), each, from...)
		if len(conns) != test.want {
			t.Errorf("%d per address and %d percent per network: %d were admitted, want %d", test.perAddress, test.share, len(conns), test.want)
		}
		closeAll(conns)
	}
}
