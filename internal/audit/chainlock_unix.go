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

// acquire makes the log this process's until unlock; false: not within wait. Others have
// it for one write; who has it for longer has stopped. A file system without locks has
// none to offer, which is no reason to keep no log.
func (g *chainLock) acquire(timeout time.Duration) bool {
	for deadline := time.Now().Add(timeout); errors.Is(flock(g.file, syscall.LOCK_EX|syscall.LOCK_NB), syscall.EWOULDBLOCK); {
		if time.Now().After(deadline) {
			return false
		}
		time.Sleep(time.Millisecond)
	}
	return true
}

func (g *chainLock) release() { _ = flock(g.file, syscall.LOCK_UN) }

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
