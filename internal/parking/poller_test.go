package parking

import (
	"errors"
	"math/rand/v2"
	"net"
	"sync"
	"testing"

	"imapgate/internal/testbed"
)

func TestWaitersWakeForTheirOwnSocket(t *testing.T) {
	s := newPoller(t)
	client, front := testbed.TCPPair(t)
	back, backend := testbed.TCPPair(t)
	up, down := newTestWaker(), newTestWaker()
	for range 3 {
		arm(t, s, up, front)
		arm(t, s, down, back)
		write(t, client, "a NOOP\r\n")
		up.expectWake(t)
		expectRead(t, front, "a NOOP\r\n")
		down.expectNoWake(t)
		write(t, backend, "a OK\r\n")
		down.expectWake(t)
		expectRead(t, back, "a OK\r\n")
		up.expectNoWake(t)
	}
	if n := s.Len(); n != 0 {
		t.Errorf("%d are armed", n)
	}
}

func TestArmingArmedWaiterChangesNothing(t *testing.T) {
	s := newPoller(t)
	near, far := testbed.TCPPair(t)
	w := newTestWaker()
	arm(t, s, w, near)
	if n := testing.AllocsPerRun(100, func() { arm(t, s, w, near) }); n > 0 {
		t.Errorf("%v allocations for nothing", n)
	}
	if n := s.Len(); n != 1 {
		t.Errorf("%d are armed", n)
	}
	write(t, far, "x")
	w.expectWake(t)
	awaitPending(t, s)
	w.expectNoWake(t) // one event, however often it was armed
}

func TestBytesBeforeArmWakeWaiter(t *testing.T) {
	s := newPoller(t)
	near, far := testbed.TCPPair(t)
	w := newTestWaker()
	write(t, far, "xy")
	expectRead(t, near, "x")
	for range 3 {
		arm(t, s, w, near)
		w.expectWake(t) // until it is read
	}
}

func TestPeerCloseWakesWaiter(t *testing.T) {
	s := newPoller(t)
	for name, hangUp := range map[string]func(c *net.TCPConn){
		"FIN": func(c *net.TCPConn) { _ = c.CloseWrite() },
		"RST": func(c *net.TCPConn) { _, _ = c.SetLinger(0), c.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			near, far := testbed.TCPPair(t)
			before, after := newTestWaker(), newTestWaker()
			arm(t, s, before, near)
			hangUp(far.(*net.TCPConn))
			before.expectWake(t)
			s.Disarm(&before.Waiter)
			arm(t, s, after, near)
			after.expectWake(t)
		})
	}
}

func TestWaiterCanChangeSocket(t *testing.T) {
	s := newPoller(t)
	w := newTestWaker()
	for name, leave := range map[string]func(old net.Conn){
		"forgotten, then closed": func(old net.Conn) { s.Disarm(&w.Waiter); _ = old.Close() },
		"closed, then forgotten": func(old net.Conn) { _ = old.Close(); s.Disarm(&w.Waiter) },
		"kept open":              func(net.Conn) { s.Disarm(&w.Waiter) },
	} {
		t.Run(name, func(t *testing.T) {
			old, oldFar := testbed.TCPPair(t)
			arm(t, s, w, old)
			leave(old)
			near, far := testbed.TCPPair(t) // may reuse the old one's descriptor
			arm(t, s, w, near)
			_, _ = oldFar.Write([]byte("x")) // the peer may be gone
			awaitPending(t, s)
			w.expectNoWake(t)
			write(t, far, "x")
			w.expectWake(t)
			s.Disarm(&w.Waiter)
			if n := s.Len(); n != 0 {
				t.Errorf("%d are armed", n)
			}
		})
	}
}

func TestSocketCanChangeWaiter(t *testing.T) {
	s := newPoller(t)
	near, far := testbed.TCPPair(t)
	session, pool := newTestWaker(), newTestWaker()
	for range 3 {
		arm(t, s, session, near)
		s.Disarm(&session.Waiter)
		arm(t, s, pool, near)
		write(t, far, "x")
		pool.expectWake(t)
		expectRead(t, near, "x")
		s.Disarm(&pool.Waiter)
	}
	session.expectNoWake(t)
}

func TestArmFailsOnClosedSocket(t *testing.T) {
	s := newPoller(t)
	near, _ := testbed.TCPPair(t)
	w := newTestWaker()
	_ = near.Close()
	if err := s.Arm(&w.Waiter, near, w); !errors.Is(err, net.ErrClosed) {
		t.Errorf("waits for a closed socket: %v", err)
	}
	near, far := testbed.TCPPair(t)
	arm(t, s, w, near) // w can be used again
	write(t, far, "x")
	w.expectWake(t)
	_ = near.Close()
	if err := s.Arm(&w.Waiter, near, w); !errors.Is(err, net.ErrClosed) || s.Len() != 0 {
		t.Errorf("waits for a closed socket: %v; %d are armed", err, s.Len())
	}
}

func TestArmPanicsOnSecondSocket(t *testing.T) {
	s := newPoller(t)
	one, _ := testbed.TCPPair(t)
	two, _ := testbed.TCPPair(t)
	w := newTestWaker()
	arm(t, s, w, one)
	defer s.Disarm(&w.Waiter)
	defer func() {
		if recover() == nil {
			t.Error("a Waiter waits for two sockets")
		}
	}()
	_ = s.Arm(&w.Waiter, two, w)
}

// Events and owners race. An event that was armed and not disarmed comes once.
func TestDisarmDuringEvents(t *testing.T) {
	s := newPoller(t)
	var wg sync.WaitGroup
	for seed := range uint64(8) {
		near, far := testbed.TCPPair(t)
		wg.Go(func() { disarmAtRandom(t, s, [2]net.Conn{near, far}, rand.New(rand.NewPCG(seed, 1))) })
	}
	wg.Wait()
	if n := s.Len(); n != 0 {
		t.Errorf("%d are armed", n)
	}
}

// disarmAtRandom waits for a byte that arrives at the same time, and disarms half of the
// time.
func disarmAtRandom(t *testing.T, s *Poller, pair [2]net.Conn, rnd *rand.Rand) {
	w := newTestWaker()
	sent := make(chan error, 1)
	for range 300 {
		go func() {
			_, err := pair[1].Write([]byte("x"))
			sent <- err
		}()
		err := s.Arm(&w.Waiter, pair[0], w)
		forgotten := rnd.IntN(2) == 0
		if forgotten {
			s.Disarm(&w.Waiter)
			w = newTestWaker() // the last one may still receive an event in progress
		} else {
			<-w.wakes
		}
		_, failed := pair[0].Read(make([]byte, 1))
		if err := errors.Join(err, <-sent, failed); err != nil {
			t.Error(err)
			return
		}
		if len(w.wakes) > 0 {
			t.Errorf("%d wakes too many", len(w.wakes))
		}
	}
	s.Disarm(&w.Waiter)
}
