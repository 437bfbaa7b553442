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

// Network returns the network around a of bits4 bits, or of bits6 for IPv6. It returns the zero
// Prefix for the zero Addr.
func Network(a netip.Addr, bits4, bits6 int) netip.Prefix {
	bits := bits6
	if a.Is4() {
		bits = bits4
	}
	net, _ := a.Prefix(bits)
	return net
}
