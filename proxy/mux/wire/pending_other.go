//go:build !unix

package wire

import (
	"errors"
	"os"
	"time"
)

// Stirs cannot be told here without reading.
func (w *Wire) Stirs() bool { return false }

// arrived reads for a moment. What comes stays in the Reader; an end comes again.
func (w *Wire) arrived() bool {
	w.Limit(time.Now().Add(time.Millisecond))
	defer w.Limit(time.Time{})
	return !errors.Is(w.fill(), os.ErrDeadlineExceeded)
}
