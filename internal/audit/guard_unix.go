//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package audit

import (
	"errors"
	"os"
	"syscall"
	"time"
)

func openGuard(path string) (*guard, error) {
	f, err := os.OpenFile(guardPath(path), os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, err
	}
	return &guard{f}, nil
}

// lock makes the log this process's until unlock; false: not within wait. Others have
// it for one write; who has it for longer has stopped. A file system without locks has
// none to offer, which is no reason to keep no log.
func (g *guard) lock(wait time.Duration) bool {
	for deadline := time.Now().Add(wait); errors.Is(flock(g.f, syscall.LOCK_EX|syscall.LOCK_NB), syscall.EWOULDBLOCK); {
		if time.Now().After(deadline) {
			return false
		}
		time.Sleep(time.Millisecond)
	}
	return true
}

func (g *guard) unlock() { _ = flock(g.f, syscall.LOCK_UN) }

func flock(f *os.File, how int) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) { failed = syscall.Flock(int(fd), how) })
	return errors.Join(err, failed)
}

func idOf(info os.FileInfo) fileID {
	s, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return fileID{}
	}
	return fileID{uint64(s.Dev), uint64(s.Ino)} // their types differ among systems
}
