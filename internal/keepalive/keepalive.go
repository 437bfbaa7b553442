// Package keepalive sets TCP keepalive and TCP_USER_TIMEOUT. A connection is probed after a
// minute of silence and ends after two minutes without an acknowledgement.
package keepalive

import (
	"net"
	"time"
)

// Config returns the keepalive settings for net.Dialer and net.ListenConfig. Control goes
// with it.
func Config() net.KeepAliveConfig {
	return net.KeepAliveConfig{Enable: true, Idle: time.Minute, Interval: 10 * time.Second, Count: 6}
}
