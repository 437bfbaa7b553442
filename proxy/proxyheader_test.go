package proxy

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"imapgate/internal/event"
	"imapgate/internal/limit"
	"imapgate/internal/testkit"
)

const proxyV2Signature = "\r\n\r\n\x00\r\nQUIT\n"

// proxyV2 returns a header of version 2: version and command, family and transport, and
// what follows the length.
func proxyV2(command, family byte, rest string) string {
	size := binary.BigEndian.AppendUint16(nil, uint16(len(rest))) // short
	return proxyV2Signature + string([]byte{command, family}) + string(size) + rest
}

func tlv(kind byte, value string) string {
	return string(binary.BigEndian.AppendUint16([]byte{kind}, uint16(len(value)))) + value // short
}

const (
	addresses4 = "\xc0\x00\x02\x01\xc0\x00\x02\x02\x12\x67\x00\x8f" // 192.0.2.1:4711 to 192.0.2.2:143
	local4     = "\x7f\x00\x00\x01\x7f\x00\x00\x01\x12\x67\x00\x8f"
	claimed4   = "192.0.2.1:4711"
)

func ipv6Addresses() string {
	src, dst := netip.MustParseAddr("2001:db8::1").As16(), netip.MustParseAddr("2001:db8::2").As16()
	return string(src[:]) + string(dst[:]) + addresses4[8:]
}

// withChecksum returns a header with its checksum in the last four bytes.
func withChecksum(rest string) string {
	h := []byte(proxyV2(0x21, 0x11, rest+tlv(3, "\x00\x00\x00\x00")))
	sum := crc32.Checksum(h, crc32.MakeTable(crc32.Castagnoli))
	return string(binary.BigEndian.AppendUint32(h[:len(h)-4], sum))
}

// validHeaders returns headers and the client address in them; "" for the peer itself.
func validHeaders() map[string]string {
	return map[string]string{
		"PROXY TCP4 192.0.2.1 192.0.2.2 4711 143\r\n":               claimed4,
		"PROXY TCP4 127.0.0.1 127.0.0.1 4711 143\r\n":               "127.0.0.1:4711",
		"PROXY TCP4 255.255.255.255 192.0.2.2 65535 0\r\n":          "255.255.255.255:65535",
		"PROXY TCP6 2001:db8::1 2001:db8::2 4711 143\r\n":           "[2001:db8::1]:4711",
		"PROXY TCP6 ::ffff:192.0.2.1 ::ffff:192.0.2.2 4711 143\r\n": claimed4,
		"PROXY UNKNOWN\r\n": "",
		"PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n": "",
		proxyV2(0x21, 0x11, addresses4):                                 claimed4,
		proxyV2(0x21, 0x21, ipv6Addresses()):                            "[2001:db8::1]:4711",
		proxyV2(0x21, 0x11, local4):                                     "127.0.0.1:4711",
		proxyV2(0x20, 0x00, ""):                                         "", // LOCAL, as health checks send it
		proxyV2(0x20, 0x11, addresses4):                                 "",
		proxyV2(0x20, 0x11, ""):                                         "",
		proxyV2(0x21, 0x31, strings.Repeat("\x00", 216)):                "",
		proxyV2(0x21, 0x11, addresses4+tlv(1, "imap")+tlv(4, "")+tlv(2, "mail.example.org")): claimed4,
		proxyV2(0x21, 0x11, addresses4+tlv(0x20, strings.Repeat("c", 3000))):                 claimed4,
		withChecksum(addresses4):                          claimed4,
		withChecksum(addresses4 + tlv(4, "\x00\x00\x00")): claimed4,
	}
}

// invalidHeaders returns malformed or modified headers.
func invalidHeaders() []string {
	broken := []byte(withChecksum(addresses4))
	broken[17] ^= 1
	return []string{
		"PROXY TCP4 192.0.2.1 192.0.2.2 4711 143\n",
		"PROXY TCP4 192.0.2.1 192.0.2.2 4711 65536\r\n", "PROXY TCP4 192.0.2.1 192.0.2.2 65536 143\r\n",
		"PROXY TCP4 192.0.2.1 192.0.2.2 04711 143\r\n", "PROXY TCP4 192.0.2.1 192.0.2.2 -1 143\r\n", "PROXY TCP4 192.0.2.1 192.0.2.2 +1 143\r\n",
		"PROXY TCP4 192.0.2.01 192.0.2.2 4711 143\r\n", "PROXY TCP4 2001:db8::1 2001:db8::2 4711 143\r\n",
		"PROXY TCP6 192.0.2.1 192.0.2.2 4711 143\r\n", "PROXY TCP6 fe80::1%eth0 fe80::2 4711 143\r\n",
		"PROXY TCP4 192.0.2.1 192.0.2.2 4711\r\n", "PROXY TCP4 192.0.2.1 192.0.2.2 4711 143 x\r\n", "PROXY  TCP4 192.0.2.1 192.0.2.2 4711 143\r\n",
		"PROXY UDP4 192.0.2.1 192.0.2.2 4711 143\r\n", "PROXY\r\n", "PROXY \r\n", "PROXYTCP4\r\n", "PROXY TCP4 192.0.2.1\x00 192.0.2.2 1 1\r\n",
		"PROXY UNKNOWN " + strings.Repeat("x", 93) + "\r\n", "PROXY TCP4 " + strings.Repeat("1", 200), "proxy tcp4 192.0.2.1 192.0.2.2 4711 143\r\n",
		proxyV2(0x11, 0x11, addresses4), proxyV2(0x31, 0x11, addresses4), proxyV2(0x22, 0x11, addresses4), proxyV2(0x21, 0x41, addresses4), proxyV2(0x21, 0x13, addresses4),
		proxyV2(0x21, 0x11, addresses4[:11]), proxyV2(0x21, 0x21, addresses4), proxyV2(0x21, 0x00, ""), proxyV2(0x21, 0x11, ""),
		proxyV2(0x21, 0x11, strings.Repeat("\xff", 5000)), proxyV2(0x21, 0x11, "")[:14] + "\xff\xff" + addresses4, proxyV2(0x21, 0x11, addresses4+"\x01"), proxyV2(0x21, 0x11, addresses4+"\x01\x00\x05imap"),
		proxyV2(0x21, 0x11, addresses4+tlv(3, "\x00\x00\x00\x00")), proxyV2(0x21, 0x11, addresses4+tlv(3, "\x00")), string(broken),
		"a NOOP\r\n", "\x16\x03\x01\x00\x05", "GET / HTTP/1.1\r\n", "\r\n\r\n\x00\r\nQUIX\n\x21\x11\x00\x0c" + addresses4,
	}
}

func TestProxyHeaderIsReadAcrossSegments(t *testing.T) {
	b := newHarness(t, openTestBackend(t).addr())
	for header, claimed := range validHeaders() {
		for _, cut := range []string{"whole", "bytes", "following"} {
			c := b.dial("balanced-none")
			if cut == "bytes" {
				for i := range len(header) {
					c.write(header[i : i+1])
				}
				c.write("a NOOP\r\n")
			} else {
				c.write(header + "a NOOP\r\n")
			}
			c.expectLine("* OK …")
			c.expectLine("a OK Nothing done.")
			c.close()
			if r := b.lastRecord("connection_refused", c); r.field("client") != claimed || r.field("peer") != c.nc.LocalAddr().String() {
				t.Errorf("%.60q: %v, want %q", header, r, claimed)
			}
		}
	}
}

func TestInvalidProxyHeaderClosesSilently(t *testing.T) {
	b := newHarness(t, openTestBackend(t).addr())
	for _, header := range invalidHeaders() {
		for _, listener := range []string{"balanced-none", "balanced-starttls", "balanced-implicit"} {
			c := b.dial(listener)
			_, _ = io.WriteString(c.nc, header)
			_ = c.nc.(*net.TCPConn).CloseWrite()
			if rest := c.readAll(); rest != "" {
				t.Errorf("%.60q: received %q", header, rest)
			}
			if r := b.lastRecord("connection_refused", c); r.field("reason") != string(event.BadProxyHeader) || r.field("client") != "" {
				t.Errorf("%.60q: %v", header, r)
			}
		}
	}
}

func TestTLSMayFollowProxyHeaderInOneSegment(t *testing.T) {
	m := openTestBackend(t)
	b := newHarness(t, m.addr())
	for header, claimed := range validHeaders() {
		c := b.dial("balanced-implicit")
		c.nc = &headerConn{Conn: c.nc, header: header}
		c.startTLS()
		c.expectLine("* OK …")
		c.write("a LOGIN alice right\r\nb NOOP\r\n")
		c.expectLine("a OK …")
		c.expectLine("b OK Done.")
		c.close()
		if r := b.lastRecord("session_ended", c); r.field("client") != claimed {
			t.Errorf("%.60q: %v", header, r)
		}
	}
}

// headerConn sends a header in one segment with the first bytes.
type headerConn struct {
	net.Conn
	header string
}

func (p *headerConn) Write(b []byte) (int, error) {
	head := len(p.header)
	n, err := p.Conn.Write(append([]byte(p.header), b...))
	p.header = ""
	return max(n-head, 0), err
}

func TestCommandsAfterProxyHeaderAreKeptAndInjectionIsDetected(t *testing.T) {
	b := newHarness(t, openTestBackend(t).addr())
	const header = "PROXY TCP4 192.0.2.1 192.0.2.2 4711 143\r\n"
	c := b.dial("balanced-starttls")
	c.write(header + "a STARTTLS\r\n")
	c.expectLine("* OK …")
	c.expectLine("a OK …")
	c.startTLS()
	c.write("b LOGIN alice right\r\n")
	c.expectLine("b OK …")
	c.close()
	c = b.dial("balanced-starttls")
	c.write(header + "a STARTTLS\r\nb NOOP\r\n")
	c.expectLine("* OK …")
	c.expectEOF()
	if r := b.lastRecord("connection_refused", c); r.field("reason") != string(event.StartTLSInjection) {
		t.Error(r)
	}
	c = b.dial("balanced-none")
	c.write(header + "a LOGIN alice right\r\nb NOOP\r\n" + strings.Repeat("x", 3000) + "\r\n")
	c.expectLine("* OK …")
	c.expectLine("a OK …")
	c.expectLine("b OK Done.")
	c.expectLine("xxx… OK Done.")
}

func TestSecondProxyHeaderIsClientInput(t *testing.T) {
	b := newHarness(t, openTestBackend(t).addr())
	c := b.dial("balanced-none")
	c.write("PROXY TCP4 192.0.2.1 192.0.2.2 4711 143\r\nPROXY TCP4 192.0.2.9 192.0.2.2 4711 143\r\n")
	c.expectLine("* OK …")
	c.expectLine("PROXY BAD …")
	c.close()
	if r := b.lastRecord("connection_refused", c); r.field("client") != claimed4 {
		t.Error(r)
	}
	c = b.dial("balanced-implicit")
	c.write(proxyV2(0x21, 0x11, addresses4) + proxyV2(0x21, 0x11, local4))
	c.readAll()
	if r := b.lastRecord("connection_refused", c); r.field("client") != claimed4 || r.field("reason") != string(event.HandshakeFailed) {
		t.Error(r)
	}
}

func TestProxyHeaderFromUntrustedPeerIsRefused(t *testing.T) {
	b := newHarness(t, openTestBackend(t).addr(), func(s *harnessConfig) {
		for i := range s.cfg.Listeners {
			if s.cfg.Listeners[i].ProxyProtocol != nil {
				s.cfg.Listeners[i].ProxyProtocol.Trusted = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
			}
		}
	})
	for _, listener := range []string{"none", "balanced-none"} {
		c := b.dialGreeted(listener)
		c.write("PROXY TCP4 192.0.2.1 192.0.2.2 4711 143\r\n")
		c.expectLine("PROXY BAD …")
		c.write("a LOGIN alice right\r\n") // an ordinary client whose user is known
		c.expectLine("a OK …")
		c.close()
		if r := b.lastRecord("session_ended", c); r.field("client") != "" {
			t.Error(r)
		}
	}
	for _, listener := range []string{"implicit", "balanced-implicit"} {
		c := b.dial(listener)
		c.write("PROXY TCP4 192.0.2.1 192.0.2.2 4711 143\r\n")
		c.expectNone("* ")
		if r := b.lastRecord("connection_refused", c); r.field("client") != "" || r.field("reason") != string(event.HandshakeFailed) {
			t.Error(r)
		}
	}
}

// withTrustedBalancer is a listener with a balancer at a trusted address, whose clients
// include proxies in 192.0.2.0/24.
func withTrustedBalancer(s *harnessConfig) {
	trusted := append([]netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}, loopback...)
	s.cfg.Listeners = append(s.cfg.Listeners, ListenerSettings{Name: "both", Address: "127.0.0.1:0", TLS: event.NoTLS, ProxyProtocol: &ProxyProtocol{Trusted: loopback}, TrustedNetworks: trusted})
}

func TestIDTrustFollowsProxyHeaderAddress(t *testing.T) {
	b := newHarness(t, openTestBackend(t).addr(), withTrustedBalancer)
	for _, x := range []struct{ header, claim, want string }{
		{"PROXY TCP4 198.51.100.66 192.0.2.2 4711 143", "203.0.113.5", "198.51.100.66:4711"},
		{"PROXY TCP4 198.51.100.66 192.0.2.2 4711 143", "127.0.0.1", "198.51.100.66:4711"},
		{"PROXY UNKNOWN", "203.0.113.5", ""},
		{"PROXY TCP4 192.0.2.1 192.0.2.2 4711 143", "203.0.113.5", "203.0.113.5:0"},
		{"PROXY TCP4 192.0.2.1 192.0.2.2 4711 143", "::ffff:127.0.0.1", claimed4}, // the proxy's own host
		{"PROXY TCP4 192.0.2.1 192.0.2.2 4711 143", "::", claimed4},
	} {
		c := b.dial("both")
		c.write(x.header + "\r\na ID (\"x-originating-ip\" \"" + x.claim + "\")\r\n")
		c.expectLine("* OK …")
		c.expectLine("* ID …")
		c.expectLine("a OK …")
		c.close()
		if r := b.lastRecord("connection_refused", c); r.field("client") != x.want {
			t.Errorf("%v: %v", x, r)
		}
	}
}

func TestClaimedAddressGrantsNoExemption(t *testing.T) {
	b := newHarness(t, openTestBackend(t).addr(), withTrustedBalancer, withLimits(limit.Config{
		Settings: limit.Settings{Connections: limit.Connections{PreauthPerAddress: 1}, ExemptNetworks: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}},
	}))
	claiming := func(address string) *client {
		c := b.dial("both")
		c.write("PROXY TCP4 " + address + " 127.0.0.1 4711 143\r\n")
		return c
	}
	for _, address := range []string{"198.51.100.66", "192.0.2.1"} { // an ordinary client, and a trusted proxy
		first := claiming(address)
		first.expectLine("* OK …")
		first.write("a ID (\"x-originating-ip\" \"127.0.0.1\")\r\n")
		first.expectLine("* ID …")
		first.expectLine("a OK …")
		claiming(address).expectLine("* BYE [UNAVAILABLE] Too many connections.")
		first.close()
	}
}

func TestTrustedProxyAsClientIsCounted(t *testing.T) {
	b := newHarness(t, openTestBackend(t).addr(), withLimits(limit.Config{Settings: limit.Settings{Connections: limit.Connections{PreauthPerAddress: 1}}}))
	first, second := b.dialGreeted("trusting-none"), b.dialGreeted("trusting-none")
	for _, c := range []*client{first, second} {
		c.write("a ID (\"x-originating-ip\" \"::1\")\r\n")
		c.expectLine("* ID …")
		c.expectLine("a OK …")
	}
	second.expectLine("* BYE [UNAVAILABLE] Too many connections.")
	first.close()
}

func TestProxyHeaderTimeout(t *testing.T) {
	b := newHarness(t, openTestBackend(t).addr())
	start := time.Now()
	clients := []*client{b.dial("balanced-none"), b.dial("balanced-implicit"), b.dial("balanced-starttls")}
	clients[1].write(proxyV2Signature)
	clients[2].write("PROXY TCP4 ")
	for _, c := range clients {
		c.expectEOF()
		if r := b.lastRecord("connection_refused", c); r.field("reason") != string(event.BadProxyHeader) {
			t.Error(r)
		}
	}
	if took := time.Since(start); took < proxyTimeout {
		t.Errorf("it took %v", took)
	}
}

func FuzzProxyHeader(f *testing.F) {
	for header := range validHeaders() {
		f.Add(header + "following")
	}
	for _, header := range invalidHeaders() {
		f.Add(header)
	}
	f.Fuzz(func(t *testing.T, text string) {
		r := bufio.NewReaderSize(strings.NewReader(text), maxProxyHeader)
		header, err := readProxyHeader(r)
		slow := bufio.NewReaderSize(iotest.OneByteReader(strings.NewReader(text)), maxProxyHeader)
		if _, again := readProxyHeader(slow); (err == nil) != (again == nil) {
			t.Fatalf("whole: %v; byte by byte: %v", err, again)
		}
		if err != nil {
			return
		}
		rest, err := io.ReadAll(r)
		following, err2 := io.ReadAll(slow)
		if testkit.NoError(t, errors.Join(err, err2)); !strings.HasSuffix(text, string(rest)) || string(rest) != string(following) {
			t.Fatalf("after the header %q, or %q", rest, following)
		}
		raw := text[:len(text)-len(rest)]
		if strings.HasPrefix(raw, "PROXY") && (len(raw) > 107 || !strings.HasSuffix(raw, "\r\n")) {
			t.Fatalf("read %q", raw)
		}
		again, err := header.Format()
		testkit.NoError(t, err)
		back, err := readProxyHeader(bufio.NewReaderSize(bytes.NewReader(again), maxProxyHeader))
		if err != nil && !errors.Is(err, errProxyChecksum) { // LOCAL that had addresses may have been normalised
			t.Fatalf("%q is read, %q is not: %v", raw, again, err)
		}
		if err == nil && !back.EqualsTo(header) {
			t.Fatalf("%q became %q", raw, again)
		}
	})
}
