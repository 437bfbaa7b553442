// Package deadpeer is how TCP connections of either side notice a peer that is
// gone without a word: a probe after a minute of silence, and an end after two
// minutes without an acknowledgement. It knows nothing of what is said on them.
package deadpeer

import (
	"net"
	"time"
)

// KeepAlive is for net.Dialer and net.ListenConfig, as is Control.
func KeepAlive() net.KeepAliveConfig {
	return net.KeepAliveConfig{Enable: true, Idle: time.Minute, Interval: 10 * time.Second, Count: 6}
}
