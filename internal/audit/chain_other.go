//go:build !(darwin || dragonfly || freebsd || linux || netbsd || openbsd)

package audit

import (
	"errors"
	"os"
	"time"
)

// openChainLock returns an error on systems without flock: a chain has one writer
// there.
func openChainLock(string) (*chainLock, error) { return nil, errors.ErrUnsupported }

func (c *chainLock) acquire(time.Duration) bool { return true }
func (c *chainLock) release()                   {}
func fileIDOf(os.FileInfo) fileID               { return fileID{} }
