package keepalive

import (
	"errors"
	"syscall"

	"golang.org/x/sys/unix"
)

// userTimeout is how long sent bytes may stay unacknowledged, in milliseconds. Keepalive
// sends no probes while there are any.
const userTimeout = 120_000

// Control sets TCP_USER_TIMEOUT. Accepted connections inherit it from a listening socket.
func Control(_, _ string, raw syscall.RawConn) error {
	var sockErr error
	err := raw.Control(func(fd uintptr) {
		sockErr = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, userTimeout)
	})
	return errors.Join(err, sockErr)
}
