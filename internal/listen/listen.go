// Package listen opens TCP addresses that several processes may share, so that a new
// process can start while an old one still listens. It also reports whether an address is
// shared. The kernel distributes clients among the processes; on Linux all must run as the
// same user (SO_REUSEPORT).
package listen

import (
	"context"
	"net"

	"imapgate/internal/keepalive"
)

// TCP listens on host:port. Accepted connections detect dead peers as package keepalive
// defines.
func TCP(address string) (*net.TCPListener, error) {
	config := net.ListenConfig{Control: control, KeepAliveConfig: keepalive.Config()}
	l, err := config.Listen(context.Background(), "tcp", address)
	if err != nil {
		return nil, err
	}
	return l.(*net.TCPListener), nil
}
