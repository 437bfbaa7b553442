//go:build !(darwin || dragonfly || freebsd || linux || netbsd || openbsd)

package audit

import (
	"errors"
	"os"
	"time"
)

// openGuard has no lock to offer where there is no flock: a chain has one writer.
func openGuard(string) (*guard, error) { return nil, errors.ErrUnsupported }

func (g *guard) lock(time.Duration) bool { return true }
func (g *guard) unlock()                 {}
func idOf(os.FileInfo) fileID            { return fileID{} }
