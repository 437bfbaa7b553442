//go:build unix && !linux

package parking

import "golang.org/x/sys/unix"

// isReadable asks the kernel. The runtime reports only new events, and may have reported
// these bytes before.
func isReadable(fd uintptr) bool {
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
	return n > 0 && err == nil
}
