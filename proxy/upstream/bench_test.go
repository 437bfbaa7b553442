package upstream

import (
	"context"
	"net"
	"testing"

	"go.uber.org/zap"

	"imapgate/internal/event"
	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
)

// serveInstantly answers a login at once, to measure the gateway's side.
func serveInstantly(c *testkit.Conn) {
	const caps = "IMAP4rev1 LITERAL+ SASL-IR ID ENABLE IDLE UIDPLUS MOVE UNSELECT NAMESPACE"
	_ = c.Send("* OK [CAPABILITY " + caps + " AUTH=PLAIN] ready")
	idTag, _, _ := c.ReadCommand()
	tag, _, _ := c.ReadCommand()
	_ = c.Send("* ID NIL", idTag+" OK done", tag+" OK [CAPABILITY "+caps+"] in")
	_, _ = c.R.ReadByte()
}

func BenchmarkLogin(b *testing.B) {
	q := testkit.StartIMAP(b, serveInstantly)
	backend := New(testbed.WithDefaults(Config{Settings: Settings{Address: q.Addr(), TLS: event.NoTLS}}), Hooks{}, zap.NewNop())
	req := testRequest(b)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	b.ReportAllocs()
	for b.Loop() {
		conn, err := backend.Login(ctx, req)
		if err != nil {
			b.Fatal(err)
		}
		nc, _, _ := conn.Detach()
		resetConn(nc)
	}
}

// BenchmarkDial measures the share of the operating system and package net in BenchmarkLogin:
// connect, read once, write once, read once.
func BenchmarkDial(b *testing.B) {
	q := testkit.StartIMAP(b, serveInstantly)
	buf := make([]byte, 4096)
	id := []byte("I ID NIL\r\nL AUTHENTICATE PLAIN AGpvZUBleGFtcGxlLm9yZwBDQU5BUlk=\r\n")
	b.ReportAllocs()
	for b.Loop() {
		nc, err := net.Dial("tcp", q.Addr())
		if err != nil {
			b.Fatal(err)
		}
		_, _ = nc.Read(buf)
		_, _ = nc.Write(id)
		_, _ = nc.Read(buf)
		resetConn(nc)
	}
}

// resetConn resets the connection, so that a long run does not exhaust the ports.
func resetConn(nc net.Conn) {
	_ = nc.(*net.TCPConn).SetLinger(0)
	_ = nc.Close()
}
