//go:build !linux

package listen

import (
	"errors"
	"net"

	"imapgate/internal/deadpeer"
)

// control is not Linux's: elsewhere SO_REUSEPORT may give all clients to the
// process that came last, or to the first.
var control = deadpeer.Control

// Shared cannot be told here.
func Shared(net.Addr) (bool, error) { return false, errors.ErrUnsupported }
