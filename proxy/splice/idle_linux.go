package splice

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

const canPark = true

// idleSet holds the sockets of parked pumps: an epoll set of our own, beside the
// runtime's, so that nobody has to wait in a goroutine. Each socket is armed for
// one event; the pump it wakes arms it again when it parks.
type idleSet struct {
	// Set once.
	epoll int
	wakeR int // a pipe whose end tells run to end
	wakeW int

	mu     sync.Mutex
	parked map[uint64]*pump // Guarded by mu.
	next   uint64           // Guarded by mu. Keys are never used twice, so a late event finds nothing.
}

func (s *idleSet) open() error {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return fmt.Errorf("make an epoll set: %w", err)
	}
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		return errors.Join(fmt.Errorf("make a pipe: %w", err), unix.Close(epoll))
	}
	s.epoll, s.wakeR, s.wakeW, s.parked = epoll, pipe[0], pipe[1], map[uint64]*pump{}
	ev := unix.EpollEvent{Events: unix.EPOLLIN} // key 0
	if err := unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, s.wakeR, &ev); err != nil {
		return fmt.Errorf("watch a pipe: %w", err)
	}
	return nil
}

func (s *idleSet) close() { _ = unix.Close(s.wakeW) }

// run wakes pumps whose sockets have something to say, until close.
func (s *idleSet) run(wg *sync.WaitGroup) {
	defer wg.Done()
	defer func() { _, _ = unix.Close(s.epoll), unix.Close(s.wakeR) }()
	events := make([]unix.EpollEvent, 128)
	for {
		n, err := unix.EpollWait(s.epoll, events, -1)
		if err != nil && err != unix.EINTR {
			panic(fmt.Sprintf("splice: wait for idle sessions: %v", err))
		}
		for _, ev := range events[:max(n, 0)] {
			key := uint64(uint32(ev.Fd)) | uint64(uint32(ev.Pad))<<32
			if key == 0 {
				return
			}
			if p := s.take(key); p != nil {
				p.wake()
			}
		}
	}
}

func (s *idleSet) take(key uint64) *pump {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.parked[key]
	delete(s.parked, key)
	return p
}

// park waits for p's source in the set. A socket that is closed has no need to
// wait: its session is over. Where the kernel has no room for another one, the
// pump keeps a goroutine, and is not asked again.
func (s *idleSet) park(p *pump) {
	s.mu.Lock()
	if p.key == 0 {
		s.next++
		p.key = s.next
	}
	key := p.key
	s.parked[key] = p
	op := unix.EPOLL_CTL_MOD
	if !p.armed {
		op, p.armed = unix.EPOLL_CTL_ADD, true
	}
	s.mu.Unlock()
	err := s.arm(socket(p.src), op, key)
	switch {
	case err == nil && op == unix.EPOLL_CTL_ADD:
		p.relay.set.parkings.Add(1)
	case err != nil && s.take(key) != nil && !errors.Is(err, net.ErrClosed):
		p.start(still)
	}
}

func (s *idleSet) arm(c net.Conn, op int, key uint64) error {
	raw, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		return err
	}
	ev := unix.EpollEvent{
		Events: unix.EPOLLIN | unix.EPOLLRDHUP | unix.EPOLLONESHOT,
		Fd:     int32(uint32(key)), Pad: int32(uint32(key >> 32)),
	}
	var armed error
	err = raw.Control(func(fd uintptr) { armed = unix.EpollCtl(s.epoll, op, int(fd), &ev) })
	return errors.Join(err, armed)
}

// forget drops a pump whose socket is closed; the kernel has dropped that.
func (s *idleSet) forget(p *pump) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.parked, p.key)
}

func (s *idleSet) len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.parked)
}
