//go:build unix

package parking

import (
	"io"
	"net"

	"golang.org/x/sys/unix"
)

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
