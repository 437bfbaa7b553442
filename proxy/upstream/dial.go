package upstream

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/pires/go-proxyproto"

	"imapgate/internal/keepalive"
	"imapgate/internal/sleep"
)

const (
	maxConnectAttempts = 3           // for one login
	connectRetryDelay  = time.Second // between attempts
)

// newDialer returns a dialer whose connections detect a dead peer.
func newDialer() *net.Dialer {
	return &net.Dialer{
		KeepAliveConfig: keepalive.Config(),
		Control:         keepalive.Control,
	}
}

// connect tries to connect until the deadline, up to maxConnectAttempts times. Retries are
// safe: nothing has been sent. A backend that is down gets one attempt.
func (b *Backend) connect(ctx context.Context, deadline time.Time) (net.Conn, error) {
	if limit := time.Now().Add(b.cfg.UpstreamConnectTimeout); limit.Before(deadline) {
		deadline = limit
	}
	for attempt := 1; ; attempt++ {
		nc, err := b.dial(ctx, deadline)
		if err == nil {
			return nc, nil
		}
		left := time.Until(deadline)
		if attempt == maxConnectAttempts || left <= connectRetryDelay || b.health.isDown() || sleep.For(ctx, connectRetryDelay) != nil {
			return nil, fmt.Errorf("%w: %w", errConnect, err)
		}
	}
}

// dial connects once. An IP address bypasses the resolver.
func (b *Backend) dial(ctx context.Context, deadline time.Time) (net.Conn, error) {
	d := *b.dialer
	d.Deadline = deadline
	if b.addr.IsValid() {
		nc, err := d.DialTCP(ctx, "tcp", netip.AddrPort{}, b.addr)
		if err != nil {
			return nil, err // a nil *TCPConn in a net.Conn would not be nil
		}
		return nc, nil
	}
	return d.DialContext(ctx, "tcp", b.cfg.Address)
}

// proxyHeader returns the PROXY v2 header for c. If the addresses are unknown it is LOCAL, for
// a connection of the gateway's own.
func proxyHeader(c Client) ([]byte, error) {
	header := &proxyproto.Header{Version: 2, Command: proxyproto.LOCAL, TransportProtocol: proxyproto.UNSPEC}
	if c.Addr.IsValid() && c.Local.IsValid() {
		header = proxyproto.HeaderProxyFromAddrs(2, tcpAddr(c.Addr), tcpAddr(c.Local))
	}
	return header.Format()
}

func tcpAddr(a netip.AddrPort) *net.TCPAddr {
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(a.Addr().Unmap().WithZone(""), a.Port()))
}
