package proxy

import (
	"bufio"
	"crypto/tls"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"imapgate/internal/event"
	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
)

// dial connects to a listener without starting TLS.
func (b *harness) dial(listener string) *client {
	b.t.Helper()
	before := len(b.records())
	nc, err := net.Dial("tcp", b.addr(listener))
	testkit.NoError(b.t, err)
	b.t.Cleanup(func() { _ = nc.Close() })
	testkit.NoError(b.t, nc.SetDeadline(time.Now().Add(2*testbed.Timeout)))
	return &client{t: b.t, harness: b, nc: nc, r: bufio.NewReader(nc), firstRecord: before}
}

// dialGreeted connects, with TLS if the listener has it, and reads the greeting.
func (b *harness) dialGreeted(listener string) *client {
	b.t.Helper()
	c := b.dial(listener)
	if strings.HasSuffix(listener, string(event.ImplicitTLS)) {
		c.startTLS()
	}
	c.expectLine("* OK [CAPABILITY …] IMAP ready.")
	if strings.HasSuffix(listener, string(event.StartTLS)) {
		c.write("tls STARTTLS\r\n")
		c.expectLine("tls OK Begin TLS negotiation now.")
		c.startTLS()
	}
	return c
}

// client is the client's end of a connection.
type client struct {
	t       testing.TB
	harness *harness
	nc      net.Conn
	r       *bufio.Reader

	firstRecord int // number of audit records at connect: an older client may have had the same port
}

func (c *client) startTLS() {
	c.t.Helper()
	testkit.NoError(c.t, c.handshake(&tls.Config{}))
}

func (c *client) handshake(cfg *tls.Config) error {
	cfg.RootCAs, cfg.ServerName = c.harness.rootCAs, "localhost"
	secure := tls.Client(c.nc, cfg)
	if err := secure.Handshake(); err != nil {
		return err
	}
	c.nc, c.r = secure, bufio.NewReader(secure)
	return nil
}

func (c *client) write(text string) {
	c.t.Helper()
	if _, err := io.WriteString(c.nc, text); err != nil {
		c.t.Fatalf("write %.60q: %v", text, err)
	}
}

// expectLine reads a line and compares it with a pattern in which … matches anything.
func (c *client) expectLine(want string) {
	c.t.Helper()
	line, err := c.r.ReadString('\n')
	if err != nil || !matchesPattern(want+"\r\n", line) {
		c.t.Fatalf("received %.200q, %v; want %q\n%s", line, err, want, c.harness.logs)
	}
}

// expectEOF expects the connection to be closed without another byte.
func (c *client) expectEOF() {
	c.t.Helper()
	rest, err := io.ReadAll(c.r)
	if len(rest) > 0 || os.IsTimeout(err) {
		c.t.Fatalf("received %.200q, %v; want the end\n%s", rest, err, c.harness.logs)
	}
}

func (c *client) close() { _ = c.nc.Close() }

// readAll reads until the connection ends, in whichever way.
func (c *client) readAll() string {
	c.t.Helper()
	rest, err := io.ReadAll(c.r)
	if os.IsTimeout(err) {
		c.t.Fatalf("received %.200q, and no end", rest)
	}
	return string(rest)
}

// expectNone reads to the end and expects none of the words.
func (c *client) expectNone(words ...string) {
	c.t.Helper()
	rest := c.readAll()
	for _, w := range words {
		if strings.Contains(rest, w) {
			c.t.Errorf("received %q", rest)
		}
	}
}

// matchesPattern compares text with a pattern in which … matches anything.
func matchesPattern(pattern, text string) bool {
	parts := strings.Split(pattern, "…")
	if len(parts) == 1 {
		return pattern == text
	}
	last := parts[len(parts)-1]
	if !strings.HasPrefix(text, parts[0]) || !strings.HasSuffix(text, last) {
		return false
	}
	text = text[len(parts[0]):]
	for _, part := range parts[1:] {
		i := strings.Index(text, part)
		if i < 0 {
			return false
		}
		text = text[i+len(part):]
	}
	return true
}

// reset closes with a RST.
func (c *client) reset() {
	nc := c.nc
	if under, ok := nc.(interface{ NetConn() net.Conn }); ok {
		nc = under.NetConn()
	}
	_ = nc.(*net.TCPConn).SetLinger(0)
	_ = nc.Close()
}
