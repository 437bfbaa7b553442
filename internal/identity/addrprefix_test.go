package identity

import (
	"net/netip"
	"testing"
)

func TestAddrPrefixIsAddressOrIPv6Network(t *testing.T) {
	for raw, want := range map[string]string{
		"192.0.2.1": "192.0.2.1/32", "::ffff:192.0.2.1": "192.0.2.1/32",
		"2001:db8::1": "2001:db8::/64", "2001:db8::ffff:2": "2001:db8::/64", "fe80::1%eth0": "fe80::/64",
	} {
		if got := AddrPrefix(netip.MustParseAddr(raw)).String(); got != want {
			t.Errorf("%s: %s, want %s", raw, got, want)
		}
	}
	if got := AddrPrefix(netip.Addr{}); got != (netip.Prefix{}) {
		t.Errorf("zero Addr: %v", got)
	}
}
