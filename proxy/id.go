package proxy

import (
	"net/netip"
	"strconv"
	"strings"

	"imapgate/internal/imap"
	"imapgate/proxy/upstream"
)

// answerID answers ID (RFC 2971). The client's own parameters are kept for the backend's
// ID. Those with which Dovecot's proxy describes a client (x-originating-ip and similar)
// count only from a trusted peer. A hop limit is accepted from any client: it can only end
// a login sooner. It breaks loops of gateways that do not trust each other.
func (c *connection) answerID(cmd imap.Command) error {
	pairs, ok := imap.ParseID(cmd.Args)
	if !ok {
		return c.rejectCommand(cmd.Tag, imap.IDRejected)
	}
	if !c.preauth.idReceived {
		c.preauth.idReceived = true
		c.setClientID(pairs)
		c.client.Record.SetProgram(pairs)
	}
	return c.sendLine(imap.IDResponse + "\r\n" + cmd.Tag + " " + imap.IDDone)
}

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
			if size += len(p[0]) + len(p[1]); size <= upstream.MaxIDBytes {
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
	if containsPeer(c.listener.balancers, c.client.Record.Peer) {
		return c.proxiedAddr.IsValid() && containsPeer(c.listener.TrustedNetworks, c.proxiedAddr)
	}
	return containsPeer(c.listener.TrustedNetworks, c.client.Record.Peer)
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
	c.client.Record.Addr = netip.AddrPortFrom(addr, uint16(n))
}

// parseHopLimit parses a hop limit. An invalid one, or 0, becomes 1: no further hop.
func parseHopLimit(text string) int {
	n, err := strconv.ParseUint(text, 10, 8)
	if err != nil || n == 0 {
		return 1
	}
	return int(n)
}
