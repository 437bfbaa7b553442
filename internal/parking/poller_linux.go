package parking

import (
	"errors"
	"fmt"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// CanPark reports whether a Waiter costs less than a goroutine.
const CanPark = true

// kernelPoller is an epoll set separate from the Go runtime's. Events carry the Waiter's
// key.
type kernelPoller struct {
	// Set once.
	epoll int
	stopR int // pipe whose closing stops Run
	stopW int
}

func (p *kernelPoller) open() error {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return fmt.Errorf("create epoll instance: %w", err)
	}
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		return errors.Join(fmt.Errorf("create pipe: %w", err), unix.Close(epoll))
	}
	p.epoll, p.stopR, p.stopW = epoll, pipe[0], pipe[1]
	ev := unix.EpollEvent{Events: unix.EPOLLIN} // key 0
	if err := unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, p.stopR, &ev); err != nil {
		return errors.Join(fmt.Errorf("watch pipe: %w", err), unix.Close(epoll), unix.Close(p.stopR), unix.Close(p.stopW))
	}
	return nil
}

// Close stops Run. It is called once; no Waiter may be armed or disarmed afterwards.
func (p *Poller) Close() { _ = unix.Close(p.stopW) }

// Run wakes Waiters whose sockets are readable or closed, until Close.
func (p *Poller) Run() {
	defer func() { _, _ = unix.Close(p.epoll), unix.Close(p.stopR) }()
	events := make([]unix.EpollEvent, 128)
	for {
		n, err := unix.EpollWait(p.epoll, events, -1)
		if err != nil && err != unix.EINTR {
			panic(fmt.Sprintf("parking: wait for sockets: %v", err))
		}
		for _, ev := range events[:max(n, 0)] {
			key := uint64(uint32(ev.Fd)) | uint64(uint32(ev.Pad))<<32
			if key == 0 {
				return
			}
			p.dispatch(key)
		}
	}
}

func (p *kernelPoller) add(c net.Conn, key uint64) error {
	return p.control(c, unix.EPOLL_CTL_ADD, key)
}

func (p *kernelPoller) rearm(c net.Conn, key uint64) error {
	return p.control(c, unix.EPOLL_CTL_MOD, key)
}

// remove ignores the error for a closed c: the kernel has already removed it.
func (p *kernelPoller) remove(c net.Conn, key uint64) { _ = p.control(c, unix.EPOLL_CTL_DEL, key) }

func (p *kernelPoller) control(c net.Conn, op int, key uint64) error {
	raw, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		return err
	}
	ev := unix.EpollEvent{
		Events: unix.EPOLLIN | unix.EPOLLRDHUP | unix.EPOLLONESHOT,
		Fd:     int32(uint32(key)), Pad: int32(uint32(key >> 32)),
	}
	var ctlErr error
	err = raw.Control(func(fd uintptr) { ctlErr = unix.EpollCtl(p.epoll, op, int(fd), &ev) })
	return errors.Join(err, ctlErr)
}
