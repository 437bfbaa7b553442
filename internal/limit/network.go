package limit

import (
	"net/netip"
	"slices"

	"imapgate/internal/identity"
)

// tiers are how many networks around an address failures are counted for.
const tiers = 3

// The widths of those networks, and how much more a wider one may do. Constant.
var (
	tierBits4 = [tiers]int{32, 26, 21}
	tierBits6 = [tiers]int{64, 48, 32}
	tierScale = [tiers]int{1, 3, 9}
)

// around is the network of an address with so many bits of its kind.
func around(a netip.Addr, bits4, bits6 int) netip.Prefix {
	bits := bits6
	if a.Is4() {
		bits = bits4
	}
	p, _ := a.Prefix(bits) // the zero Prefix for the zero Addr
	return p
}

func home(a netip.Addr) netip.Prefix { return identity.AddrPrefix(a) }

// near is the network in which a user is known. Wider than home for IPv4, because
// people's addresses change within their provider's network.
func near(a netip.Addr) netip.Prefix { return around(a, 24, 64) }

// site and block are networks that are often one customer's, who has all addresses in it.
// With IPv4 a site is an address.
func site(a netip.Addr) netip.Prefix  { return around(a, 32, 56) }
func block(a netip.Addr) netip.Prefix { return around(a, 24, 48) }

// carrier is the network in which somebody on the move, a telephone with a /64 of its
// own for each hour, is still a customer of the same carrier.
func carrier(a netip.Addr) netip.Prefix { return tier(a, tiers-1) }

func tier(a netip.Addr, i int) netip.Prefix { return around(a, tierBits4[i], tierBits6[i]) }

func contains(nets []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(nets, func(n netip.Prefix) bool { return n.Contains(a) })
}
