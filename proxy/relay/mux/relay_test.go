package mux

import (
	"context"
	"fmt"
	"net"
	"strings"
	"testing"

	"go.uber.org/zap"

	"imapgate/internal/event"
	"imapgate/internal/identity"
	"imapgate/internal/imap"
	"imapgate/internal/parking"
	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
	"imapgate/proxy/relay"
	"imapgate/proxy/relay/mux/command"
	"imapgate/proxy/relay/mux/lease"
	"imapgate/proxy/relay/mux/mailbox"
	"imapgate/proxy/relay/mux/wire"
	"imapgate/proxy/upstream"
)

// relayTest is a session that runs only relay, between two sockets.
type relayTest struct {
	*session
	backend net.Conn
	drained chan struct{} // closed when the client's connection has ended
}

func newRelayTest(t testing.TB) *relayTest {
	t.Helper()
	s, err := newStub(nil, splitters["whole"])
	testkit.NoError(t, err)
	t.Cleanup(s.close)
	up := upstream.New(testbed.WithDefaults(upstream.Config{Name: "stub", Settings: upstream.Settings{Address: s.l.Addr().String(), TLS: event.NoTLS}}), upstream.Hooks{}, zap.NewNop())
	name, err := identity.Canonicalize(user, "")
	testkit.NoError(t, err)
	login, err := up.Login(context.Background(), upstream.Request{User: name, Password: identity.NewSecret("right")})
	testkit.NoError(t, err)
	peer, err := s.peer(1)
	testkit.NoError(t, err)
	h := harness{t: t}
	gatewayEnd, clientEnd := h.socketPair()
	shared := &wire.Resources{Buffers: parking.NewBufferPool(), Clock: relay.NewClock()}
	r := &relayTest{backend: peer.conn, drained: make(chan struct{})}
	r.session = &session{exchange: exchange{mailbox: &mailbox.Mailbox{}}}
	r.client.clientWork, r.upstream.upstreamWork, r.upstream.Conn = new(clientWork), new(upstreamWork), new(lease.Conn)
	r.session.client.Open(gatewayEnd, nil, imap.Commands, shared)
	r.upstream.Conn.Open(login, shared)
	testkit.NoError(t, r.mailbox.ReadUntagged(imap.Segment{Bytes: []byte("* 9 EXISTS\r\n"), End: true}))
	go r.drain(clientEnd)
	t.Cleanup(func() {
		_, _ = r.upstream.Close(), gatewayEnd.Close()
		<-r.drained
	})
	return r
}

// drain reads the client's connection until it ends.
func (r *relayTest) drain(clientEnd net.Conn) {
	defer close(r.drained)
	defer func() { _ = clientEnd.Close() }()
	for buf := make([]byte, 64<<10); ; {
		if _, err := clientEnd.Read(buf); err != nil {
			return
		}
	}
}

// relayAll relays data to the last byte.
func (r *relayTest) relayAll(t testing.TB, data []byte) {
	if _, err := r.backend.Write(data); err != nil {
		t.Fatal(err)
	}
	_, before := r.client.ByteCounts()
	for out := before; out < before+int64(len(data)); _, out = r.client.ByteCounts() {
		if err := r.upstream.AwaitInput(); err != nil {
			t.Fatal(err)
		}
		if err := r.relay(); err != nil {
			t.Fatal(err)
		}
	}
}

// responseSamples returns the most frequent kinds of responses.
func responseSamples() map[string][]byte {
	return map[string][]byte{
		"line":    []byte("* 3 FETCH (FLAGS (\\Seen) UID 7)\r\n"),
		"lines":   []byte(strings.Repeat("* 3 FETCH (FLAGS (\\Seen) UID 7)\r\n", 100)),
		"exists":  []byte("* 9 EXISTS\r\n* 0 RECENT\r\n* OK [ALERT] x\r\n"),
		"literal": []byte(fmt.Sprintf("* 1 FETCH (BODY[] {%d}\r\n%s FLAGS ())\r\n", 32<<10, strings.Repeat("x", 32<<10))),
	}
}

func TestRelayingALineOrLiteralAllocatesNothing(t *testing.T) {
	for name, data := range responseSamples() {
		r := newRelayTest(t)
		for range 3 { // until the buffer has its final size
			r.relayAll(t, data)
		}
		if n := testing.AllocsPerRun(200, func() { r.relayAll(t, data) }); n > 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

func TestRelayingAnAnswerAllocatesNothing(t *testing.T) {
	r := newRelayTest(t)
	spec := &command.Spec{Name: "NOOP"}
	sent, data := []byte("a1 NOOP\r\n"), []byte("* 9 EXISTS\r\na1 OK done\r\n")
	answer := func() {
		r.upstream.outstanding.add(outstandingCommand{spec: spec, tagLen: len("a1")}, sent)
		r.relayAll(t, data)
	}
	answer()
	if n := testing.AllocsPerRun(200, answer); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkRelay(b *testing.B) {
	for name, data := range responseSamples() {
		b.Run(name, func(b *testing.B) {
			r := newRelayTest(b)
			b.SetBytes(int64(len(data)))
			b.ReportAllocs()
			for b.Loop() {
				r.relayAll(b, data)
			}
		})
	}
}
