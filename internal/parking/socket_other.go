//go:build !unix

package parking

import "net"

// CanTest is false: this platform cannot detect the state without reading or writing.
const CanTest = false

// IsReadable returns false.
func IsReadable(net.Conn) bool { return false }

// IsWritable returns false.
func IsWritable(net.Conn) bool { return false }

// pollNow returns false, so that the runtime waits for each event.
func pollNow(uintptr, int16) bool { return false }

const pollIn = 0

// recvAvailable returns 0: on this system a read cannot avoid blocking.
func recvAvailable(*net.TCPConn, []byte) (int, error) { return 0, nil }
