//go:build unix

package plainfile

import (
	"errors"
	"io/fs"
	"syscall"
)

// noFollow makes a symbolic link an error.
const noFollow = syscall.O_NOFOLLOW

// isLink reports whether err is the result of noFollow. FreeBSD returns EMLINK.
func isLink(err error) bool { return errors.Is(err, syscall.ELOOP) || errors.Is(err, syscall.EMLINK) }

// fileOwner returns the owner of the file.
func fileOwner(info fs.FileInfo) (uid int, known bool) {
	s, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, false
	}
	return int(s.Uid), true
}
