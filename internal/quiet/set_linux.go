package quiet

import (
	"errors"
	"fmt"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// CanPark says whether a Waiter costs less than a goroutine.
const CanPark = true

// poller is an epoll set of our own, beside the runtime's. A Waiter's key names
// its socket there.
type poller struct {
	// Set once.
	epoll int
	wakeR int // a pipe whose end tells Run to end
	wakeW int
}

func (p *poller) open() error {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return fmt.Errorf("make an epoll set: %w", err)
	}
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		return errors.Join(fmt.Errorf("make a pipe: %w", err), unix.Close(epoll))
	}
	p.epoll, p.wakeR, p.wakeW = epoll, pipe[0], pipe[1]
	ev := unix.EpollEvent{Events: unix.EPOLLIN} // key 0
	if err := unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, p.wakeR, &ev); err != nil {
		return errors.Join(fmt.Errorf("watch a pipe: %w", err), unix.Close(epoll), unix.Close(p.wakeR), unix.Close(p.wakeW))
	}
	return nil
}

// Close ends Run, once. No Waiter is told to Wait or Forget afterwards.
func (s *Set) Close() { _ = unix.Close(s.wakeW) }

// Run wakes Waiters whose sockets have something to say, until Close. Whoever
// starts it waits for it.
func (s *Set) Run() {
	defer func() { _, _ = unix.Close(s.epoll), unix.Close(s.wakeR) }()
	events := make([]unix.EpollEvent, 128)
	for {
		n, err := unix.EpollWait(s.epoll, events, -1)
		if err != nil && err != unix.EINTR {
			panic(fmt.Sprintf("quiet: wait for sockets: %v", err))
		}
		for _, ev := range events[:max(n, 0)] {
			key := uint64(uint32(ev.Fd)) | uint64(uint32(ev.Pad))<<32
			if key == 0 {
				return
			}
			s.wake(key)
		}
	}
}

func (p *poller) add(c net.Conn, key uint64) error { return p.control(c, unix.EPOLL_CTL_ADD, key) }

func (p *poller) rearm(c net.Conn, key uint64) error { return p.control(c, unix.EPOLL_CTL_MOD, key) }

// remove has nothing to do where c is closed: the kernel has dropped it.
func (p *poller) remove(c net.Conn, key uint64) { _ = p.control(c, unix.EPOLL_CTL_DEL, key) }

func (p *poller) control(c net.Conn, op int, key uint64) error {
	raw, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		return err
	}
	ev := unix.EpollEvent{
		Events: unix.EPOLLIN | unix.EPOLLRDHUP | unix.EPOLLONESHOT,
		Fd:     int32(uint32(key)), Pad: int32(uint32(key >> 32)),
	}
	var failed error
	err = raw.Control(func(fd uintptr) { failed = unix.EpollCtl(p.epoll, op, int(fd), &ev) })
	return errors.Join(err, failed)
}
