package splice

import (
	"net"
	"os"
	"syscall"
	"testing"
	"time"
)

// unwatched is a socket that the kernel has no room to watch.
type unwatched struct{ *net.TCPConn }

func (unwatched) SyscallConn() (syscall.RawConn, error) { return nil, syscall.ENOSPC }

func TestASessionThatCannotParkGoesOn(t *testing.T) {
	s := newSet(t, testConfig())
	client, front := tcpPair(t)
	back, backend := tcpPair(t)
	result := make(chan Result, 1)
	r := s.Start(Side{unwatched{front.(*net.TCPConn)}, nil}, Side{back, nil}, func(r Result) { result <- r })
	for range 2 {
		// The other direction parks, and this one has had the time to try.
		eventually(t, "the session to try", func() bool { return s.idle.len() == 1 && r.up.state.Load() == still })
		say(t, client, "a NOOP\r\n")
		hear(t, backend, "a NOOP\r\n")
		say(t, backend, "a OK\r\n")
		hear(t, client, "a OK\r\n")
	}
	s.tick.Add(ticks(2 * time.Hour))
	if got := <-result; got.Reason != Idle {
		t.Errorf("ended by %s (%v)", got.Reason, got.Err)
	}
}

// The number of connections is bounded by the descriptors they need: two each.
func TestAChattingSessionHoldsNoDescriptorButItsSockets(t *testing.T) {
	cfg := testConfig()
	cfg.Quiet = time.Hour
	s := newSet(t, cfg)
	open := func() int {
		list, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	before, sessions := open(), 50
	for range sessions {
		b := newBed(t, s, "plain-plain")
		say(t, b.client, "a NOOP\r\n")
		hear(t, b.backend, "a NOOP\r\n")
		say(t, b.backend, "a OK\r\n")
		hear(t, b.client, "a OK\r\n")
	}
	if n := open() - before; n > 4*sessions+10 { // both ends are ours
		t.Errorf("%d sessions over %d sockets hold %d descriptors", sessions, 4*sessions, n)
	}
}
