//go:build unix

package quiet

import (
	"io"
	"net"

	"golang.org/x/sys/unix"
)

// readKernel reads without waiting, whatever the deadline.
func readKernel(c *net.TCPConn, p []byte) (n int, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	read := error(unix.EINTR)
	err = raw.Control(func(fd uintptr) {
		for read == unix.EINTR {
			n, _, read = unix.Recvfrom(int(fd), p, unix.MSG_DONTWAIT)
		}
	})
	switch {
	case err != nil:
		return 0, err
	case read == unix.EAGAIN:
		return 0, ErrNothing
	case read != nil:
		return 0, read
	case n == 0:
		return 0, io.EOF
	}
	return n, nil
}
