// Package identity has the two types that all packages share. User is the canonical name of an
// account, and Secret a password that is never printed.
//
// It imports no other package of this module. It does not know whether a user exists or a
// password is right; package auth does.
package identity

import (
	"errors"
	"net/netip"
	"strings"
)

// MaxUser bounds a user name in bytes: 64 for the local part, one for the @,
// 255 for the domain (RFC 5321 §4.5.3.1).
const MaxUser = 64 + 1 + 255

// MaxToken bounds a bearer token in bytes. Providers issue tokens with some hundred roles or
// groups in that size. In base64 it fits the 32 KB of a line before the login.
const MaxToken = 16 << 10

// ErrName is returned for a name that no account can have. Its text is constant: a refused name
// is hostile input.
var ErrName = errors.New("invalid user name: allowed are a-z 0-9 . - _ and one @, and what auth.names adds")

// User is the canonical name of an account: lower case, default domain applied, alphabet
// checked. Only Names.Canonicalize makes one, so routes, pools, limits, the audit log and the
// backend all use the same bytes. The zero User has no name. Users are comparable and may be
// map keys.
type User struct{ name string }

// Canonicalize returns the canonical name of raw in the default alphabet, which is that of
// Dovecot's auth_username_chars (a-z 0-9 . - _ @). Names applies an operator's rules.
func Canonicalize(raw, defaultDomain string) (User, error) {
	return NamesInDomain(defaultDomain).Canonicalize(raw)
}

// String returns the canonical name; "" for the zero User.
func (u User) String() string { return u.name }

// IsZero reports whether u is the zero User.
func (u User) IsZero() bool { return u.name == "" }

// Domain returns the part after the @, or "".
func (u User) Domain() string {
	_, domain, _ := strings.Cut(u.name, "@")
	return domain
}

// AddrPrefix returns the network that counts as one address: an IPv4 address, or an IPv6 /64,
// because a customer has at least that. It returns the zero Prefix for the zero Addr.
func AddrPrefix(a netip.Addr) netip.Prefix { return Network(a.Unmap().WithZone(""), 32, 64) }

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
