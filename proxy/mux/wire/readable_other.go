//go:build !unix

package wire

import (
	"errors"
	"os"
	"time"
)

// IsReadable returns false: this platform cannot detect it without reading.
func (c *Conn) IsReadable() bool { return false }

// hasArrived reads for a millisecond. Bytes stay in the Reader; the next read returns the end
// of the connection again.
func (c *Conn) hasArrived() bool {
	c.SetDeadline(time.Now().Add(time.Millisecond))
	defer c.SetDeadline(time.Time{})
	return !errors.Is(c.fillBuffer(), os.ErrDeadlineExceeded)
}
