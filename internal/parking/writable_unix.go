//go:build unix

package parking

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// IsWritable reports whether the kernel takes more bytes for c, or c has failed. A write
// that is in progress does not wait for the peer then: its goroutine has only not run yet.
func IsWritable(c net.Conn) bool {
	socket, ok := TCP(c).(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return true
	}
	writable := false
	err = raw.Control(func(fd uintptr) {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, 0)
		writable = n > 0 && err == nil
	})
	return err != nil || writable
}
