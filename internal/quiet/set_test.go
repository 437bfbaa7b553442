package quiet

import (
	"errors"
	"math/rand/v2"
	"net"
	"sync"
	"testing"

	"imapgate/internal/testbed"
)

func TestTwoWaitersOfOneSessionWakeEachForItsSocket(t *testing.T) {
	s := newSet(t)
	client, front := testbed.TCPPair(t)
	back, backend := testbed.TCPPair(t)
	up, down := newSleeper(), newSleeper()
	for range 3 {
		wait(t, s, up, front)
		wait(t, s, down, back)
		say(t, client, "a NOOP\r\n")
		up.wakes(t)
		hear(t, front, "a NOOP\r\n")
		down.sleeps(t)
		say(t, backend, "a OK\r\n")
		down.wakes(t)
		hear(t, back, "a OK\r\n")
		up.sleeps(t)
	}
	if n := s.Len(); n != 0 {
		t.Errorf("%d are armed", n)
	}
}

func TestAnArmedWaiterStaysAsItIs(t *testing.T) {
	s := newSet(t)
	near, far := testbed.TCPPair(t)
	w := newSleeper()
	wait(t, s, w, near)
	if n := testing.AllocsPerRun(100, func() { wait(t, s, w, near) }); n > 0 {
		t.Errorf("%v allocations for nothing", n)
	}
	if n := s.Len(); n != 1 {
		t.Errorf("%d are armed", n)
	}
	say(t, far, "x")
	w.wakes(t)
	settled(t, s)
	w.sleeps(t) // one event, however often it was asked for
}

func TestBytesThatCameBeforeTheWaitAreToldOf(t *testing.T) {
	s := newSet(t)
	near, far := testbed.TCPPair(t)
	w := newSleeper()
	say(t, far, "xy")
	hear(t, near, "x")
	for range 3 {
		wait(t, s, w, near)
		w.wakes(t) // until somebody reads it
	}
}

func TestAHangUpWakes(t *testing.T) {
	s := newSet(t)
	for name, hangUp := range map[string]func(c *net.TCPConn){
		"FIN": func(c *net.TCPConn) { _ = c.CloseWrite() },
		"RST": func(c *net.TCPConn) { _, _ = c.SetLinger(0), c.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			near, far := testbed.TCPPair(t)
			before, behind := newSleeper(), newSleeper()
			wait(t, s, before, near)
			hangUp(far.(*net.TCPConn))
			before.wakes(t)
			s.Forget(&before.Waiter)
			wait(t, s, behind, near)
			behind.wakes(t)
		})
	}
}

func TestAWaiterGoesOnWithANewSocket(t *testing.T) {
	s := newSet(t)
	w := newSleeper()
	for name, leave := range map[string]func(old net.Conn){
		"forgotten, then closed": func(old net.Conn) { s.Forget(&w.Waiter); _ = old.Close() },
		"closed, then forgotten": func(old net.Conn) { _ = old.Close(); s.Forget(&w.Waiter) },
		"kept open":              func(net.Conn) { s.Forget(&w.Waiter) },
	} {
		t.Run(name, func(t *testing.T) {
			old, oldFar := testbed.TCPPair(t)
			wait(t, s, w, old)
			leave(old)
			near, far := testbed.TCPPair(t) // perhaps with the descriptor of the old one
			wait(t, s, w, near)
			_, _ = oldFar.Write([]byte("x")) // nobody may be there
			settled(t, s)
			w.sleeps(t)
			say(t, far, "x")
			w.wakes(t)
			s.Forget(&w.Waiter)
			if n := s.Len(); n != 0 {
				t.Errorf("%d are armed", n)
			}
		})
	}
}

func TestASocketGoesOnWithAnotherWaiter(t *testing.T) {
	s := newSet(t)
	near, far := testbed.TCPPair(t)
	session, pool := newSleeper(), newSleeper()
	for range 3 {
		wait(t, s, session, near)
		s.Forget(&session.Waiter)
		wait(t, s, pool, near)
		say(t, far, "x")
		pool.wakes(t)
		hear(t, near, "x")
		s.Forget(&pool.Waiter)
	}
	session.sleeps(t)
}

func TestAClosedSocketIsNotWaitedFor(t *testing.T) {
	s := newSet(t)
	near, _ := testbed.TCPPair(t)
	w := newSleeper()
	_ = near.Close()
	if err := s.Wait(&w.Waiter, near, w); !errors.Is(err, net.ErrClosed) {
		t.Errorf("waits for a closed socket: %v", err)
	}
	near, far := testbed.TCPPair(t)
	wait(t, s, w, near) // and w can be used
	say(t, far, "x")
	w.wakes(t)
	_ = near.Close()
	if err := s.Wait(&w.Waiter, near, w); !errors.Is(err, net.ErrClosed) || s.Len() != 0 {
		t.Errorf("waits for a closed socket: %v; %d are armed", err, s.Len())
	}
}

func TestOneSocketAtATime(t *testing.T) {
	s := newSet(t)
	one, _ := testbed.TCPPair(t)
	two, _ := testbed.TCPPair(t)
	w := newSleeper()
	wait(t, s, w, one)
	defer s.Forget(&w.Waiter)
	defer func() {
		if recover() == nil {
			t.Error("a Waiter waits for two sockets")
		}
	}()
	_ = s.Wait(&w.Waiter, two, w)
}

// Events and owners meet at any moment. What was waited for and not forgotten
// comes, once.
func TestForgettingRacesWithEvents(t *testing.T) {
	s := newSet(t)
	var wg sync.WaitGroup
	for seed := range uint64(8) {
		near, far := testbed.TCPPair(t)
		wg.Go(func() { forgetAtRandom(t, s, [2]net.Conn{near, far}, rand.New(rand.NewPCG(seed, 1))) })
	}
	wg.Wait()
	if n := s.Len(); n != 0 {
		t.Errorf("%d are armed", n)
	}
}

// forgetAtRandom waits for a byte that comes meanwhile, and forgets half of the
// time.
func forgetAtRandom(t *testing.T, s *Set, pair [2]net.Conn, rnd *rand.Rand) {
	w := newSleeper()
	sent := make(chan error, 1)
	for range 300 {
		go func() {
			_, err := pair[1].Write([]byte("x"))
			sent <- err
		}()
		err := s.Wait(&w.Waiter, pair[0], w)
		forgotten := rnd.IntN(2) == 0
		if forgotten {
			s.Forget(&w.Waiter)
			w = newSleeper() // the last one may still be told of an event that had begun
		} else {
			<-w.woken
		}
		_, failed := pair[0].Read(make([]byte, 1))
		if err := errors.Join(err, <-sent, failed); err != nil {
			t.Error(err)
			return
		}
		if len(w.woken) > 0 {
			t.Errorf("%d wakes too many", len(w.woken))
		}
	}
	s.Forget(&w.Waiter)
}
