// Package listen opens TCP addresses so that a process can be started beside one
// that still listens there, and tells when two do. Clients are dealt out among the
// processes that listen on an address; who may do so is a matter of the system,
// which on Linux wants the same user for both (SO_REUSEPORT).
package listen

import (
	"context"
	"net"

	"imapgate/internal/keepalive"
)

// TCP listens on host:port. What it accepts notices a dead peer (deadpeer).
func TCP(address string) (*net.TCPListener, error) {
	config := net.ListenConfig{Control: control, KeepAliveConfig: keepalive.Config()}
	l, err := config.Listen(context.Background(), "tcp", address)
	if err != nil {
		return nil, err
	}
	return l.(*net.TCPListener), nil
}
