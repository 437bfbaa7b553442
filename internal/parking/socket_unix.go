//go:build unix

package parking

import (
	"io"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// CanTest reports whether IsReadable and IsWritable know the state of a socket.
const CanTest = true

// IsReadable reports whether the kernel has bytes from the peer of c, or the end of the
// connection. It consumes nothing. Any goroutine may call it.
func IsReadable(c net.Conn) bool { return hasState(c, pollIn) }

const pollIn int16 = unix.POLLIN

// IsWritable reports whether the kernel takes more bytes for c, or c has failed. A write
// that is in progress does not wait for the peer then: its goroutine has only not run yet.
func IsWritable(c net.Conn) bool { return hasState(c, unix.POLLOUT) }

func hasState(c net.Conn, events int16) bool {
	raw, err := TCP(c).(syscall.Conn).SyscallConn()
	if err != nil {
		return true
	}
	ready := false
	err = raw.Control(func(fd uintptr) { ready = pollNow(fd, events) })
	return err != nil || ready
}

// pollNow asks the kernel. The runtime reports only new events, and may have reported these
// bytes before.
func pollNow(fd uintptr, events int16) bool {
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: events}}, 0)
		if err != unix.EINTR {
			return n > 0 && err == nil
		}
	}
}

// recvAvailable reads without blocking, whatever the deadline.
func recvAvailable(c *net.TCPConn, p []byte) (n int, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	recvErr := error(unix.EINTR)
	err = raw.Control(func(fd uintptr) {
		for recvErr == unix.EINTR {
			n, _, recvErr = unix.Recvfrom(int(fd), p, unix.MSG_DONTWAIT)
		}
	})
	switch {
	case err != nil:
		return 0, err
	case recvErr == unix.EAGAIN:
		return 0, ErrWouldBlock
	case recvErr != nil:
		return 0, recvErr
	case n == 0:
		return 0, io.EOF
	}
	return n, nil
}
