//go:build !linux

package listen

import (
	"errors"
	"net"

	"imapgate/internal/keepalive"
)

// control does not set SO_REUSEPORT: outside Linux it may give all clients to the newest
// process, or to the oldest.
var control = keepalive.Control

// IsShared returns errors.ErrUnsupported: sharing cannot be detected on this system.
func IsShared(net.Addr) (bool, error) { return false, errors.ErrUnsupported }
