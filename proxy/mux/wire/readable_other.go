//go:build !unix

package wire

import (
	"errors"
	"os"
	"time"
)

// IsReadable cannot be told here without reading.
func (c *Conn) IsReadable() bool { return false }

// hasArrived reads for a moment. What comes stays in the Reader; an end comes again.
func (c *Conn) hasArrived() bool {
	c.SetDeadline(time.Now().Add(time.Millisecond))
	defer c.SetDeadline(time.Time{})
	return !errors.Is(c.fillBuffer(), os.ErrDeadlineExceeded)
}
