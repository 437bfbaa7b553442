//go:build unix && !linux

package parking

import "golang.org/x/sys/unix"

// isReadable asks the kernel: the runtime is told of news only, and may have been
// told of these bytes before.
func isReadable(fd uintptr) bool {
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
	return n > 0 && err == nil
}
