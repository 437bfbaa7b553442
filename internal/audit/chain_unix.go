//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package audit

import (
	"errors"
	"os"
	"syscall"
	"time"
)

func openChainLock(path string) (*chainLock, error) {
	f, err := os.OpenFile(chainLockPath(path), os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, err
	}
	return &chainLock{f}, nil
}

// acquire locks the log for this process; false if timeout passes. Other processes
// hold the lock for one write; one that holds it for longer has been stopped. On a
// file system without locks it returns true, so that the log is written anyway.
func (c *chainLock) acquire(timeout time.Duration) bool {
	for deadline := time.Now().Add(timeout); errors.Is(flock(c.file, syscall.LOCK_EX|syscall.LOCK_NB), syscall.EWOULDBLOCK); {
		if time.Now().After(deadline) {
			return false
		}
		time.Sleep(time.Millisecond)
	}
	return true
}

func (c *chainLock) release() { _ = flock(c.file, syscall.LOCK_UN) }

func flock(f *os.File, op int) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var lockErr error
	err = raw.Control(func(fd uintptr) { lockErr = syscall.Flock(int(fd), op) })
	return errors.Join(err, lockErr)
}

func fileIDOf(info os.FileInfo) fileID {
	s, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return fileID{}
	}
	return fileID{uint64(s.Dev), uint64(s.Ino)} // their types differ among systems
}
