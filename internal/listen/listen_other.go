//go:build !linux

package listen

import (
	"errors"
	"net"

	"imapgate/internal/keepalive"
)

// control is not Linux's: elsewhere SO_REUSEPORT may give all clients to the
// process that came last, or to the first.
var control = keepalive.Control

// IsShared cannot be told here.
func IsShared(net.Addr) (bool, error) { return false, errors.ErrUnsupported }
