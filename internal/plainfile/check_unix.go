//go:build unix

package plainfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// CheckAppend returns why this process could not append to the file at path, or create it, or
// nil. The error names the path. It opens, locks and creates nothing: another process may be
// writing there. With reading, the file must be readable too.
func CheckAppend(path string, reading bool) error {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return CheckReplace(path)
	case err != nil:
		return fmt.Errorf("%s: %w", path, WithoutPath(err))
	case info.IsDir():
		return fmt.Errorf("%s is a directory", path)
	case reading && info.Mode().IsRegular():
		return checkAccess(path, unix.R_OK|unix.W_OK, "read and written")
	}
	return checkAccess(path, unix.W_OK, "written")
}

// CheckReplace returns why this process could not replace the file at path by a new one, or
// nil.
func CheckReplace(path string) error {
	if target, err := os.Readlink(path); err == nil { // a broken link: its target would be created
		if !filepath.IsAbs(target) {
			target = filepath.Join(filepath.Dir(path), target)
		}
		path = target
	}
	dir := filepath.Dir(path)
	info, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("directory %s does not exist", dir)
	case err != nil:
		return fmt.Errorf("%s: %w", dir, WithoutPath(err))
	case !info.IsDir():
		return fmt.Errorf("%s is not a directory", dir)
	}
	return checkAccess(dir, unix.W_OK|unix.X_OK, "written to")
}

// checkAccess asks the kernel, with the process's effective rights.
func checkAccess(path string, mode uint32, operation string) error {
	err := unix.Faccessat(unix.AT_FDCWD, path, mode, unix.AT_EACCESS)
	if err == nil {
		return nil
	}
	info, statErr := os.Stat(path)
	if statErr != nil || !errors.Is(err, fs.ErrPermission) { // such as a read-only file system
		return fmt.Errorf("%s: %w", path, err)
	}
	uid, _ := fileOwner(info)
	return fmt.Errorf("%s cannot be %s by user %s: it belongs to %s, mode %04o", path, operation, userName(os.Geteuid()), userName(uid), info.Mode().Perm())
}

func userName(uid int) string {
	id := strconv.Itoa(uid)
	if u, err := user.LookupId(id); err == nil {
		return u.Username
	}
	return id
}

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
