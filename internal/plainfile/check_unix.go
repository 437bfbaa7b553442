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

	"golang.org/x/sys/unix"
)

// CheckAppend says why this process could not append to the file at a path, or make it
// where there is none. The error names what it is about. Nothing is opened, locked or made: another process may be
// writing there. With reading, the file must be readable too.
func CheckAppend(path string, reading bool) error {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return checkCreate(path)
	case err != nil:
		return fmt.Errorf("%s: %w", path, WithoutPath(err))
	case info.IsDir():
		return fmt.Errorf("%s is a directory", path)
	case reading && info.Mode().IsRegular():
		return checkAccess(path, unix.R_OK|unix.W_OK, "read and written")
	}
	return checkAccess(path, unix.W_OK, "written")
}

// CheckReplace says why this process could not put a new file in the place of a path.
func CheckReplace(path string) error { return checkCreate(path) }

func checkCreate(path string) error {
	if target, err := os.Readlink(path); err == nil { // a link to a file that is missing: that one is made
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
		return fmt.Errorf("%s is no directory", dir)
	}
	return checkAccess(dir, unix.W_OK|unix.X_OK, "written to")
}

// checkAccess asks the kernel with the rights that the process has in effect.
func checkAccess(path string, mode uint32, operation string) error {
	err := unix.Faccessat(unix.AT_FDCWD, path, mode, unix.AT_EACCESS)
	if err == nil {
		return nil
	}
	info, statErr := os.Stat(path)
	if statErr != nil || !errors.Is(err, fs.ErrPermission) { // a file system that is read-only, say
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
