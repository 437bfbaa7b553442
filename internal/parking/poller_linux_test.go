package parking

import (
	"testing"

	"imapgate/internal/testbed"

	"golang.org/x/sys/unix"
)

// An event that nobody waits for would come again and again, and keep a
// processor busy.
func TestEventIsDeliveredOnce(t *testing.T) {
	s, err := NewPoller()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.Close()
		s.Run() // lets go of what the Set has
	})
	events := make([]unix.EpollEvent, 1)
	told := func() int {
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
	if a, b := told(), told(); a != 1 || b != 0 {
		t.Errorf("told %d times, and %d times again", a, b)
	}
	s.Disarm(&w.Waiter)
	arm(t, s, w, near)
	s.Disarm(&w.Waiter)
	if n := told(); n != 0 {
		t.Errorf("told %d times of a socket that was forgotten", n)
	}
}
