package quiet

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"imapgate/internal/testbed"
	"imapgate/tlsconf"
)

// tlsPair is a client and a server with a Socket under each.
func tlsPair(t testing.TB) (c, s *tls.Conn) {
	t.Helper()
	dialed, accepted := testbed.TCPPair(t)
	return handshake(t, NewSocket(dialed.(*net.TCPConn)), NewSocket(accepted.(*net.TCPConn)))
}

func handshake(t testing.TB, client, server net.Conn) (c, s *tls.Conn) {
	t.Helper()
	cert, err := tlsconf.SelfSigned("localhost")
	if err != nil {
		t.Fatal(err)
	}
	c = tls.Client(client, &tls.Config{
		InsecureSkipVerify:          true, // a test's own certificate
		DynamicRecordSizingDisabled: true, // no small records in the beginning
	})
	s = tls.Server(server, &tls.Config{Certificates: []tls.Certificate{cert}})
	done := make(chan error, 1)
	go func() { done <- s.Handshake() }()
	if err := errors.Join(c.Handshake(), <-done); err != nil {
		t.Fatal(err)
	}
	return c, s
}

func newSet(t testing.TB) *Set {
	t.Helper()
	s, err := NewSet()
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(s.Run)
	t.Cleanup(func() {
		s.Close()
		wg.Wait()
	})
	return s
}

// sleeper is whom a Waiter wakes.
type sleeper struct {
	Waiter
	woken chan struct{}
}

func newSleeper() *sleeper {
	return &sleeper{woken: make(chan struct{}, 1<<16)}
}

func (w *sleeper) Wake() { w.woken <- struct{}{} }

func (w *sleeper) wakes(t testing.TB) {
	t.Helper()
	select {
	case <-w.woken:
	case <-time.After(testbed.Patience):
		t.Fatal("nobody woke the Waiter")
	}
}

func (w *sleeper) sleeps(t testing.TB) {
	t.Helper()
	if n := len(w.woken); n > 0 {
		t.Fatalf("%d wakes too many", n)
	}
}

func wait(t testing.TB, s *Set, w *sleeper, c net.Conn) {
	t.Helper()
	if err := s.Wait(&w.Waiter, c, w); err != nil {
		t.Fatal(err)
	}
}

// settled is when s has told of everything that came before.
func settled(t testing.TB, s *Set) {
	t.Helper()
	near, far := testbed.TCPPair(t)
	last := newSleeper()
	say(t, far, "x")
	wait(t, s, last, near)
	last.wakes(t)
	_ = near.Close()
	s.Forget(&last.Waiter)
}

func say(t testing.TB, c net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
}

func hear(t testing.TB, c net.Conn, want string) {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(testbed.Patience))
	got := make([]byte, len(want))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != want {
		t.Fatalf("heard %.80q, %v; want %.80q", got, err, want)
	}
	_ = c.SetReadDeadline(time.Time{})
}
