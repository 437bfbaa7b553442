package identity

import "net/netip"

// AddrPrefix returns the network that counts as one address: an IPv4 address, or an IPv6 /64,
// because a customer has at least that. It returns the zero Prefix for the zero Addr.
func AddrPrefix(a netip.Addr) netip.Prefix {
	a = a.Unmap().WithZone("")
	bits := a.BitLen()
	if a.Is6() {
		bits = 64
	}
	net, _ := a.Prefix(bits)
	return net
}
