package mux

import (
	"context"
	"fmt"
	"net"
	"strings"
	"testing"

	"go.uber.org/zap"

	"imapgate/internal/identity"
	"imapgate/internal/imap"
	"imapgate/internal/quiet"
	"imapgate/proxy/mux/command"
	"imapgate/proxy/mux/lease"
	"imapgate/proxy/mux/wire"
	"imapgate/proxy/upstream"
)

// relayed is a session of which nothing runs but relay, between two sockets.
type relayed struct {
	*session
	backend net.Conn
	taken   chan struct{} // closed when the client's connection has ended
}

func newRelayed(t testing.TB) *relayed {
	t.Helper()
	s, err := newStub(nil, cuts["whole"])
	must(t, err)
	t.Cleanup(s.close)
	up := upstream.New(upstream.Config{Name: "stub", Address: s.l.Addr().String(), TLSMode: upstream.NoTLS}, upstream.Hooks{}, zap.NewNop())
	who, err := identity.Canon(user, "")
	must(t, err)
	login, err := up.Login(context.Background(), upstream.Request{User: who, Password: identity.NewSecret("right")})
	must(t, err)
	peer, err := s.peer(1)
	must(t, err)
	y := stage{t: t}
	near, far := y.connect()
	shared := &wire.Shared{Buffers: quiet.NewBuffers(), Clock: new(wire.Clock)}
	r := &relayed{backend: peer.conn, taken: make(chan struct{})}
	r.session = &session{work: new(work), up: new(lease.Conn), box: &mailbox{}}
	r.session.client.Open(near, nil, imap.Commands, shared)
	r.up.Open(login, shared)
	r.box.view.Reset(9)
	go r.take(far)
	t.Cleanup(func() {
		_, _ = r.up.Close(), near.Close()
		<-r.taken
	})
	return r
}

// take reads what the client is told. It ends with the connection.
func (r *relayed) take(far net.Conn) {
	defer close(r.taken)
	defer func() { _ = far.Close() }()
	for buf := make([]byte, 64<<10); ; {
		if _, err := far.Read(buf); err != nil {
			return
		}
	}
}

// pass has said passed on, to the last byte.
func (r *relayed) pass(t testing.TB, said []byte) {
	if _, err := r.backend.Write(said); err != nil {
		t.Fatal(err)
	}
	_, before := r.client.Counts()
	for out := before; out < before+int64(len(said)); _, out = r.client.Counts() {
		if err := r.up.Wait(); err != nil {
			t.Fatal(err)
		}
		if err := r.relay(); err != nil {
			t.Fatal(err)
		}
	}
}

// flows are what a backend says most.
func flows() map[string][]byte {
	return map[string][]byte{
		"line":    []byte("* 3 FETCH (FLAGS (\\Seen) UID 7)\r\n"),
		"lines":   []byte(strings.Repeat("* 3 FETCH (FLAGS (\\Seen) UID 7)\r\n", 100)),
		"exists":  []byte("* 9 EXISTS\r\n* 0 RECENT\r\n* OK [ALERT] x\r\n"),
		"literal": []byte(fmt.Sprintf("* 1 FETCH (BODY[] {%d}\r\n%s FLAGS ())\r\n", 32<<10, strings.Repeat("x", 32<<10))),
	}
}

func TestARelayedLineOrLiteralCostsNoMemory(t *testing.T) {
	for name, said := range flows() {
		r := newRelayed(t)
		for range 3 { // the buffer that suits
			r.pass(t, said)
		}
		if n := testing.AllocsPerRun(200, func() { r.pass(t, said) }); n > 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

func TestARelayedAnswerCostsNoMemory(t *testing.T) {
	r := newRelayed(t)
	spec := &command.Spec{Name: "NOOP"}
	sent, said := []byte("a1 NOOP\r\n"), []byte("* 9 EXISTS\r\na1 OK done\r\n")
	answer := func() {
		r.sent.add(entry{spec: spec, tag: len("a1")}, sent)
		r.pass(t, said)
	}
	answer()
	if n := testing.AllocsPerRun(200, answer); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkRelay(b *testing.B) {
	for name, said := range flows() {
		b.Run(name, func(b *testing.B) {
			r := newRelayed(b)
			b.SetBytes(int64(len(said)))
			b.ReportAllocs()
			for b.Loop() {
				r.pass(b, said)
			}
		})
	}
}
