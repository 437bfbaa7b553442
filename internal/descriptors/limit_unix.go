//go:build unix

package descriptors

import "golang.org/x/sys/unix"

// Limit returns how many descriptors the process may open.
func Limit() int64 {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil || limit.Cur > Unlimited {
		return Unlimited
	}
	return int64(limit.Cur) // bounded above
}
