package parking

import (
	"testing"

	"imapgate/internal/testbed"

	"golang.org/x/sys/unix"
)

// An event without a Waiter would be reported over and over, and keep a CPU busy.
func TestEventIsDeliveredOnce(t *testing.T) {
	s, err := NewPoller()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.Close()
		s.Run() // frees the Poller's descriptors
	})
	events := make([]unix.EpollEvent, 1)
	countEvents := func() int {
		n, err := unix.EpollWait(s.epoll, events, 0)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	near, far := testbed.TCPPair(t)
	write(t, far, "x")
	w := newTestWaker()
	arm(t, s, w, near)
	if a, b := countEvents(), countEvents(); a != 1 || b != 0 {
		t.Errorf("%d events, and %d more", a, b)
	}
	s.Disarm(&w.Waiter)
	arm(t, s, w, near)
	s.Disarm(&w.Waiter)
	if n := countEvents(); n != 0 {
		t.Errorf("%d events of a disarmed socket", n)
	}
}
