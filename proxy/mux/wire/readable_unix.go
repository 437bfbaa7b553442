//go:build unix

package wire

import (
	"syscall"

	"golang.org/x/sys/unix"

	"imapgate/internal/parking"
)

// IsReadable says whether the kernel has bytes of the peer's, or the end of the
// connection. It takes nothing, and any goroutine may ask.
func (c *Conn) IsReadable() bool {
	raw, err := parking.TCP(c.conn).(syscall.Conn).SyscallConn()
	if err != nil {
		return true
	}
	silent := false
	err = raw.Control(func(fd uintptr) {
		var one [1]byte
		peeked := error(unix.EINTR)
		for peeked == unix.EINTR {
			_, _, peeked = unix.Recvfrom(int(fd), one[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		}
		silent = peeked == unix.EAGAIN
	})
	return err != nil || !silent
}

func (c *Conn) hasArrived() bool { return c.IsReadable() }
