package quiet

import (
	"testing"

	"imapgate/internal/testbed"

	"golang.org/x/sys/unix"
)

// An event that nobody waits for would come again and again, and keep a
// processor busy.
func TestTheKernelTellsOnce(t *testing.T) {
	s, err := NewSet()
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
	say(t, far, "x")
	w := newSleeper()
	wait(t, s, w, near)
	if a, b := told(), told(); a != 1 || b != 0 {
		t.Errorf("told %d times, and %d times again", a, b)
	}
	s.Forget(&w.Waiter)
	wait(t, s, w, near)
	s.Forget(&w.Waiter)
	if n := told(); n != 0 {
		t.Errorf("told %d times of a socket that was forgotten", n)
	}
}
