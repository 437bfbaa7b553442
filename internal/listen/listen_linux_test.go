package listen

import (
	"net"
	"net/netip"
	"strings"
	"testing"
)

func TestAddressCanBeShared(t *testing.T) {
	for _, at := range []string{"127.0.0.1:0", "[::1]:0", ":0", "0.0.0.0:0"} {
		one, err := TCP(at)
		if err != nil {
			t.Fatal(err)
		}
		defer one.Close()
		expectShared(t, one.Addr(), true)
		two, err := TCP(one.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		expectShared(t, one.Addr(), false)
		c, err := net.Dial("tcp", one.Addr().String()) // a connection does not listen
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := two.Close(); err != nil {
			t.Fatal(err)
		}
		expectShared(t, one.Addr(), true)
	}
}

func expectShared(t testing.TB, at net.Addr, want bool) {
	t.Helper()
	if shared, err := IsShared(at); err != nil || shared == want {
		t.Errorf("%v: shared %v, %v", at, shared, err)
	}
}

// SO_REUSEPORT must be set on all sockets of the address.
func TestListenFailsBesideExclusiveListener(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := TCP(l.Addr().String()); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("%v", err)
	}
}

func TestSocketTableIsReadToLastListener(t *testing.T) {
	const table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n" +
		"   0: 0100007F:03E1 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 1 1\n" +
		"   1: 0100007F:03E1 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 2 1\n" +
		"   2: 00000000:03E1 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 3 1\n" +
		"   3: 0100007F:03E1 0100007F:9C40 01 00000000:00000000 00:00000000 00000000  1000        0 4 1\n"
	for at, want := range map[string]int{"127.0.0.1:993": 2, "0.0.0.0:993": 1, "127.0.0.1:994": 0} {
		if n, err := countListeners(strings.NewReader(table), netip.MustParseAddrPort(at)); n != want || err != nil {
			t.Errorf("%s: %d, %v", at, n, err)
		}
	}
	for _, odd := range []string{"0100007F03E1", "xx00007F:03E1", "0100007F:99999", "0100:03E1:1"} {
		if _, err := parseAddress(odd); err == nil {
			t.Errorf("%s is an address", odd)
		}
	}
}
