package parking

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

// tlsPair returns a client and a server, each over a BufferedConn.
func tlsPair(t testing.TB) (c, s *tls.Conn) {
	t.Helper()
	dialed, accepted := testbed.TCPPair(t)
	return handshake(t, NewBufferedConn(dialed.(*net.TCPConn)), NewBufferedConn(accepted.(*net.TCPConn)))
}

func handshake(t testing.TB, client, server net.Conn) (c, s *tls.Conn) {
	t.Helper()
	cert, err := tlsconf.SelfSigned("localhost")
	if err != nil {
		t.Fatal(err)
	}
	c = tls.Client(client, &tls.Config{
		InsecureSkipVerify:          true, // a test's own certificate
		DynamicRecordSizingDisabled: true, // no small records at the start
	})
	s = tls.Server(server, &tls.Config{Certificates: []tls.Certificate{cert}})
	done := make(chan error, 1)
	go func() { done <- s.Handshake() }()
	if err := errors.Join(c.Handshake(), <-done); err != nil {
		t.Fatal(err)
	}
	return c, s
}

func newPoller(t testing.TB) *Poller {
	t.Helper()
	p, err := NewPoller()
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(p.Run)
	t.Cleanup(func() {
		p.Close()
		wg.Wait()
	})
	return p
}

// testWaker is the Waker of a test's Waiter.
type testWaker struct {
	Waiter
	wakes chan struct{}
}

func newTestWaker() *testWaker {
	return &testWaker{wakes: make(chan struct{}, 1<<16)}
}

func (w *testWaker) Wake() { w.wakes <- struct{}{} }

func (w *testWaker) expectWake(t testing.TB) {
	t.Helper()
	select {
	case <-w.wakes:
	case <-time.After(testbed.Timeout):
		t.Fatal("the Waiter was not woken")
	}
}

func (w *testWaker) expectNoWake(t testing.TB) {
	t.Helper()
	if n := len(w.wakes); n > 0 {
		t.Fatalf("%d wakes too many", n)
	}
}

func arm(t testing.TB, p *Poller, w *testWaker, c net.Conn) {
	t.Helper()
	if err := p.Arm(&w.Waiter, c, w); err != nil {
		t.Fatal(err)
	}
}

// awaitPending returns after p has delivered all earlier events.
func awaitPending(t testing.TB, p *Poller) {
	t.Helper()
	near, far := testbed.TCPPair(t)
	last := newTestWaker()
	write(t, far, "x")
	arm(t, p, last, near)
	last.expectWake(t)
	_ = near.Close()
	p.Disarm(&last.Waiter)
}

func write(t testing.TB, c net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
}

func expectRead(t testing.TB, c net.Conn, want string) {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(testbed.Timeout))
	got := make([]byte, len(want))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != want {
		t.Fatalf("received %.80q, %v; want %.80q", got, err, want)
	}
	_ = c.SetReadDeadline(time.Time{})
}
