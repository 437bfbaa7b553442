package admin

import (
	"errors"
	"fmt"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// denyAll makes the file of a socket that is about to be bound inaccessible.
func denyAll(_, _ string, raw syscall.RawConn) error {
	var modeErr error
	err := raw.Control(func(fd uintptr) { modeErr = unix.Fchmod(int(fd), 0) })
	return errors.Join(err, modeErr)
}

// peerName returns which user is at the other end of a connection to the socket.
func peerName(conn *net.UnixConn) string {
	name := "uid unknown"
	raw, err := conn.SyscallConn()
	if err != nil {
		return name
	}
	_ = raw.Control(func(fd uintptr) { // without an answer the name stays unknown
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			name = fmt.Sprintf("uid %d", cred.Uid)
		}
	})
	return name
}
