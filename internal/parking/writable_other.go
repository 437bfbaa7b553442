//go:build !unix

package parking

import "net"

// IsWritable returns false: this platform cannot detect it without writing.
func IsWritable(net.Conn) bool { return false }
