package upstream

import (
	"cmp"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/pires/go-proxyproto"

	"imapgate/internal/imap"
)

// Bounds of the client's ID when forwarded.
const (
	maxClientPairs   = imap.MaxIDPairs - 6 // with a login, which adds six of the gateway's
	MaxIDBytes       = 256                 // bytes of fields and values before the login, as Dovecot accepts
	maxClientIDBytes = 1024                // bytes of fields and values after the login; a session stores them
	maxSessionID     = 64                  // bytes of a session id, as in Dovecot
)

// Client is the client of a login, as reported to the backend.
type Client struct {
	Addr        netip.AddrPort // the client's address
	Local       netip.AddrPort // local address of its connection
	Session     string         // this gateway's session id
	PeerSession string         // x-session-id of a trusted peer; "" without one
	TTL         int            // hops left according to a trusted peer; 0: unknown
	ID          [][2]string    // the client's ID, which is forwarded within bounds
}

// hopsLeft returns how many gateways the login may pass after this one. It is at most 0 in a
// loop: the login has passed too many gateways, or this one. A session id with SessionPrefix
// can only come from this gateway.
func (cfg *Config) hopsLeft(c Client) int {
	if cfg.SessionPrefix != "" && strings.HasPrefix(c.PeerSession, cfg.SessionPrefix) {
		return 0
	}
	return min(cmp.Or(c.TTL, cfg.ProxyTTL), cfg.ProxyTTL) - 1
}

// proxyHeader returns the PROXY v2 header for c. If the addresses are unknown it is LOCAL, for
// a connection of the gateway's own.
func proxyHeader(c Client) ([]byte, error) {
	header := &proxyproto.Header{Version: 2, Command: proxyproto.LOCAL, TransportProtocol: proxyproto.UNSPEC}
	if c.Addr.IsValid() && c.Local.IsValid() {
		header = proxyproto.HeaderProxyFromAddrs(2, tcpAddr(c.Addr), tcpAddr(c.Local))
	}
	return header.Format()
}

// tcpAddr returns the address without a zone, and an IPv4 address as such.
func tcpAddr(a netip.AddrPort) *net.TCPAddr {
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(a.Addr().Unmap().WithZone(""), a.Port()))
}

// appendID appends the ID command tag, with the client and the number of gateways that the
// login may still pass.
func (cfg *Config) appendID(dst []byte, tag string, c Client, hops int) []byte {
	dst = append(append(dst, tag...), " ID ("...)
	if id := c.ForwardedID(); id != "" {
		dst = append(append(dst, id[1:len(id)-1]...), ' ')
	}
	if cfg.Forward == ForwardID {
		if c.Addr.IsValid() {
			dst = appendField(dst, "x-originating-ip", tcpAddr(c.Addr).IP.String())
			dst = appendField(dst, "x-originating-port", strconv.Itoa(int(c.Addr.Port())))
		}
		if c.Local.IsValid() {
			dst = appendField(dst, "x-connected-ip", tcpAddr(c.Local).IP.String())
			dst = appendField(dst, "x-connected-port", strconv.Itoa(int(c.Local.Port())))
		}
	}
	if len(c.Session) <= maxSessionID {
		dst = appendField(dst, "x-session-id", c.Session)
	}
	dst = appendField(dst, "x-proxy-ttl", strconv.Itoa(hops))
	dst = append(dst[:len(dst)-1], ')') // replaces the last space
	return append(dst, '\r', '\n')
}

// FormatID returns the argument of an ID command for a logged-in client: the pairs that may be
// forwarded, or NIL.
func FormatID(pairs [][2]string) string {
	return cmp.Or(formatID(pairs, imap.MaxIDPairs, maxClientIDBytes), "NIL")
}

// ForwardedID returns the client's pairs that the ID of a login contains, in the form of
// FormatID; "" if there are none.
func (c Client) ForwardedID() string { return formatID(c.ID, maxClientPairs, MaxIDBytes) }

// formatID returns the client's pairs within the bounds, in parentheses; "" if there are none.
// Fields that begin with x- are reserved for gateways.
func formatID(pairs [][2]string, maxPairs, maxBytes int) string {
	list := []byte("(")
	for i, p := range pairs {
		maxBytes -= len(p[0]) + len(p[1])
		if i == maxPairs || maxBytes < 0 {
			break
		}
		if len(p[0]) > imap.MaxIDField || len(p[0]) > 1 && strings.EqualFold(p[0][:2], "x-") {
			continue
		}
		list = appendField(list, p[0], p[1])
	}
	if len(list) == 1 {
		return ""
	}
	list[len(list)-1] = ')' // replaces the last space
	return string(list)
}

// appendField appends a field, its value and a space, or nothing if one of them is empty or
// cannot be quoted.
func appendField(dst []byte, field, value string) []byte {
	if field == "" || value == "" {
		return dst
	}
	out, err := imap.AppendQuoted(dst, field)
	if err != nil {
		return dst
	}
	if out, err = imap.AppendQuoted(append(out, ' '), value); err != nil {
		return dst
	}
	return append(out, ' ')
}
