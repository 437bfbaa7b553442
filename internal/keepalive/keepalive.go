// Package keepalive sets TCP keepalive and TCP_USER_TIMEOUT: a probe after a
// minute of silence, and an end after two minutes without an acknowledgement.
package keepalive

import (
	"net"
	"time"
)

// Config is for net.Dialer and net.ListenConfig, as is Control.
func Config() net.KeepAliveConfig {
	return net.KeepAliveConfig{Enable: true, Idle: time.Minute, Interval: 10 * time.Second, Count: 6}
}
