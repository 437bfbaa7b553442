package upstream

import (
	"bufio"
	"context"
	"net"
	"strings"
	"testing"

	"go.uber.org/zap"

	"imapgate/internal/event"
	"imapgate/internal/testbed"
)

// instantBackend is a backend that answers every login at once, to measure the gateway's side.
type instantBackend struct {
	l    net.Listener
	done chan struct{}
}

func startInstantBackend(t testing.TB) *instantBackend {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	q := &instantBackend{l, make(chan struct{})}
	go q.accept()
	t.Cleanup(func() { _ = l.Close(); <-q.done })
	return q
}

// accept runs until the listener is closed; it serves one login at a time.
func (q *instantBackend) accept() {
	defer close(q.done)
	r := bufio.NewReaderSize(nil, 4096)
	for {
		nc, err := q.l.Accept()
		if err != nil {
			return
		}
		r.Reset(nc)
		q.serve(nc, r)
		_ = nc.Close()
	}
}

func (q *instantBackend) serve(nc net.Conn, r *bufio.Reader) {
	const caps = "IMAP4rev1 LITERAL+ SASL-IR ID ENABLE IDLE UIDPLUS MOVE UNSELECT NAMESPACE"
	_, _ = nc.Write([]byte("* OK [CAPABILITY " + caps + " AUTH=PLAIN] ready\r\n"))
	id, _ := r.ReadString('\n')
	login, _ := r.ReadString('\n')
	idTag, _, _ := strings.Cut(id, " ")
	tag, _, _ := strings.Cut(login, " ")
	_, _ = nc.Write([]byte("* ID NIL\r\n" + idTag + " OK done\r\n" + tag + " OK [CAPABILITY " + caps + "] in\r\n"))
	_, _ = r.ReadByte()
}

func BenchmarkLogin(b *testing.B) {
	q := startInstantBackend(b)
	backend := New(testbed.WithDefaults(Config{Settings: Settings{Address: q.l.Addr().String(), TLS: event.NoTLS}}), Hooks{}, zap.NewNop())
	req := testRequest(b)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	b.ReportAllocs()
	for b.Loop() {
		conn, err := backend.Login(ctx, req)
		if err != nil {
			b.Fatal(err)
		}
		nc, _ := conn.Detach()
		resetConn(nc)
	}
}

// BenchmarkDial measures the share of the operating system and package net in BenchmarkLogin:
// connect, read once, write once, read once.
func BenchmarkDial(b *testing.B) {
	q := startInstantBackend(b)
	buf := make([]byte, 4096)
	id := []byte("I ID NIL\r\nL AUTHENTICATE PLAIN AGpvZUBleGFtcGxlLm9yZwBDQU5BUlk=\r\n")
	b.ReportAllocs()
	for b.Loop() {
		nc, err := net.Dial("tcp", q.l.Addr().String())
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
