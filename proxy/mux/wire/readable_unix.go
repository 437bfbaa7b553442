//go:build unix

package wire

import (
	"syscall"

	"golang.org/x/sys/unix"

	"imapgate/internal/parking"
)

// IsReadable reports whether the kernel has bytes from the peer, or the end of the connection.
// It consumes nothing. Any goroutine may call it.
func (c *Conn) IsReadable() bool {
	raw, err := parking.TCP(c.conn).(syscall.Conn).SyscallConn()
	if err != nil {
		return true
	}
	empty := false
	err = raw.Control(func(fd uintptr) {
		var one [1]byte
		peekErr := error(unix.EINTR)
		for peekErr == unix.EINTR {
			_, _, peekErr = unix.Recvfrom(int(fd), one[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		}
		empty = peekErr == unix.EAGAIN
	})
	return err != nil || !empty
}

func (c *Conn) hasArrived() bool { return c.IsReadable() }
