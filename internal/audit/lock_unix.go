//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package audit

import (
	"errors"
	"os"
	"syscall"
	"time"
)

// lock makes a file this process's until unlock, or until it is closed; false: not within
// wait. Others have it for one write; who has it for longer has stopped, or is something
// else. A file system without locks has none to offer, which is no reason to keep no log.
func lock(f *os.File, wait time.Duration) bool {
	for deadline := time.Now().Add(wait); errors.Is(flock(f, syscall.LOCK_EX|syscall.LOCK_NB), syscall.EWOULDBLOCK); {
		if time.Now().After(deadline) {
			return false
		}
		time.Sleep(time.Millisecond)
	}
	return true
}

func unlock(f *os.File) { _ = flock(f, syscall.LOCK_UN) }

func flock(f *os.File, how int) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) { failed = syscall.Flock(int(fd), how) })
	return errors.Join(err, failed)
}
