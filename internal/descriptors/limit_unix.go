//go:build unix

package descriptors

import "golang.org/x/sys/unix"

// Limit is how many descriptors the process may have.
func Limit() int64 {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil || limit.Cur > unlimited {
		return unlimited
	}
	return int64(limit.Cur) // compared above
}
