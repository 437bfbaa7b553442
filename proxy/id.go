package proxy

import (
	"net/netip"
	"strconv"
	"strings"

	"imapgate/internal/imap"
)

// Bounds of ID: RFC 2971 §3.3, and what is passed on to a backend.
const (
	maxIDPairs     = 30
	maxIDKey       = 30
	maxIDValue     = 1024
	maxForwardedID = 256 // bytes of all keys and values that are passed on
)

// answerID is ID (RFC 2971). The client's own words are kept for the backend's ID;
// what Dovecot's proxy says of a client (x-originating-ip and its kin) counts
// only from a trusted peer. A hop limit is heeded from anybody: it can only end
// a login sooner, and so ends circles of gateways that do not trust each other.
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

// idPairs reads "(" string SP nstring … ")" or NIL.
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

// setClientID keeps what the client said of itself, and heeds the parameters of a
// proxy in front.
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

// isTrustedProxy says whether the client is a trusted proxy. Behind a PROXY header
// that is for the address in it: the peer is the balancer, and anybody may be behind
// it. A header without an address makes nobody trusted.
func (c *connection) isTrustedProxy() bool {
	if containsPeer(c.listener.ProxyTrusted, c.client.Peer) {
		return c.proxiedAddr.IsValid() && containsPeer(c.listener.Trusted, c.proxiedAddr)
	}
	return containsPeer(c.listener.Trusted, c.client.Peer)
}

// setClientAddr takes the client's address from a trusted proxy. Loopback is the proxy's
// own machine: the client is who speaks, and is counted as that; taken for ours, it
// would be exempt from limits here and trusted by the backend.
func (c *connection) setClientAddr(addr netip.Addr, port string) {
	if addr.IsLoopback() || addr.IsUnspecified() || addr.IsMulticast() {
		c.preauth.peerIsClient = true
		return
	}
	n, _ := strconv.ParseUint(port, 10, 16) // 0 when it is not said
	c.client.Addr = netip.AddrPortFrom(addr, uint16(n))
}

// parseHopLimit reads a hop limit; what is none, or 0, leaves no hop.
func parseHopLimit(text string) int {
	n, err := strconv.ParseUint(text, 10, 8)
	if err != nil || n == 0 {
		return 1
	}
	return int(n)
}
