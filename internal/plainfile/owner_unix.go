//go:build unix

package plainfile

import (
	"errors"
	"io/fs"
	"syscall"
)

// noFollow makes a symbolic link an error.
const noFollow = syscall.O_NOFOLLOW

// isLink says whether err came of noFollow. FreeBSD calls it EMLINK.
func isLink(err error) bool { return errors.Is(err, syscall.ELOOP) || errors.Is(err, syscall.EMLINK) }

// fileOwner is whose the file is.
func fileOwner(info fs.FileInfo) (uid int, known bool) {
	s, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, false
	}
	return int(s.Uid), true
}
