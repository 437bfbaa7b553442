package proxy

import (
	"net/netip"
	"strconv"
	"strings"

	"imapgate/internal/imap"
)

// Bounds of ID: RFC 2971 §3.3, and those of forwarding to a backend.
const (
	maxIDPairs     = 30
	maxIDKey       = 30
	maxIDValue     = 1024
	maxForwardedID = 256 // bytes of all forwarded keys and values
)

// answerID answers ID (RFC 2971). The client's own parameters are kept for the backend's
// ID. Those with which Dovecot's proxy describes a client (x-originating-ip and similar)
// count only from a trusted peer. A hop limit is accepted from any client: it can only end
// a login sooner. It breaks loops of gateways that do not trust each other.
func (c *connection) answerID(cmd imap.Command) error {
	pairs, ok := idPairs(cmd.Args)
	if !ok {
		return c.rejectCommand(cmd.Tag, "BAD ID takes a list of at most 30 pairs of strings, or NIL.")
	}
	if !c.preauth.idReceived {
		c.preauth.idReceived = true
		c.setClientID(pairs)
		c.client.SetProgram(pairs)
	}
	return c.sendLine("* ID (\"name\" \"imapgate\")\r\n" + cmd.Tag + " OK ID completed.")
}

// idPairs parses "(" string SP nstring … ")" or NIL.
func idPairs(args []imap.Token) ([][2]string, bool) {
	if len(args) == 1 && isNil(args[0]) {
		return nil, true
	}
	n := len(args)
	if n < 2 || n%2 != 0 || n > 2+2*maxIDPairs || args[0].Kind != imap.OpenParen || args[n-1].Kind != imap.CloseParen {
		return nil, false
	}
	var pairs [][2]string
	for i := 1; i < n-1; i += 2 {
		key, value := args[i], args[i+1]
		if !key.IsString() || !value.IsString() || len(key.Text) > maxIDKey || len(value.Text) > maxIDValue {
			return nil, false
		}
		if !isNil(value) {
			pairs = append(pairs, [2]string{key.Text, value.Text})
		}
	}
	return pairs, true
}

func isNil(t imap.Token) bool { return t.Kind == imap.Atom && strings.EqualFold(t.Text, "NIL") }

// setClientID keeps the client's parameters and applies those of a trusted proxy.
func (c *connection) setClientID(pairs [][2]string) {
	var ip, port string
	size := 0
	for _, p := range pairs {
		switch key := strings.ToLower(p[0]); {
		case key == "x-proxy-ttl":
			c.preauth.proxyTTL = parseHopLimit(p[1])
		case key == "x-session-id":
			c.preauth.parentSession = p[1]
		case key == "x-originating-ip":
			ip = p[1]
		case key == "x-originating-port":
			port = p[1]
		case strings.HasPrefix(key, "x-"):
		default:
			if size += len(p[0]) + len(p[1]); size <= maxForwardedID {
				c.preauth.clientID = append(c.preauth.clientID, p)
			}
		}
	}
	if addr, err := netip.ParseAddr(ip); err == nil && c.isTrustedProxy() {
		c.setClientAddr(addr.Unmap().WithZone(""), port)
	}
}

// isTrustedProxy reports whether the client is a trusted proxy. With a PROXY header its
// source address decides, because any client may connect through the balancer. A header
// without an address grants no trust.
func (c *connection) isTrustedProxy() bool {
	if containsPeer(c.listener.ProxyProtocol.networks(), c.client.Peer) {
		return c.proxiedAddr.IsValid() && containsPeer(c.listener.TrustedNetworks, c.proxiedAddr)
	}
	return containsPeer(c.listener.TrustedNetworks, c.client.Peer)
}

// setClientAddr sets the client's address as a trusted proxy reports it. Loopback is the
// proxy's own host, so the proxy itself counts as the client. Taken as ours, that address
// would be exempt from limits and trusted by the backend.
func (c *connection) setClientAddr(addr netip.Addr, port string) {
	if addr.IsLoopback() || addr.IsUnspecified() || addr.IsMulticast() {
		c.preauth.peerIsClient = true
		return
	}
	n, _ := strconv.ParseUint(port, 10, 16) // 0 if missing or invalid
	c.client.Addr = netip.AddrPortFrom(addr, uint16(n))
}

// parseHopLimit parses a hop limit. An invalid one, or 0, becomes 1: no further hop.
func parseHopLimit(text string) int {
	n, err := strconv.ParseUint(text, 10, 8)
	if err != nil || n == 0 {
		return 1
	}
	return int(n)
}
