package identity

import "net/netip"

// AddrPrefix is what counts as one address: an IPv4 address, and of IPv6 the network of 64 bits,
// because a customer has at least that. It is the zero Prefix for the zero Addr.
func AddrPrefix(a netip.Addr) netip.Prefix {
	a = a.Unmap().WithZone("")
	bits := a.BitLen()
	if a.Is6() {
		bits = 64
	}
	net, _ := a.Prefix(bits)
	return net
}
