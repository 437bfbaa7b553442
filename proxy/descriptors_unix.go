//go:build unix

package proxy

import "golang.org/x/sys/unix"

// reserved descriptors keep Redis, the admin address, the audit log and the
// certificates working when clients have taken all the others.
const reserved = 64

// descriptorSlots is how many connections the descriptor limit allows, at two
// each: the client's and its backend's.
func descriptorSlots() int64 {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil || limit.Cur > 1<<30 {
		return 1 << 29
	}
	return max(int64(limit.Cur)-reserved, 2) / 2 // compared above
}
