package proxy

import (
	"net/netip"

	"imapgate/internal/event"
	"imapgate/internal/identity"
)

// limitAddr returns the address that limits apply to, or the zero Addr while it is unknown.
// The address of a trusted peer is not counted, because it stands for many clients, unless
// the peer is the client itself.
func (c *connection) limitAddr() netip.Addr {
	if c.client.Record.Addr.IsValid() {
		return c.client.Record.Addr.Addr()
	}
	if c.preauth.peerIsClient {
		return c.client.Record.Peer.Addr()
	}
	if containsPeer(c.listener.ProxyProtocol.networks(), c.client.Record.Peer) || containsPeer(c.listener.TrustedNetworks, c.client.Record.Peer) {
		return netip.Addr{}
	}
	return c.client.Record.Peer.Addr()
}

// openLimits counts the connection for its address.
func (c *connection) openLimits() (err error) {
	c.client.Limits, err = c.server.deps.Limits.Open(c.listener.Name, c.limitAddr())
	return c.connectionLimitError(err)
}

// updateLimitAddr counts the connection for the client's address as now known.
func (c *connection) updateLimitAddr() error {
	return c.connectionLimitError(c.client.Limits.SetAddr(c.limitAddr()))
}

// connectionLimitError returns the closeError for a client that is over a limit or banned.
func (c *connection) connectionLimitError(err error) error {
	if err == nil {
		return nil
	}
	c.server.logins.RecordLimit(&c.client, err, identity.User{})
	return &closeError{event.TooManyConnections, "[UNAVAILABLE] Too many connections.", err}
}
